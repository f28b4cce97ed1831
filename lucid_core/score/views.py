"""The views of a splat that are judged."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..cameras import frame_splats, rotate
from ..rasterize import Renderer, to_device
from ..splats import Splats

FOVY_DEG = 30.0


def turntable_views(
    splats: Splats,
    views: int,
    size: int,
    elevation_deg: float,
    renderer: Renderer,
    report: Callable[[int, Tensor], None] = lambda done, image: None,
) -> tuple[Tensor, Tensor]:
    """`views` views on white over a full turn from the front, each of the whole splat in `size` pixels.

    Returns rgb (V, S, S, 3) and alpha (V, S, S), both in [0, 1], on the CPU. report: called after each view.
    """
    angles = torch.arange(views) * (2 * math.pi / views)
    shown, camera = frame_splats(
        splats.map(lambda x: x.cpu()), math.radians(elevation_deg), math.radians(FOVY_DEG), size, size
    )
    shown = shown.map(lambda x: x.to(renderer.device))
    images, alphas = [], []
    for angle in angles:
        around = to_device(rotate(camera, angle[None], torch.zeros(3)), renderer.device)
        with torch.no_grad():
            view = renderer(shown, around, size, size, background=shown.means.new_ones(3))
        images.append(view.rgb.clamp(0, 1).cpu())
        alphas.append(view.alpha[..., 0].cpu())
        report(len(images), images[-1][0])
    return torch.cat(images), torch.cat(alphas)
