"""Volume rendering of a radiance field (Max 1995; Mildenhall et al. 2020, equation 3): with torch, or on a
CPU with the kernels of `march.py`.

Cells whose opacity along one voxel's length is nowhere above EMPTY are skipped: they add no colour and get no
gradient, so that matter grows next to matter, or through the coarse levels of a run. A first pass without
gradient finds the samples that light reaches, so that the second one, with gradient, takes few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, normalize, softplus

from ..cameras import Cameras
from ..rasterize import Render
from .grid import DENSITY, Field

EMPTY = 1e-3  # opacity of one voxel's length up to which a cell is empty
DARK = 3e-3  # transmittance from which on samples are left out
NEAR = 0.01  # world units, as in the rasterizers
RAYS = 1 << 16  # at a time


@dataclass(frozen=True)
class Samples:
    """P samples on R rays, ray by ray: their `ray` (P,) and number in it `rank` (P,), `at` (P, 3) in units of
    half the cube, and camera z `depth` (P,).
    """

    ray: Tensor
    rank: Tensor
    at: Tensor
    depth: Tensor

    def __len__(self) -> int:
        return len(self.ray)


@dataclass(frozen=True)
class Rays:
    """R rays: origin + depth * direction, where the depth is that of the camera's z axis; all (R, 3)."""

    origins: Tensor
    directions: Tensor

    @staticmethod
    def of(cameras: Cameras, width: int, height: int) -> Rays:
        """One ray through the centre of each pixel, view by view, row by row."""
        device = cameras.Ks.device
        y, x = torch.meshgrid(
            torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, -1, 3).to(cameras.Ks)
        turned = torch.linalg.inv(cameras.Ks).mT @ cameras.viewmats[:, :3, :3]
        directions = pixels @ turned
        return Rays(
            cameras.positions()[:, None].expand_as(directions).reshape(-1, 3), directions.reshape(-1, 3)
        )

    def cut(self, rows: slice) -> Rays:
        return Rays(self.origins[rows], self.directions[rows])


def render(
    field: Field,
    cameras: Cameras,
    width: int,
    height: int,
    background: Tensor | None = None,
    generator: Generator | None = None,
) -> Render:
    """Render `field` from every camera; differentiable in its grid and in `background`.

    width, height: in pixels. background: (3,) or (B, 3) sRGB, None = black. generator: draws the place of the
    samples within their intervals on the CPU; None = the middle.
    """
    views, count = len(cameras), width * height
    rays = Rays.of(cameras, width, height)
    offsets = torch.full((views * count,), 0.5) if generator is None else draw(views * count, generator)
    offsets = offsets.to(field.grid)
    filled, box = occupied(field)
    parts = []
    for start in range(0, views * count, RAYS):
        rows = slice(start, start + RAYS)
        some = rays.cut(rows)
        if has_kernels(field):
            parts.append(march(field, some, offsets[rows], filled, box))
        else:
            samples = drop_dark(field, find_samples(field, some, offsets[rows], filled, box))
            parts.append(composite(field, samples, len(some.origins)))
    rgb, alpha, depth = (torch.cat(x).view(views, height, width, -1) for x in zip(*parts))
    if background is not None:
        rgb = rgb + (1 - alpha) * background.expand(views, 3)[:, None, None]
    return Render(rgb, alpha, depth)


def has_kernels(field: Field) -> bool:
    """Whether numba's kernels render the field: on a CPU, in float32."""
    return field.grid.device.type == "cpu" and field.grid.dtype == torch.float32 and bool(find_spec("numba"))


