"""Cameras all around an object."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cameras import Cameras, orbit
from ..frames import RADIUS
from ..rasterize import Renderer, to_device
from ..splats import Splats

FOVY_DEG = 30.0
FILL = 0.95  # share of a view's width that the object fills at most
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def box_of(points: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest coordinates (3,) of points (N, 3)."""
    return points.amin(0), points.amax(0)


def around(views: int, px: int, radius: float = RADIUS) -> list[Cameras]:
    """`views` cameras of `px` pixels, evenly over a sphere about the origin, and each half of them too. A
    ball of `radius` fills the views.

    The positions are a Fibonacci lattice: first every second one, then the others.
    """
    order = torch.cat([torch.arange(0, views, 2), torch.arange(1, views, 2)]).double()
    elevation = (1 - (2 * order + 1) / views).asin().float()
    full, distance = torch.ones(1), radius / (FILL * math.sin(math.radians(FOVY_DEG) / 2))
    return [
        orbit(a[None], e[None], distance * full, math.radians(FOVY_DEG) * full, px, px)
        for a, e in zip((order * GOLDEN_ANGLE).remainder(2 * math.pi).float(), elevation)
    ]


def picture_of(splats: Splats, camera: Cameras, px: int, renderer: Renderer) -> Tensor:
    """One view of `splats`, which lie on the renderer's device: (px, px, 5) on the CPU.

    rgb on black, opacity, and opacity times depth.
    """
    with torch.no_grad():
        shown = renderer(splats, to_device(camera, renderer.device), px, px)
    return torch.cat([shown.rgb, shown.alpha, shown.depth], -1)[0].cpu()
