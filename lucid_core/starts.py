"""Coloured points from anywhere -> the first splats: axes, size, number, and how round they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_bounds, require, setting
from .gaussians import Splats
from .pointcloud import from_points

NEIGHBOURS = 3  # that the first size of a Gaussian is measured by
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

    def __post_init__(self) -> None:
        check_bounds(self)

    def splats(self, points: Tensor, colors: Tensor, seed: int, normals: Tensor | None = None) -> Splats:
        """Gaussians on points (N, 3) in the world frame with sRGB colors (N, 3) in [0, 1].

        Of more than `count` points as many are drawn by `seed`, in their order. With `normals` (N, 3) of unit length they
        are flattened to `thickness`. Raises ValueError where there are too few points.
        """
        require_points(points)
        centre, factor = self.placement(points)
        if len(points) > self.count:
            chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[: self.count].sort().values
            points, colors = points[chosen], colors[chosen]
            normals = normals[chosen] if normals is not None else None
        splats = from_points((points - centre) * factor, colors, self.opacity)
        return flattened(splats, normals, self.thickness) if normals is not None and self.thickness < 1 else splats

    def placement(self, points: Tensor) -> tuple[Tensor, float]:
        """(centre (3,), factor) of the move that gives points (N, 3) their size about the origin."""
        if self.size == 0:
            return torch.zeros(3), 1.0
        low, high = points.amin(dim=0), points.amax(dim=0)
        return (low + high) / 2, self.size / float((high - low).max())


def require_points(points: Tensor) -> None:
    """Raise ValueError unless points (N, 3) are enough to measure the distances between them."""
    require(len(points) > NEIGHBOURS, "the number of points", len(points), f"at least {NEIGHBOURS + 1}")
    require(bool(torch.isfinite(points).all()), "the points' extent", "not finite", "finite")
    require(float((points.amax(dim=0) - points.amin(dim=0)).max()) > 0, "the points' extent", 0, "more: all lie on one spot")


def flattened(splats: Splats, normals: Tensor, thickness: float) -> Splats:
    """Round `splats` as discs across `normals` (N, 3) of unit length: `thickness` times as thick as wide."""
    x, y, z = normals.unbind(-1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1)  # wxyz, half way between the z axis and the normal
    quats[z < -1 + 1e-6] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    scales = splats.scales * torch.tensor([1.0, 1.0, thickness])
    return Splats(splats.means, torch.nn.functional.normalize(quats, dim=-1), scales, splats.opacities, splats.sh)
