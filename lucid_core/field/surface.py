"""The surface of a field: its points with colours and normals, as flat Gaussians or as a mesh.

One point for each cell that the surface passes, the mean of the places where it cuts the cell's edges, and a
quad for each edge that it cuts (naive surface nets: Gibson 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import BadInput
from ..optional import load
from ..settings import BoundedSettings, setting
from ..splats import SH_C0, Splats
from ..starts.mesh import Mesh, to_linear
from ..starts.points import flatten_to_discs
from .grid import DENSITY, Field, enlarge, validate
from .render import normals_at, values_at

SPREAD, THIN = 0.5, 0.2  # standard deviation of a Gaussian in cells, and its thickness as a share of it
OPACITY = 0.95
LEAST = 0.01
INWARDS = (-1.0, 3.0, 13)  # first and last place in cells of the field, and number of samples of a colour


@dataclass(frozen=True)
class Surface(BoundedSettings):
    """How the surface of a field is found. Raises BadSetting for a value out of bounds."""

    cells: int = setting(
        96,
        16,
        512,
        "Grid cells along a side of the field's cube; each cell that the surface crosses gives one point. "
        "More give finer detail.",
        step=8,
        advanced=False,
    )
    solidity: float = setting(
        0.5,
        0.01,
        0.99,
        "Minimum opacity of one voxel's length at which the field counts as solid. Lower keeps thin parts, "
        "higher removes fog.",
        advanced=False,
    )


@dataclass(frozen=True)
class Skin:
    """N points of a surface in the world frame: points, unit normals (outwards) and sRGB colors, all (N, 3);
    quads (Q, 4) of point indices, seen from outside against the clock; the side of a cell in world units.
    """

    points: Tensor
    normals: Tensor
    colors: Tensor
    quads: Tensor
    cell: float


def find_surface(field: Field, config: Surface) -> Skin:
    """The surface of `field` (on the CPU).

    Raises BadInput where the field is nowhere as solid as `config.solidity`, with what helps.
    """
    validate(field)
    level = -math.log(1 - config.solidity) / (DENSITY * field.cell)
    level = math.log(math.expm1(level)) if level < 20 else level  # raw density
    values = enlarge(field.grid, config.cells + 1)[0] - level
    values = torch.nn.functional.pad(values, (1,) * 6, value=-1.0)  # closed at the border of the cube
    if not (values > 0).any():
        most = float(field.solidity().max())
        problem = (
            f"is nowhere solid: the opacity of its voxels is at most {most:.2g}, below solidity "
            f"{config.solidity:g}; lower solidity, or optimise it again from a denser start (fill), with "
            f"more steps or a lower sparsity_weight"
        )
        if most >= config.solidity:
            problem = f"is solid only between the vertices of {config.cells} cells a side; raise cells"
        raise BadInput("field", problem)
    sums, counts, cuts = cut_edges(close(values))
    passed = counts > 0
    places = sums[passed] / counts[passed][:, None]
    cell = field.extent / config.cells
    points = (places - 1) * cell - field.extent / 2
    normals = normals_at(field, points / (field.extent / 2))
    return Skin(
        points, normals, colors_at(field, points, normals), join_quads(cuts, number_cells(counts)), cell
    )


def number_cells(counts: Tensor) -> Tensor:
    """The number of the point of each cell with cuts, in order; -1 elsewhere. counts: of cuts (X, Y, Z)."""
    passed = counts > 0
    numbers = torch.full(counts.shape, -1, dtype=torch.long)
    numbers[passed] = torch.arange(int(passed.sum()))
    return numbers


def close(values: Tensor) -> Tensor:
    """The values with enclosed hollows filled, which no light forms, and without specks: solids of less than
    LEAST of the largest one's cells.
    """
    ndimage = load("scipy.ndimage", "scipy")
    solid = (values > 0).numpy()
    numbers, _ = ndimage.label(solid)
    sizes = torch.from_numpy(np.bincount(numbers.ravel()))
    sizes[0] = 0
    kept = torch.from_numpy(solid) & (sizes >= LEAST * sizes.max())[torch.from_numpy(numbers).long()]
    filled = torch.from_numpy(ndimage.binary_fill_holes(kept.numpy()))
    away = torch.where(kept | (values <= 0), values, -1.0)
    return torch.where(filled & ~kept, 1.0, away)


def cut_edges(values: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The cuts of the surface, where values (D, H, W) change their sign, with the edges of the grid.

    Returns for each cell [z, y, x] the sum (D-1, H-1, W-1, 3) of the places x, y, z in cells and the number
    of cuts of its edges; and for the edges along x, y and z the sign of the cut: 1 = solid at the lower end,
    -1 = at the upper one, 0 = none.
    """
    shape = [side - 1 for side in values.shape]
    sums, counts, cuts = values.new_zeros(*shape, 3), values.new_zeros(shape), []
    for axis in range(3):  # x, y, z
        dim = 2 - axis
        low, high = (values.narrow(dim, i, shape[dim]) for i in (0, 1))
        cut = (low > 0).int() - (high > 0).int()
        share = torch.where(cut != 0, low / (low - high), 0)
        corners = torch.meshgrid(*(torch.arange(side) for side in cut.shape), indexing="ij")
        place = torch.stack(corners[::-1], -1).to(values)
        place[..., axis] += share
        place = torch.where(cut[..., None] != 0, place, 0)
        first, second = (other for other in range(3) if other != dim)
        for a in (0, 1):
            for b in (0, 1):
                sums += near(place, shape, (first, a), (second, b))
                counts += near(cut != 0, shape, (first, a), (second, b))
        cuts.append(cut)
    return sums, counts, cuts


