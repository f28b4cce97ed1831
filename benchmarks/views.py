"""A splat from pictures of the demo world with known cameras; every sixth is held out and scored.

demo: 24 views of 128 px at three elevations. synthetic: 60 views of 200 px from random cameras on the upper
hemisphere, written in the layout of NeRF's synthetic scenes (transforms.json) and read back by Lucid Load
Views' reader. Target: 32 dB on the held-out views of demo in less than 60 s on two fast cores.

--against-gsplat N: then the same start is fitted with the settings of gsplat's own simple_trainer (one view
a step, its learning rates and densification, L1 0.8 + SSIM 0.2), by the same renderer, for at most N steps or
until it scores as well. ratio: our seconds by its seconds; target: at most 1.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from demo import world
from lucid_core.cameras import Cameras, orbit
from lucid_core.io import captures
from lucid_core.io.video import to_uint8
from lucid_core.optimize.config import DreamConfig
from lucid_core.optimize.views import PRESETS, PosedImages, ViewFit, fit_views, score_views
from lucid_core.settings import replace_settings
from lucid_core.splats import Splats
from lucid_core.starts.shapes import PointCloud

VIEWS, SIZE, FOVY_DEG, RADIUS = 24, 128, 26.0, 5.0
ELEVATIONS_DEG = (-10.0, 15.0, 40.0)
SYNTHETIC_VIEWS, SYNTHETIC_SIZE = 60, 200
FIT = ViewFit(held_out=6)
# simple_trainer's values where PRESETS["official"] has others; it knows no masks.
GSPLAT, GSPLAT_FIT = (
    replace_settings(PRESETS["official"], lr_sh=(2.5e-3, 2.5e-3)),
    replace(FIT, mask_weight=0),
)
SCORED_EVERY = 100  # steps of the other recipe
TO_Z_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--steps", type=int, help="optimisation steps (default: those of the preset cpu)")
    parser.add_argument("--prompt", default="a red mushroom", help="object of the demo world")
    parser.add_argument("--set", choices=("demo", "synthetic"), default="demo", dest="which")
    parser.add_argument("--against-gsplat", type=int, default=0, metavar="N", help="see above; 0 = off")


def main(as_json: bool, steps: int | None, prompt: str, which: str = "demo", against_gsplat: int = 0) -> None:
    config = PRESETS["cpu"]
    config = replace_settings(config, steps=steps or config.budget.steps)
    shots = pictures_of(prompt) if which == "demo" else synthetic_of(prompt)
    start = PointCloud(count=4000, size=1.6).splats(0)
    fitted, held_out = shots.divide(FIT.held_out)
    assert held_out is not None
    splats, seconds, score = run(start, fitted, held_out, FIT, config)
    row = {"psnr": round(score, 2), "seconds": round(seconds, 1), "splats": len(splats), "views": len(shots)}
    if against_gsplat:
        its = run(start, fitted, held_out, GSPLAT_FIT, GSPLAT, against_gsplat, score)
        row |= {"ratio": round(seconds / its[1], 3), "psnr_gsplat": round(its[2], 2)}
    if as_json:
        print(json.dumps(row))
        return
    print(f"| object | {' | '.join(row)} |\n|---|{'---:|' * len(row)}")
    print(f"| {prompt}, {which} | {' | '.join(map(str, row.values()))} |")


def run(
    start: Splats,
    fitted: PosedImages,
    held_out: PosedImages,
    fit: ViewFit,
    config: DreamConfig,
    most: int | None = None,
    wanted: float = math.inf,
) -> tuple[Splats, float, float]:
    """(splat, seconds of its steps, PSNR) after `most` steps, or once the PSNR is `wanted`.

    most: at most all of `config`; None = all, scored at their end alone. The time of scoring does not count.
    """
    seconds, steps = 0.0, fit_views(start, fitted, fit, config, 0, "numba")
    end = min(most or config.budget.steps, config.budget.steps)
    score = lambda splats: score_views(splats, held_out, fit, "numba").psnr
    while True:
        begun = time.perf_counter()
        step = next(steps)
        seconds += time.perf_counter() - begun
        if step.step == end:
            return step.splats, seconds, score(step.splats)
        if most and step.step % SCORED_EVERY == 0 and (found := score(step.splats)) >= wanted:
            return step.splats, seconds, found


def pictures_of(prompt: str, views: int = VIEWS, size: int = SIZE) -> PosedImages:
    """`views` true pictures of the object on white with masks, around it at three elevations."""
    number = torch.arange(views)
    azimuth = number * (2 * math.pi / views)
    turn = number + number // FIT.held_out  # so that the held-out views have all elevations
    elevation = torch.tensor(ELEVATIONS_DEG).deg2rad()[turn % len(ELEVATIONS_DEG)]
    return _look(prompt, azimuth, elevation, size)


def _look(prompt: str, azimuth: torch.Tensor, elevation: torch.Tensor, size: int) -> PosedImages:
    """True pictures of the object from angles (V,), on white with masks."""
    thing = world.thing_of(prompt)
    fovy, radius = torch.full_like(azimuth, math.radians(FOVY_DEG)), torch.full_like(azimuth, RADIUS)
    rgb, mask = world.render(thing, azimuth, elevation, fovy, size, radius=radius, supersample=4)
    cameras = orbit(azimuth, elevation, radius, fovy, size, size)
    return PosedImages(torch.from_numpy(rgb), cameras, torch.from_numpy(mask))


def synthetic_of(prompt: str, views: int = SYNTHETIC_VIEWS, size: int = SYNTHETIC_SIZE) -> PosedImages:
    """Pictures from random cameras on the upper hemisphere, through files in the layout of NeRF synthetic."""
    azimuth, height = torch.rand(2, views, generator=torch.Generator().manual_seed(0))
    shots = _look(prompt, 2 * math.pi * azimuth, height.asin(), size)
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder), shots)
        capture = captures.read(folder)
        images, masks, cameras = captures.load_images(capture, 0, torch.ones(3))
    return PosedImages(images, cameras.for_size(size, size), masks)


def write_synthetic(folder: Path, shots: PosedImages) -> None:
    """Write pictures on white, cut out, and transforms_train.json."""
    assert shots.masks is not None
    (folder / "train").mkdir()
    frames = []
    for i, pose in enumerate(poses_of(shots.cameras)):
        alpha = shots.masks[i, ..., None]
        rgb = ((shots.images[i] - 1 + alpha) / alpha.clamp_min(1e-6)).clamp(0, 1)
        rgba = to_uint8(torch.cat([rgb, alpha], -1))[..., [2, 1, 0, 3]]
        cv2.imwrite(str(folder / "train" / f"r_{i}.png"), rgba)
        frames.append({"file_path": f"./train/r_{i}", "transform_matrix": pose.tolist()})
    content = {"camera_angle_x": math.radians(FOVY_DEG), "frames": frames}
    (folder / "transforms_train.json").write_text(json.dumps(content), encoding="utf-8")


def poses_of(cameras: Cameras) -> np.ndarray:
    """Camera-to-world (V, 4, 4) in OpenGL's camera axes, world z up."""
    return TO_Z_UP @ np.linalg.inv(cameras.viewmats.double().numpy()) @ np.diag([1, -1, -1, 1])
