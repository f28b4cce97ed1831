"""A surface from values on a grid, by naive surface nets (Gibson 1998).

One point for each cell that the surface passes, the mean of the places where it cuts the cell's edges, and a
quad for each edge that it cuts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def number_cells(counts: Tensor) -> Tensor:
    """The number of the point of each cell with cuts, in order; -1 elsewhere. counts (D, H, W): cut edges."""
    passed = counts > 0
    numbers = torch.full(counts.shape, -1, dtype=torch.long)
    numbers[passed] = torch.arange(int(passed.sum()))
    return numbers


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
                sums += at_cells(place, shape, (first, a), (second, b))
                counts += at_cells(cut != 0, shape, (first, a), (second, b))
        cuts.append(cut)
    return sums, counts, cuts


def at_cells(edges: Tensor, shape: list[int], *shifts: tuple[int, int]) -> Tensor:
    """Values of edges for each of the cells (`shape`) beside them, shifted along dimensions."""
    for dim, shift in shifts:
        edges = edges.narrow(dim, shift, shape[dim])
    return edges


def join_faces(cuts: list[Tensor], numbers: Tensor) -> Tensor:
    """Triangles (F, 3), two of the points of the four cells around each cut edge, counter-clockwise from
    outside; `numbers`: point of each cell.
    """
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
    joined = torch.cat(quads)
    return torch.cat([joined[:, [0, 1, 2]], joined[:, [0, 2, 3]]])