def near(edges: Tensor, shape: list[int], *shifts: tuple[int, int]) -> Tensor:
    """Values of edges for each of the cells (`shape`) beside them, shifted along dimensions."""
    for dim, shift in shifts:
        edges = edges.narrow(dim, shift, shape[dim])
    return edges


def join_quads(cuts: list[Tensor], numbers: Tensor) -> Tensor:
    """Quads (Q, 4) of the points of the four cells around each cut edge; `numbers`: point of each cell."""
    quads = []
    for axis, cut in enumerate(cuts):
        at = cut.nonzero()  # z, y, x of the lower end of the edge
        first, second = (2 - (axis + 1) % 3, 2 - (axis + 2) % 3)  # dimensions that follow `axis` in turn
        corners = []
        for a, b in ((1, 1), (0, 1), (0, 0), (1, 0)):  # against the clock, seen from the upper end
            cell = at.clone()
            cell[:, first] -= a
            cell[:, second] -= b
            corners.append(numbers[cell.unbind(1)])
        quad = torch.stack(corners, 1)
        quads.append(torch.where(cut[at.unbind(1)][:, None] > 0, quad, quad.flip(1)))
    return torch.cat(quads)


def colors_at(field: Field, points: Tensor, normals: Tensor) -> Tensor:
    """sRGB colours (N, 3) that rays against the normals see at points (N, 3)."""
    first, last, count = INWARDS
    step = (last - first) / (count - 1) * field.cell
    inwards = torch.linspace(first, last, count) * field.cell
    at = points[:, None] - inwards[:, None] * normals[:, None]
    values = values_at(field.grid, at.reshape(-1, 3) / (field.extent / 2)).view(len(points), count, 4)
    thickness = DENSITY * softplus(values[..., 0]) * step
    total = thickness.cumsum(1)
    weights = (thickness - total).exp() - (-total).exp()
    seen = (weights[..., None] * values[..., 1:].sigmoid()).sum(1)
    return (seen / weights.sum(1, keepdim=True).clamp_min(1e-6)).clamp(0, 1)


def to_splats(skin: Skin) -> Splats:
    """Flat Gaussians on the surface, of SH degree 0."""
    n = len(skin.points)
    round_ones = Splats(
        skin.points,
        torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        torch.full((n, 3), SPREAD * skin.cell),
        torch.full((n,), OPACITY),
        ((skin.colors - 0.5) / SH_C0)[:, None],
    )
    return flatten_to_discs(round_ones, skin.normals, THIN)


def to_mesh(skin: Skin) -> Mesh:
    """The surface as triangles in glTF's frame (x right, y up, z to the front), with vertex colours."""
    faces = torch.cat([skin.quads[:, [0, 1, 2]], skin.quads[:, [0, 2, 3]]])
    return Mesh(skin.points * torch.tensor([1.0, -1.0, -1.0]), faces, to_linear(skin.colors))
