"""Write images and videos with OpenCV. Frames are (B, H, W, 3) sRGB in [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..optional import load
from ..settings import require

CODECS = ("vp09", "mp4v")  # VP9 plays in every browser; MPEG-4 is the fallback


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """Values in [0, 1], clamped -> uint8 of the same shape."""
    return (torch.as_tensor(frames).detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def contact_sheet(frames: Tensor, columns: int) -> NDArray[np.uint8]:
    """Frames (B, H, W, 3), row by row -> one image (rows * H, columns * W, 3) uint8; empty cells white."""
    pictures = to_uint8(frames)
    rows = -(-len(pictures) // columns)
    cells = np.full((rows * columns, *pictures.shape[1:]), 255, np.uint8)
    cells[: len(pictures)] = pictures
    h, w = pictures.shape[1:3]
    return cells.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)


def write_png(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) RGB or (H, W, 4) RGBA, uint8. Raises BadSetting if OpenCV cannot encode it."""
    cv2 = load("cv2", "opencv-python-headless")
    order = [2, 1, 0, 3][: image.shape[-1]]  # BGR, BGRA
    ok, data = cv2.imencode(".png", np.ascontiguousarray(image[..., order]))
    require(ok, "image", f"of shape {image.shape}", "(H, W, 3) or (H, W, 4), with H and W above 0")
    Path(path).write_bytes(data.tobytes())


def write_mp4(path: str | os.PathLike[str], pictures: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write pictures (H, W, 3) RGB, uint8, as an .mp4; H and W must be even.

    Raises OSError if OpenCV has none of the codecs.
    """
    cv2 = load("cv2", "opencv-python-headless")
    height, width = pictures[0].shape[:2]
    for codec in CODECS:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (width, height))
        if writer.isOpened():
            for picture in pictures:
                writer.write(np.ascontiguousarray(picture[..., ::-1]))
            writer.release()
            return
    raise OSError(f"{path}: this opencv can write neither {' nor '.join(CODECS)} video")


def depth_image(depth: Tensor, alpha: Tensor) -> Tensor:
    """Accumulated depth and alpha (1, H, W, 1) -> image (1, H, W, 3) in [0, 1].

    1 at the nearest opaque pixel, 0.1 at the farthest, 0 in empty space.
    """
    z = depth / alpha.clamp_min(1e-6)
    solid = z[alpha > 0.5]
    if len(solid) == 0:
        return torch.zeros_like(z).expand(-1, -1, -1, 3)
    near, far = solid.min(), solid.max()
    bright = 1 - 0.9 * ((z - near) / (far - near).clamp_min(1e-6)).clamp(0, 1)
    return (bright * alpha).expand(-1, -1, -1, 3)
