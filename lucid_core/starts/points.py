"""Coloured points -> initial splats: axes, size, number and thickness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..settings import check_bounds, require, setting
from ..splats import Splats
from .shapes import from_points

NEIGHBOURS = 3  # nearest neighbours that define the initial scale of a Gaussian
STRAY = 10  # outliers: this many times as far from the median as 95% of the points
MIN_EXTENT = 1e-30
FINE = 1e-3  # largest acceptable rounding step of coordinates, relative to the extent
AXES = {  # rotations source -> world; rows are the world's x (right), y (down), z (front to back)
    "y up": torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),  # glTF and most meshes: front faces +z
    "z up": torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),  # Blender, Shap-E, scanners: front faces -y
    "y down": torch.eye(3),  # splats, COLMAP, OpenCV: front faces -z
}


@dataclass(frozen=True)
class Start:
    """How coloured points become the initial splats of a run.

    Raises BadSetting for a value out of bounds or a contradiction.
    """

    count: int = setting(
        100_000,
        4,
        5_000_000,
        "Maximum number of Gaussians. More give finer detail and need more time and memory.",
        step=1,
        advanced=False,
    )
    size: float = setting(
        1.0,
        0,
        1000,
        "Longest side of the object in world units; the object is centred at the origin. 0 = keep size and "
        "position.",
        advanced=False,
    )
    opacity: float = setting(
        0.1, 0.001, 0.999, "Initial opacity of each Gaussian. A low value lets gradients reach the inside."
    )
    thickness: float = setting(
        1.0,
        0.01,
        1,
        "Scale along the surface normal relative to the scale along the surface; 1 = round, 0.1 = flat disc.",
    )

    copies: int = setting(
        1,
        1,
        1000,
        "Gaussians per point, scattered around it, for sparse point clouds; 1 = no copies. The official run "
        "uses 20 for each of the 4,096 points of Point-E.",
        step=1,
    )
    scatter: float = setting(0.05, 0, 1000, "Maximum distance of a copy from its point, in world units.")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(
            self.copies == 1 or self.scatter > 0,
            "scatter",
            self.scatter,
            "above 0 with copies above 1",
        )
        fits = (NEIGHBOURS + 1) * self.copies <= self.count
        require(
            fits,
            "copies",
            self.copies,
            f"at most {self.count // (NEIGHBOURS + 1)}, a quarter of count ({self.count})",
        )

    def splats(self, points: Tensor, colors: Tensor, seed: int, normals: Tensor | None = None) -> Splats:
        """Gaussians on points (N, 3) in the world frame with sRGB colors (N, 3) in [0, 1].

        Outliers are removed if `size` is not 0. At most `count // copies` points are kept, chosen at random
        by `seed`, in their original order. With unit `normals` (N, 3) the Gaussians are flattened to
        `thickness`. Raises BadSetting if there are too few points, or if rounding of the coordinates is too
        coarse for their extent.
        """
        require_points(points)
        centre, factor = self.placement(points)
        kept = (~self.strays(points)).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed)
        most = max(self.count // self.copies, 1)
        if len(kept) > most:
            kept = kept[torch.randperm(len(kept), generator=generator)[:most].sort().values]
        require_points(points[kept])
        require_resolved(points[kept], points.dtype if self.size else torch.float32)
        points = ((points[kept].double() - centre) * factor).float()
        points, colors = (x.repeat_interleave(self.copies, 0) for x in (points, colors[kept]))
        if self.copies > 1:
            away = torch.nn.functional.normalize(torch.randn(points.shape, generator=generator), dim=-1)
            points = points + self.scatter * torch.rand(len(points), 1, generator=generator) * away
        splats = from_points(points, colors, self.opacity)
        if normals is None or self.thickness == 1:
            return splats
        return flatten_to_discs(splats, normals[kept].repeat_interleave(self.copies, 0), self.thickness)

    def placement(self, points: Tensor) -> tuple[Tensor, float]:
        """(centre (3,) float64, factor) such that (points - centre) * factor is at the origin with `size`.

        points (N, 3); outliers are ignored. For size 0: (zeros, 1).
        """
        if self.size == 0:
            return torch.zeros(3, dtype=torch.float64), 1.0
        kept = points[~self.strays(points)].double()
        low, high = kept.amin(dim=0), kept.amax(dim=0)
        return (low + high) / 2, self.size / float((high - low).max())

    def strays(self, points: Tensor) -> Tensor:
        """Outliers of points (N, 3) -> (N,) bool: `STRAY` times as far from the median as 95% of the points.

        A single outlier would shrink all other points to a speck. None for a size of 0.
        """
        none = torch.zeros(len(points), dtype=torch.bool)
        if self.size == 0 or len(points) <= NEIGHBOURS + 1:
            return none
        middle = torch.from_numpy(np.median(points.double().numpy(), axis=0))
        distance = (points.double() - middle).norm(dim=-1)
        near = distance.sort().values[len(points) - 1 - max(len(points) // 20, 1)]
        found = distance > STRAY * near
        return found if near > 0 and len(points) - int(found.sum()) > NEIGHBOURS else none


def require_points(points: Tensor) -> None:
    """Raise BadSetting unless points (N, 3) are finite, of valid extent, and more than `NEIGHBOURS`."""
    require(len(points) > NEIGHBOURS, "the number of points", len(points), f"at least {NEIGHBOURS + 1}")
    require(bool(torch.isfinite(points).all()), "the points' extent", "not finite", "finite")
    extent = float((points.amax(dim=0) - points.amin(dim=0)).max())
    require(extent > 0, "the points' extent", 0, "above 0; all points coincide")
    require(
        MIN_EXTENT < extent < 1 / MIN_EXTENT,
        "the points' extent",
        f"{extent:g}",
        f"{MIN_EXTENT:g} to {1 / MIN_EXTENT:g}",
    )


def require_resolved(points: Tensor, dtype: torch.dtype) -> None:
    """Raise BadSetting if points (N, 3) are too far from the origin for the precision of `dtype`."""
    extent = float((points.amax(dim=0) - points.amin(dim=0)).max())
    step = float(points.abs().max()) * torch.finfo(dtype).eps
    require(
        step <= FINE * extent,
        "the distance of the points from the origin",
        f"{float(points.abs().max()):.6g}, where coordinates have steps of {step:.2g} for an extent of "
        f"{extent:.3g}",
        "smaller: centre the object before export, or use float64 coordinates and a size above 0",
    )


def flatten_to_discs(splats: Splats, normals: Tensor, thickness: float) -> Splats:
    """Flatten round `splats` to discs perpendicular to unit `normals` (N, 3), by the factor `thickness`."""
    x, y, z = normals.unbind(-1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1)  # wxyz, rotation of the z axis to the normal
    quats[z < -1 + 1e-6] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    scales = splats.scales * torch.tensor([1.0, 1.0, thickness])
    return Splats(
        splats.means, torch.nn.functional.normalize(quats, dim=-1), scales, splats.opacities, splats.sh
    )
