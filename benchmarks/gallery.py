"""Draws splat files side by side on one turntable: the README's animation.

python -m benchmarks.gallery OUT.gif FILE.ply ...
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from demo.score import ELEVATION_DEG, FILL, FOVY_DEG
from lucid_core.cameras import turntable
from lucid_core.io import ply
from lucid_core.io.video import contact_sheet
from lucid_core.rasterize import rasterize
from lucid_core.splats import Splats

COLUMNS, SIZE, SHOWN, FRAMES, FRAME_MS = 3, 128, 208, 48, 80  # SIZE: the resolution of the runs
ALMOST_WHITE = 0.98  # shown as white
RADIUS = 1 / (FILL * torch.tensor(FOVY_DEG / 2).deg2rad().sin())  # of the camera, for an object of radius 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--columns", type=int, default=COLUMNS)
    args = parser.parse_args()
    turning = torch.stack([turn(ply.read(file)) for file in args.files], 1)  # (FRAMES, files, S, S, 3)
    sheets = [contact_sheet(frame, args.columns) for frame in turning]
    # One palette of all sides: frames that differ by their palettes flicker.
    colors = Image.fromarray(np.concatenate(sheets[::6])).quantize(256)
    palette = np.array(colors.getpalette()).reshape(-1, 3)
    palette[palette.min(1) > 255 * ALMOST_WHITE - 5] = 255  # the mean of the white and its neighbours
    images = [
        image.quantize(palette=colors, dither=Image.Dither.NONE) for image in map(Image.fromarray, sheets)
    ]
    for image in images:
        image.putpalette(palette.ravel().tolist())
    first, *others = images
    first.save(args.out, save_all=True, append_images=others, duration=FRAME_MS, loop=0)


def turn(splats: Splats) -> Tensor:
    """One turn around a splat that is centred and scaled to radius 1: (FRAMES, SHOWN, SHOWN, 3) on white."""
    solid = splats.means[splats.opacities > 0.5]
    center = (solid.amin(0) + solid.amax(0)) / 2
    radius = float((solid - center).norm(dim=-1).quantile(0.995))
    splats = replace(splats, means=splats.means - center).scale_by(1 / radius)
    cameras = turntable(FRAMES, ELEVATION_DEG, float(RADIUS), FOVY_DEG, SIZE, SIZE)
    with torch.no_grad():
        images = rasterize(splats, cameras, SIZE, SIZE, background=torch.ones(3)).rgb.movedim(-1, 1)
    images = interpolate(images, (SHOWN, SHOWN), mode="bicubic").movedim(1, -1)
    return torch.where(images > ALMOST_WHITE, 1.0, images).clamp(0, 1)


if __name__ == "__main__":
    main()
