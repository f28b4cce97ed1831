"""Coloured points from anywhere -> the first splats: axes, size, number, and how round they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checks import check_bounds, require, setting
from .gaussians import Splats
from .pointcloud import from_points

NEIGHBOURS = 3  # that the first size of a Gaussian is measured by
STRAY = 10  # times as far off the middle as nearly all points are
MIN_EXTENT = 1e-30
FINE = 1e-3  # of the extent: the coarsest step of coordinates that still holds a shape
AXES = {  # rows: the world's x (right), y (down), z (away from who sees the front) in the axes of the source
    "y up": torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),  # glTF and most meshes: the front looks at +z
    "z up": torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),  # Blender, Shap-E, scanners: the front looks at -y
    "y down": torch.eye(3),  # splats, COLMAP, OpenCV: the front looks at -z
}


@dataclass(frozen=True)
class Start:
    """How coloured points become the first splats of a run."""

    count: int = setting(
        100_000, 4, 5_000_000, "Number of Gaussians at most. More hold finer detail and cost more.", step=1, rare=False
    )
    size: float = setting(
        1.0, 0, 1000, "Largest side of the object, which is moved to the origin, in units of the splat; 0 = leave it as it is.",
        rare=False,
    )  # fmt: skip
    opacity: float = setting(0.1, 0.001, 0.999, "Opacity of each Gaussian. Low lets the first steps reach the inside.")
    thickness: float = setting(
        1.0, 0.01, 1, "Extent along the normal of the surface as a share of that along it; 1 = round, 0.1 = a flat disc."
    )

    copies: int = setting(
        1, 1, 1000, "Gaussians for each point, scattered about it: for files of few points. The official run has 20 for each "
        "of Point-E's 4,096.", step=1,
    )  # fmt: skip
    scatter: float = setting(0.05, 0, 1000, "Largest distance of a copy from its point, in units of the splat.")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.copies == 1 or self.scatter > 0, "scatter", self.scatter, "above 0 where each point has copies")
        fits = (NEIGHBOURS + 1) * self.copies <= self.count
        require(fits, "copies", self.copies, f"at most {self.count // (NEIGHBOURS + 1)}, a quarter of count ({self.count})")

    def splats(self, points: Tensor, colors: Tensor, seed: int, normals: Tensor | None = None) -> Splats:
        """Gaussians on points (N, 3) in the world frame with sRGB colors (N, 3) in [0, 1].

        Strays are left out where the points get a size. Of more than `count` points as many are drawn by `seed`, in their
        order, fewer where each has copies. With `normals` (N, 3) of unit length they are flattened to `thickness`. Raises
        ValueError where there are too few points, or where their coordinates are too coarse for their extent.
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
        points, colors, normals = (x if x is None else x.repeat_interleave(self.copies, 0) for x in
                                   (points, colors[kept], normals if normals is None else normals[kept]))  # fmt: skip
        if self.copies > 1:
            away = torch.nn.functional.normalize(torch.randn(points.shape, generator=generator), dim=-1)
            points = points + self.scatter * torch.rand(len(points), 1, generator=generator) * away
        splats = from_points(points, colors, self.opacity)
        return flattened(splats, normals, self.thickness) if normals is not None and self.thickness < 1 else splats

    def placement(self, points: Tensor) -> tuple[Tensor, float]:
        """(centre (3,) in float64, factor) of the move that gives points (N, 3) but strays their size about the origin."""
        if self.size == 0:
            return torch.zeros(3, dtype=torch.float64), 1.0
        kept = points[~self.strays(points)].double()
        low, high = kept.amin(dim=0), kept.amax(dim=0)
        return (low + high) / 2, self.size / float((high - low).max())

    def strays(self, points: Tensor) -> Tensor:
        """(N,) bool: what lies `STRAY` times as far from the middle of points (N, 3) as 95% of them; none for a size of 0.

        One such point would shrink all others to a speck.
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
    """Raise ValueError unless points (N, 3) are enough to measure the distances between them."""
    require(len(points) > NEIGHBOURS, "the number of points", len(points), f"at least {NEIGHBOURS + 1}")
    require(bool(torch.isfinite(points).all()), "the points' extent", "not finite", "finite")
    extent = float((points.amax(dim=0) - points.amin(dim=0)).max())
    require(extent > 0, "the points' extent", 0, "more: all lie on one spot")
    require(MIN_EXTENT < extent < 1 / MIN_EXTENT, "the points' extent", f"{extent:g}", f"{MIN_EXTENT:g} to {1 / MIN_EXTENT:g}")


def require_resolved(points: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError where points (N, 3) lie so far from the origin that numbers of `dtype` do not hold their shape."""
    extent = float((points.amax(dim=0) - points.amin(dim=0)).max())
    step = float(points.abs().max()) * torch.finfo(dtype).eps
    require(
        step <= FINE * extent, "the distance of the points from the origin",
        f"{float(points.abs().max()):.6g}, where coordinates have steps of {step:.2g} for an extent of {extent:.3g}",
        "smaller: move them to the origin where they come from, or, in a file of doubles, give them a size",
    )  # fmt: skip


def flattened(splats: Splats, normals: Tensor, thickness: float) -> Splats:
    """Round `splats` as discs across `normals` (N, 3) of unit length: `thickness` times as thick as wide."""
    x, y, z = normals.unbind(-1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1)  # wxyz, half way between the z axis and the normal
    quats[z < -1 + 1e-6] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    scales = splats.scales * torch.tensor([1.0, 1.0, thickness])
    return Splats(splats.means, torch.nn.functional.normalize(quats, dim=-1), scales, splats.opacities, splats.sh)
