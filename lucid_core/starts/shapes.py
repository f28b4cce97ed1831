"""Random points in simple solids, and initial splats from points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from ..optional import load
from ..settings import check_bounds, require, setting
from ..splats import Splats, round_splats

SHAPES = ("ball", "sphere", "box", "cylinder")


@dataclass(frozen=True)
class PointCloud:
    """Random points in a simple solid about the origin: the default start.

    size: extent along y (and diameter of round shapes) in world units. color: mean sRGB in [0, 1]; each point
    gets normal noise of standard deviation `color_noise`. Raises BadSetting for a value out of bounds.
    """

    shape: str = SHAPES[0]
    count: int = setting(
        100_000,
        4,
        5_000_000,
        "Number of Gaussians. More give finer detail and need more time and memory.",
        step=1,
        advanced=False,
    )
    size: float = setting(1.0, 0.001, 1000, "Height and width in world units.", advanced=False)
    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    color_noise: float = setting(
        0.1, 0, 1, "Standard deviation of random colour noise per point; 0 = uniform colour."
    )
    opacity: float = setting(
        0.1, 0.001, 0.999, "Initial opacity of each Gaussian. A low value lets gradients reach the inside."
    )

    def __post_init__(self) -> None:
        require(self.shape in SHAPES, "shape", repr(self.shape), f"one of {', '.join(SHAPES)}")
        check_bounds(self)
        require(all(0 <= c <= 1 for c in self.color), "color", self.color, "three numbers from 0 to 1")

    def splats(self, seed: int) -> Splats:
        """`count` round Gaussians in the world frame, SH degree 0."""
        generator = torch.Generator().manual_seed(seed)
        points = _points(self.shape, self.count, generator) * (self.size / 2)
        noise = self.color_noise * torch.randn(self.count, 3, generator=generator)
        return from_points(points, (torch.tensor(self.color) + noise).clamp(0, 1), self.opacity)


def from_points(points: Tensor, colors: Tensor, opacity: float) -> Splats:
    """Round Gaussians on points (N, 3) with sRGB colors (N, 3) in [0, 1].

    The standard deviation is the root mean square distance to the three nearest neighbours (3DGS, section
    5.1).
    """
    tree = load("scipy.spatial", "scipy").cKDTree(points.numpy())
    distances, _ = tree.query(points.numpy(), k=4, workers=-1)  # column 0 is the point itself
    spacing = torch.from_numpy(np.sqrt((distances[:, 1:] ** 2).mean(axis=1))).to(points).clamp_min(1e-7)
    return round_splats(points, spacing, opacity, colors)


def _points(shape: str, count: int, generator: Generator) -> Tensor:
    """`count` points (count, 3) in [-1, 1]^3, uniform in the volume (on the surface for "sphere")."""
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
