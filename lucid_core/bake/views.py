"""Cameras all around an object, and the move that puts the object before them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import VIEWING_DISTANCE, Cameras, orbit
from ..rasterize import Renderer, to_device
from ..splats import Splats

FOVY_DEG = 30.0
RADIUS = 0.95 * VIEWING_DISTANCE * math.sin(math.radians(FOVY_DEG) / 2)  # of the object, fills the views
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True)
class Move:
    """Moves `centre` (3,) to the origin, then scales by `factor`."""

    centre: Tensor
    factor: float

    @staticmethod
    def of(points: Tensor) -> Move:
        """The move after which points (N, 3) fill the views of `around`."""
        low, high = box_of(points)
        centre = (low + high) / 2
        return Move(centre, RADIUS / max(float((points - centre).norm(dim=-1).max()), 1e-12))

    def points(self, points: Tensor) -> Tensor:
        """Points (N, 3), moved."""
        return (points - self.centre) * self.factor

    def splats(self, splats: Splats) -> Splats:
        """Splats, moved."""
        return replace(splats, means=splats.means - self.centre).scale_by(self.factor)


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
    full, distance = torch.ones(1), VIEWING_DISTANCE * radius / RADIUS
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
