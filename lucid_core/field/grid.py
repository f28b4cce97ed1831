"""The radiance field: density and colour at the vertices of a cube of voxels, and its starts.

Values between the vertices are trilinear and are activated after the interpolation (Sun et al., DVGO, CVPR
2022, arXiv 2111.11215). A grid needs no compiler and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BadInput
from ..settings import check_bounds, choice, require, setting

DENSITY = 25.0  # per world unit, of a softplus of 1
SHAPES = ("ball", "box", "cylinder")
OUTSIDE = -15.0  # raw density; 7.6e-6 per world unit


@dataclass(frozen=True)
class Field:
    """A cube about the origin of the world frame (x right, y down, z forward).

    grid (4, R, R, R): raw density and three raw colours at the vertices [z, y, x]; density per world unit is
    DENSITY * softplus(raw), sRGB colour sigmoid(raw). extent: side of the cube in world units.
    """

    grid: Tensor
    extent: float

    @property
    def resolution(self) -> int:
        return self.grid.shape[-1]

    @property
    def cell(self) -> float:
        """Side of a voxel in world units."""
        return self.extent / (self.resolution - 1)

    def map(self, f: Callable[[Tensor], Tensor]) -> Field:
        """Apply `f` to the grid."""
        return replace(self, grid=f(self.grid))

    def scale_by(self, factor: float) -> Field:
        """Scale the cube by `factor` about the origin; its density stays, per world unit."""
        return replace(self, extent=self.extent * factor)

    def to(self, device: torch.device | str) -> Field:
        return replace(self, grid=self.grid.to(device))

    def detach(self) -> Field:
        """A copy without autograd history."""
        return replace(self, grid=self.grid.detach().clone())

    def vertices(self) -> Tensor:
        """World positions (R, R, R, 3) of the vertices."""
        axis = torch.linspace(-0.5, 0.5, self.resolution, device=self.grid.device) * self.extent
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        return torch.stack([x, y, z], -1)


def validate(field: Field) -> None:
    """Raise BadInput unless the field is a finite cube of at least 2 vertices along a side."""
    shape = tuple(field.grid.shape)
    side = shape[-1] if shape else 0
    if shape != (4, side, side, side) or side < 2:
        raise BadInput("field", f"has a grid of shape {shape}; give (4, R, R, R) with R of at least 2")
    bad = int((~field.grid.isfinite()).sum())
    if bad:
        raise BadInput("field", f"has {bad} values that are not finite; optimise it again")
    if not 0 < field.extent < float("inf"):
        raise BadInput("field", f"has a cube with a side of {field.extent:g}; give a length above 0")


@dataclass(frozen=True)
class FieldStart:
    """A soft solid about the origin in one colour, from which a field starts.

    Inside of the shape the raw density falls linearly from `fill` at the centre to 0 at the surface. Outside
    it falls by at least STEEP a radius, to OUTSIDE. The bias is that of Magic3D (Lin et al. 2023, arXiv
    2211.10440). color: sRGB. Raises BadSetting for a value out of bounds or a shape larger than the cube.
    """

    shape: str = choice(
        SHAPES, "Solid from which the field starts; the run can change it freely.", advanced=False
    )
    size: float = setting(1.2, 0.05, 100, "Height and width of the shape in world units.", advanced=False)
    extent: float = setting(
        2.4,
        0.1,
        100,
        "Side of the cube that the field can fill, in world units. Larger leaves room and coarser detail.",
        advanced=False,
    )
    resolution: int = setting(
        80,
        8,
        512,
        "Grid points along a side, one more than voxels. More give finer detail; memory and time grow with "
        "the third power.",
        step=8,
        advanced=False,
    )
    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fill: float = setting(
        1.0,
        0.01,
        100,
        "Density in the middle, in the field's raw units. Low lets gradients reach the inside.",
        step=0.1,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.size <= self.extent, "size", self.size, f"at most extent ({self.extent:g})")
        valid = len(self.color) == 3 and all(0 <= c <= 1 for c in self.color)
        require(valid, "color", self.color, "three numbers from 0 to 1")

    def field(self) -> Field:
        """The field of these settings, on the CPU."""
        side = self.resolution
        field = Field(torch.zeros(4, side, side, side), self.extent)
        at = field.vertices() / (self.size / 2)
        distance = {
            "ball": at.norm(dim=-1),
            "box": at.abs().amax(-1),
            "cylinder": torch.maximum(at[..., 0::2].norm(dim=-1), at[..., 1].abs()),
        }[self.shape]
        slope = torch.where(distance > 1, max(self.fill, STEEP), self.fill)
        density = (slope * (1 - distance)).clamp_min(OUTSIDE)
        colors = torch.tensor(self.color).clamp(0.01, 0.99).logit()[:, None, None, None]
        return Field(torch.cat([density[None], colors.expand(3, side, side, side)]), self.extent)


STEEP = 30.0  # least fall of the raw density outside of the shape, by one radius


def enlarge(grid: Tensor, resolution: int) -> Tensor:
    """A grid (C, r, r, r) -> (C, R, R, R), trilinear, with the corners in place.

    By products with band matrices, a fifth of the time of torch's own `interpolate` on a CPU.
    """
    channels, side = grid.shape[:2]
    if side == resolution:
        return grid
    at = torch.linspace(0, side - 1, resolution, device=grid.device, dtype=grid.dtype)
    steps = torch.arange(side, device=grid.device, dtype=grid.dtype)
    weights = (1 - (at[:, None] - steps).abs()).clamp_min(0)  # (R, r)
    grid = grid @ weights.T
    grid = (weights @ grid.view(channels * side, side, resolution)).view(channels, side, -1)
    return (weights @ grid).view(channels, resolution, resolution, resolution)


def field_of(params: Mapping[str, Tensor], extent: float) -> Field:
    """The field of parameters "density0", "color0" (the finest) and so on; differentiable."""
    side = params["density0"].shape[-1]
    parts = []
    for kind in ("density", "color"):
        grids = [enlarge(grid, side) for name, grid in params.items() if name.startswith(kind)]
        parts.append(sum(grids[1:], grids[0]))
    return Field(torch.cat(parts), extent)


def bytes_needed(resolution: int) -> int:
    """Memory of an optimisation: parameters of all levels, gradients, Adam's moments, their sum and its
    gradient, enlarged levels and copies for the kernels. 145 bytes a vertex were measured on a CPU.
    """
    return round(4 * 4 * resolution**3 * (4 * 8 / 7 + 2 + 2.5))


def require_memory(resolution: int, free_bytes: int, name: str = "resolution") -> None:
    """Raise BadSetting, which names the largest resolution that fits, unless the field fits into memory.

    name: what the error calls the resolution.
    """
    fits = int(resolution * (free_bytes / bytes_needed(resolution)) ** (1 / 3))
    allowed = (
        f"at most {fits // 8 * 8}: an optimisation of {resolution} needs "
        f"{bytes_needed(resolution) / 1e9:.1f} GB of memory and {free_bytes / 1e9:.1f} GB are free"
    )
    require(free_bytes >= bytes_needed(resolution), name, resolution, allowed)
