"""A folder of pictures with cameras in the layout of NeRF synthetic, of a splat whose colours are known."""

import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import torch

from lucid_core.cameras import Cameras, turntable
from lucid_core.io.video import to_uint8
from lucid_core.rasterize import rasterize
from lucid_core.starts.shapes import PointCloud

VIEWS, SIZE, ELEVATION_DEG, RADIUS, FOV_DEG = 6, 48, 15.0, 5.0, 30.0


def pictures():
    """(rgb (V, S, S, 3), alpha (V, S, S, 1), cameras) of a red ball on black."""
    ball = PointCloud(count=200, size=1.5, color=(0.9, 0.2, 0.1)).splats(1)
    ball = dataclasses.replace(ball, opacities=torch.full((200,), 0.9))
    cameras = turntable(VIEWS, ELEVATION_DEG, RADIUS, FOV_DEG, SIZE, SIZE)
    render = rasterize(ball, cameras, SIZE, SIZE, backend="numba")
    return render.rgb, render.alpha, cameras


def write_views(folder: Path) -> None:
    """Write the pictures, with alpha, and transforms.json."""
    rgb, alpha, cameras = pictures()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for i, pose in enumerate(poses_of(cameras)):
        rgba = torch.cat([rgb[i] / alpha[i].clamp_min(1e-6), alpha[i]], -1)
        data = cv2.imencode(".png", to_uint8(rgba)[..., [2, 1, 0, 3]])[1]
        (folder / "images" / f"{i}.png").write_bytes(data.tobytes())
        frames.append({"file_path": f"images/{i}", "transform_matrix": pose.tolist()})
    content = {"camera_angle_x": math.radians(FOV_DEG), "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content), encoding="utf-8")


def poses_of(cameras: Cameras) -> np.ndarray:
    """Camera-to-world (V, 4, 4) in Blender's axes."""
    to_z_up = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    return to_z_up @ np.linalg.inv(cameras.viewmats.double().numpy()) @ np.diag([1, -1, -1, 1])