def march(
    field: Field, rays: Rays, offsets: Tensor, filled: Tensor, box: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `composite` of the samples, by the kernels of `march.py`."""
    from .march import March

    near, far, step = intersect(field, rays, box)
    opaque = torch.full_like(near, -math.log(DARK))
    spans = torch.stack([near + offsets * step, far, step, opaque], 1)
    start, along = in_cells(field, rays)
    found: tuple[Tensor, Tensor, Tensor] = March.apply(  # type: ignore[no-untyped-call]  # torch gives no type
        field.grid, filled, start, along, spans, field.cell
    )
    return found


def intersect(field: Field, rays: Rays, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depths (R,) at which rays enter and leave the `box` of cells, and between two samples; a ray beside the
    box leaves before it enters.
    """
    low, high = box.to(field.grid) * field.cell - field.extent / 2
    inverse = 1 / torch.where(rays.directions.abs() < 1e-12, 1e-12, rays.directions)
    first, second = (low - rays.origins) * inverse, (high - rays.origins) * inverse
    near = torch.minimum(first, second).amax(-1).clamp_min(NEAR)
    far = torch.maximum(first, second).amin(-1)
    return near, far, field.cell / rays.directions.norm(dim=-1)


def in_cells(field: Field, rays: Rays) -> tuple[Tensor, Tensor]:
    """Origins and directions (R, 3) in units of cells, from the first vertex."""
    return (rays.origins + field.extent / 2) / field.cell, rays.directions / field.cell


def draw(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator)


@torch.no_grad()
def occupied(field: Field) -> tuple[Tensor, Tensor]:
    """(which cells (R-1, R-1, R-1) hold density, the first and last of them plus one (2, 3) as x, y, z)."""
    least = math.log(math.expm1(EMPTY / (DENSITY * field.cell)))  # its softplus gives EMPTY
    most = field.grid[0]
    for axis in range(3):
        side = most.shape[axis]
        most = torch.maximum(most.narrow(axis, 0, side - 1), most.narrow(axis, 1, side - 1))
    filled = most > least
    ends = []
    for dims in ((0, 1), (0, 2), (1, 2)):  # x, y, z
        along = filled.any(dims[1]).any(dims[0]).nonzero()
        ends.append(torch.stack([along[0, 0], along[-1, 0] + 1]) if len(along) else along.new_zeros(2))
    return filled, torch.stack(ends, 1)


@torch.no_grad()
def find_samples(field: Field, rays: Rays, offsets: Tensor, filled: Tensor, box: Tensor) -> Samples:
    """All samples in filled cells, one voxel's side apart; offsets (R,) in [0, 1)."""
    cells = field.resolution - 1
    near, far, step = intersect(field, rays, box)
    hit = (far > near).nonzero()[:, 0]
    near, far, step = near[hit], far[hit], step[hit]
    most = int(((far - near) / step).amax().ceil()) if len(hit) else 0
    depth = near[:, None] + (torch.arange(most, device=near.device) + offsets[hit, None]) * step[:, None]
    start, along = (x[hit] for x in in_cells(field, rays))
    index = torch.zeros_like(depth, dtype=torch.int32)
    for axis in (2, 1, 0):
        place = torch.addcmul(start[:, axis, None], depth, along[:, axis, None])
        index = index * cells + place.int().clamp_(0, cells - 1)
    row, rank = (filled.view(-1)[index] & (depth < far[:, None])).nonzero(as_tuple=True)
    depth = depth[row, rank]
    at = torch.addcmul(start[row], depth[:, None], along[row]) * (2 / cells) - 1
    return Samples(hit[row], rank_in(row, len(hit)), at, depth)


def rank_in(row: Tensor, rows: int) -> Tensor:
    """The number of each element within its row; row (P,) ascending, in [0, rows)."""
    counts = torch.bincount(row, minlength=rows)
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]


def values_at(grid: Tensor, at: Tensor) -> Tensor:
    """Trilinear values (P, C) of a grid (C, R, R, R) at points (P, 3) in units of half the cube."""
    found = grid_sample(grid[None], at[None, :, None, None], align_corners=True, padding_mode="border")
    return found[0, :, :, 0, 0].mT


@torch.no_grad()
def drop_dark(field: Field, samples: Samples) -> Samples:
    """The samples whose light reaches the camera."""
    if not len(samples):
        return samples
    density = values_at(field.grid[:1], samples.at)[:, 0]
    thickness = pad(thickness_of(density, field.cell), samples)
    before = (thickness.cumsum(1) - thickness)[samples.ray, samples.rank]
    kept = ((-before).exp() > DARK).nonzero()[:, 0]
    ray = samples.ray[kept]
    rows = int(samples.ray[-1]) + 1
    return Samples(ray, rank_in(ray, rows), samples.at[kept], samples.depth[kept])


def pad(values: Tensor, samples: Samples, rays: int | None = None) -> Tensor:
    """Values (P, ...) of the samples -> (R, K, ...), 0 where a ray has fewer than K."""
    shape = (rays or int(samples.ray[-1]) + 1, int(samples.rank.max()) + 1, *values.shape[1:])
    return values.new_zeros(shape).index_put((samples.ray, samples.rank), values)


def thickness_of(density: Tensor, length: float) -> Tensor:
    """Optical thickness of intervals of `length` world units, from the field's raw density."""
    return DENSITY * softplus(density) * length


def weights_of(thickness: Tensor) -> Tensor:
    """Share of each sample in its ray's colour; thickness (R, K) of the samples from front to back."""
    return (thickness - thickness.cumsum(1)).exp() * -(-thickness).expm1()


def composite(field: Field, samples: Samples, rays: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rgb (R, 3) on black, alpha (R, 1), depth (R, 1) weighted by alpha) of the samples."""
    if not len(samples):
        nothing = 0 * field.grid[:, 0, 0, 0].sum() + torch.zeros(rays, 1).to(field.grid)
        return nothing.expand(-1, 3), nothing, nothing
    values = values_at(field.grid, samples.at)
    thickness = pad(thickness_of(values[:, 0], field.cell), samples, rays)
    weights = weights_of(thickness)
    colors = torch.cat([values[:, 1:].sigmoid(), samples.depth[:, None]], 1)
    seen = (weights[..., None] * pad(colors, samples, rays)).sum(1)
    return seen[:, :3], -(-thickness.sum(1, keepdim=True)).expm1(), seen[:, 3:]


def normals_at(field: Field, at: Tensor) -> Tensor:
    """Unit normals (P, 3), away from density, at points (P, 3) in units of half the cube."""
    density = field.grid[:1]
    around = torch.nn.functional.pad(density[None], (1,) * 6, mode="replicate")[0]
    inner = slice(1, -1)
    slopes = [
        around[:, inner, inner, 2:] - around[:, inner, inner, :-2],
        around[:, inner, 2:, inner] - around[:, inner, :-2, inner],
        around[:, 2:, inner, inner] - around[:, :-2, inner, inner],
    ]
    return normalize(-values_at(torch.cat(slopes), at), dim=-1, eps=1e-6)
