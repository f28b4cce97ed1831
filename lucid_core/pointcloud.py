"""Coloured points to start from, and their first splats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from .checks import check_bounds, require, setting
from .gaussians import SH_C0, Splats

SHAPES = ("ball", "sphere", "box", "cylinder")


@dataclass(frozen=True)
class PointCloud:
    """A simple solid of random points about the origin: what is drawn when nothing better is known.

    `size` is the extent along y (and the diameter of the round shapes) in world units. `color` is the mean sRGB in [0, 1];
    each point is off it by a normal of standard deviation `color_noise`.
    """

    shape: str = SHAPES[0]
    count: int = setting(100_000, 4, 5_000_000, "Number of points. More hold finer detail and cost more.", step=1, rare=False)
    size: float = setting(1.0, 0.001, 1000, "Height and width in units of the splat.", rare=False)
    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    color_noise: float = setting(0.1, 0, 1, "Random difference of each point from the colour; 0 = all alike.")
    opacity: float = setting(0.1, 0.001, 0.999, "Opacity of each Gaussian. Low lets the first steps reach the inside.")

    def __post_init__(self) -> None:
        require(self.shape in SHAPES, "shape", repr(self.shape), f"one of {', '.join(SHAPES)}")
        check_bounds(self)
        require(all(0 <= c <= 1 for c in self.color), "color", self.color, "three numbers from 0 to 1")

    def splats(self, seed: int) -> Splats:
        generator = torch.Generator().manual_seed(seed)
        points = _points(self.shape, self.count, generator) * (self.size / 2)
        noise = self.color_noise * torch.randn(self.count, 3, generator=generator)
        return from_points(points, (torch.tensor(self.color) + noise).clamp(0, 1), self.opacity)


def from_points(points: Tensor, colors: Tensor, opacity: float) -> Splats:
    """Round Gaussians on points (N, 3) with sRGB colors (N, 3) in [0, 1].

    The standard deviation is the root mean square distance to the three nearest neighbours (3DGS, section 5.1).
    """
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(points.numpy()).query(points.numpy(), k=4, workers=-1)  # itself first
    spacing = torch.from_numpy(np.sqrt((distances[:, 1:] ** 2).mean(axis=1))).to(points).clamp_min(1e-7)
    n = len(points)
    return Splats(
        means=points,
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        scales=spacing[:, None].repeat(1, 3),
        opacities=torch.full((n,), opacity),
        sh=((colors - 0.5) / SH_C0)[:, None, :],
    )


def _points(shape: str, count: int, generator: Generator) -> Tensor:
    """`count` points in [-1, 1]^3, uniform in the volume (on the surface for the sphere)."""
    if shape == "box":
        return torch.rand(count, 3, generator=generator) * 2 - 1
    if shape == "cylinder":
        angle = torch.rand(count, generator=generator) * (2 * torch.pi)
        radius = torch.rand(count, generator=generator).sqrt()
        y = torch.rand(count, generator=generator) * 2 - 1
        return torch.stack([radius * angle.sin(), y, radius * angle.cos()], -1)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    if shape == "sphere":
        return direction
    return direction * torch.rand(count, 1, generator=generator) ** (1 / 3)
