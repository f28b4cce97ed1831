"""Splats made solid, so that the host's Extract Mesh from Splat finds one closed surface.

A splat is a shell of thin, partly transparent Gaussians around anything at all. On a density grid the shell
has holes, and its inside becomes a second surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..cameras import Cameras
from ..errors import BadInput
from ..rasterize import Renderer
from ..settings import BoundedSettings, setting
from ..splats import Splats
from .views import Move, around, box_of, picture_of

PX, VIEWS = 256, 48
THICK = 0.7  # least scale of a Gaussian, and scale of those that fill the inside, in cells
OPAQUE = 0.5  # opacity of a pixel from which on its ray meets the object
DOUBT = 0.1  # fraction of the views that must look through a point before it is outside


@dataclass(frozen=True)
class Solid(BoundedSettings):
    """How a splat is made solid. Raises BadSetting for a value out of bounds."""

    cells: int = setting(
        96,
        16,
        256,
        "Cells along the longest side, for the thickness of the shell and the filled inside. More keep finer "
        "parts, fewer close larger holes.",
        step=8,
        advanced=False,
    )
    min_opacity: float = setting(
        0.1,
        0,
        0.9,
        "Gaussians below this opacity are removed as fog; 0 = keep all.",
        advanced=False,
    )


def solidify(
    splats: Splats, config: Solid, renderer: Renderer, on_view: Callable[[int, int], None] | None = None
) -> Splats:
    """`splats` (on the CPU) without fog, opaque, thick by a cell at least, and filled inside.

    A point is inside if every view meets the splat before it (space carving: Kutulakos and Seitz 2000, with
    the splat's depth in place of photo-consistency). Raises BadInput if no Gaussian is left.
    """
    kept = splats.opacities >= config.min_opacity
    if not kept.any():
        problem = f"are all below min_opacity {config.min_opacity:g}; lower it"
        raise BadInput("the splat's opacities", problem)
    shell = replace(splats, opacities=torch.ones_like(splats.opacities)).map(lambda x: x[kept])
    low, high = box_of(shell.means)
    cell = max(float((high - low).max()) / config.cells, 1e-12)
    inside = _inside(shell, cell, renderer, on_view)
    n = len(inside)
    if not n:
        raise BadInput("the splat", "has no inside that all views agree on; lower min_opacity or cells")
    sh = splats.sh[kept].mean(0, keepdim=True).expand(n, -1, 3)
    upright = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    return Splats(inside, upright, torch.full((n, 3), THICK * cell), torch.ones(n), sh)


def _inside(
    splats: Splats, cell: float, renderer: Renderer, on_view: Callable[[int, int], None] | None
) -> Tensor:
    """Centres (M, 3) of the cells inside `splats`."""
    low, high = box_of(splats.means)
    axes = [torch.arange(float(a), float(b), cell) for a, b in zip(low, high)]
    cells = torch.cartesian_prod(*axes).reshape(-1, 3)
    move = Move.of(splats.means)
    scene, moved = move.splats(splats).map(lambda x: x.to(renderer.device)), move.points(cells)
    free = torch.zeros(len(cells))
    cameras = around(VIEWS, PX)
    for view, camera in enumerate(cameras):
        free += ~_behind(moved, camera, picture_of(scene, camera, PX, renderer))
        if on_view:
            on_view(view + 1, len(cameras))
    return cells[free < DOUBT * VIEWS]


def _behind(points: Tensor, camera: Cameras, picture: Tensor) -> Tensor:
    """Which points (N, 3) lie behind what the `picture` (px, px, 5) shows."""
    pose, K = camera.viewmats[0], camera.Ks[0]
    seen = points @ pose[:3, :3].T + pose[:3, 3]
    pixel = seen[:, :2] / seen[:, 2:] * K.diagonal()[:2] + K[:2, 2]
    grid = (pixel / len(picture) * 2 - 1)[None, None]
    opacity, distance = grid_sample(picture[..., 3:].movedim(-1, 0)[None], grid, align_corners=False)[0, :, 0]
    behind: Tensor = (opacity >= OPAQUE) & (seen[:, 2] > distance / opacity.clamp_min(1e-6))
    return behind
