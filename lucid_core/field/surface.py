"""The surface of a field: its points with colours and normals, as flat Gaussians or as a mesh.

It is found from depth images, not from the density, which is arbitrary behind the visible shell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..bake.fusion import Fusion
from ..bake.views import around
from ..errors import BadInput
from ..optional import load
from ..rasterize import to_device
from ..settings import BoundedSettings, setting
from ..splats import Splats, round_splats
from ..starts.mesh import Mesh, to_linear
from ..starts.points import flatten_to_discs
from ..starts.surface_nets import cut_edges, join_faces, number_cells
from .grid import Field, validate
from .render import normals_at, render, thickness_of, values_at, weights_of

SPREAD, THIN = 0.5, 0.2  # standard deviation of a Gaussian in cells, and its thickness as a share of it
OPACITY = 0.95
LEAST = 0.01  # of the cells of the largest solid; a smaller one is a speck
VIEWS = 48  # whose depths are fused
LEAST_THICKNESS = 1e-20  # of a sample, so that points in empty space have a colour too
INWARDS = (-1.0, 3.0, 13)  # first and last place in cells of the field, and number of samples of a colour


@dataclass(frozen=True)
class Surface(BoundedSettings):
    """How the surface of a field is found. Raises BadSetting for a value out of bounds."""

    cells: int = setting(
        96,
        16,
        256,
        "Grid cells along a side of the field's cube; each cell that the surface crosses gives one point. "
        "More give finer detail.",
        step=8,
        advanced=False,
    )
    min_opacity: float = setting(
        0.5,
        0.01,
        0.99,
        "Minimum opacity of a pixel at which its ray meets the surface. Lower keeps thin and faint parts, "
        "higher removes fog.",
        advanced=False,
    )
    smoothing: float = setting(
        1.0,
        0,
        8,
        "Standard deviation of the filter that smooths the surface, in voxels of the field. Higher loses "
        "thin parts; 0 = off.",
        step=0.5,
        advanced=False,
    )


@dataclass(frozen=True)
class Skin:
    """N points of a surface in the world frame: points, unit normals (outwards) and sRGB colors, all (N, 3);
    faces (F, 3) of point indices, counter-clockwise from outside; the side of a cell in world units.
    """

    points: Tensor
    normals: Tensor
    colors: Tensor
    faces: Tensor
    cell: float


def find_surface(field: Field, config: Surface, on_view: Callable[[int], None] | None = None) -> Skin:
    """The surface of `field` (on any device), on the CPU; `on_view` gets the number of views fused so far.

    Raises BadInput with what helps where nothing is as opaque as `config.min_opacity`, or all is too thin.
    """
    validate(field)
    cells, cell = config.cells, field.extent / config.cells
    values = _distances(field, config, on_view)
    values = torch.nn.functional.pad(values, (1,) * 6, value=-1.0)  # closed at the border of the cube
    values = _smooth(_without_specks(values), config.smoothing * cells / (field.resolution - 1))
    if not (values > 0).any():
        raise BadInput("field", "has only parts that are too thin; raise cells or lower smoothing")
    sums, counts, cuts = cut_edges(values)
    passed = counts > 0
    places = sums[passed] / counts[passed][:, None]
    points = (places - 1) * cell - field.extent / 2
    volume = Field(values[None], field.extent + 2 * cell)
    normals = normals_at(volume, points / (volume.extent / 2))
    colors = colors_at(field.map(torch.Tensor.cpu), points, normals)
    return Skin(points, normals, colors, join_faces(cuts, number_cells(counts)), cell)


def radius_of(field: Field) -> float:
    """Radius of the ball that views of the field show; it reaches the cube's edges."""
    return field.extent / math.sqrt(2)


def _distances(field: Field, config: Surface, on_view: Callable[[int], None] | None) -> Tensor:
    """Signed distances of the vertices [z, y, x] of the cells, in cells, positive inside, on the CPU."""
    side, px = config.cells + 1, 2 * config.cells
    at = torch.linspace(-field.extent / 2, field.extent / 2, side)
    vertices = torch.stack(torch.meshgrid(at, at, at, indexing="ij")[::-1], -1).view(-1, 3).to(field.grid)
    fusion, most = Fusion(vertices, field.extent / config.cells, config.min_opacity), 0.0
    for view, camera in enumerate(around(VIEWS, px, radius_of(field))):
        camera = to_device(camera, field.grid.device)
        with torch.no_grad():
            shown = render(field, camera, px, px)
        fusion.add(camera, torch.cat([shown.alpha, shown.depth], -1)[0])
        most = max(most, float(shown.alpha.max()))
        if on_view:
            on_view(view + 1)
    if most < config.min_opacity:
        problem = (
            f"is nowhere solid: its opacity is at most {most:.2g}, below min_opacity {config.min_opacity:g}; "
            f"lower min_opacity, or optimise it again from a denser start (fill), with more steps or a lower "
            f"sparsity_weight"
        )
        raise BadInput("field", problem)
    return fusion.distances().view(side, side, side).cpu()


def _without_specks(values: Tensor) -> Tensor:
    """The values without solids of less than LEAST of the largest one's cells."""
    ndimage = load("scipy.ndimage", "scipy")
    numbers, _ = ndimage.label((values > 0).numpy())
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    speck = torch.from_numpy((sizes < LEAST * sizes.max())[numbers])
    return torch.where(speck & (values > 0), -1.0, values)


def _smooth(values: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of the values, which are -1 beyond the grid; sigma in cells, 0 = none."""
    ndimage = load("scipy.ndimage", "scipy")
    if not sigma:
        return values
    return torch.from_numpy(ndimage.gaussian_filter(values.numpy(), sigma, mode="constant", cval=-1.0))


def colors_at(field: Field, points: Tensor, normals: Tensor) -> Tensor:
    """sRGB colours (N, 3) that rays against the normals see at points (N, 3)."""
    first, last, count = INWARDS
    step = (last - first) / (count - 1) * field.cell
    inwards = torch.linspace(first, last, count) * field.cell
    at = points[:, None] - inwards[:, None] * normals[:, None]
    values = values_at(field.grid, at.reshape(-1, 3) / (field.extent / 2)).view(len(points), count, 4)
    thickness = thickness_of(values[..., 0], step).clamp_min(LEAST_THICKNESS)
    weights = weights_of(thickness)
    seen = (weights[..., None] * values[..., 1:].sigmoid()).sum(1)
    return (seen / weights.sum(1, keepdim=True)).clamp(0, 1)


def to_splats(skin: Skin) -> Splats:
    """Flat Gaussians on the surface, of SH degree 0."""
    balls = round_splats(skin.points, SPREAD * skin.cell, OPACITY, skin.colors)
    return flatten_to_discs(balls, skin.normals, THIN)


def to_mesh(skin: Skin) -> Mesh:
    """The surface as triangles in glTF's frame (x right, y up, z to the front), with vertex colours."""
    return Mesh(skin.points * torch.tensor([1.0, -1.0, -1.0]), skin.faces, to_linear(skin.colors))
