"""Splats made solid, so that the host's Extract Mesh from Splat finds one closed surface.

A splat is a shell of thin, partly transparent Gaussians. On a density grid the shell has holes, its inside
becomes a second surface, and fog becomes lumps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BadInput
from ..frames import Frame
from ..rasterize import Renderer
from ..settings import BoundedSettings, setting
from ..splats import Splats
from .fusion import Fusion
from .views import around, box_of, picture_of

PX, VIEWS = 256, 48
THICK = 0.7  # scale of the Gaussians, in cells
OPAQUE = 0.5  # opacity of a pixel from which on its ray meets the object
WIDE = 1.5  # factor on the Gaussians' scales that closes the gaps between them
GAP = 0.5  # in cells: a depth that lies farther behind that of the wide Gaussians is seen through a gap
REACH = 0.25  # limit of how far a Gaussian widens the grid, as a share of the longest side
SOLID = 0.05  # cells that are filled less are left out


@dataclass(frozen=True)
class Solid(BoundedSettings):
    """How a splat is made solid. Raises BadSetting for a value out of bounds."""

    cells: int = setting(
        64,
        16,
        256,
        "Cells along the longest side of the splat. More keep finer parts, fewer close larger holes and give "
        "a smoother surface.",
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
    splats: Splats, config: Solid, renderer: Renderer, on_view: Callable[[int], None] | None = None
) -> Splats:
    """The space that `splats` (on the CPU) enclose, as opaque Gaussians on a grid, in their mean colour.

    A cell is filled by its signed distance behind the splat's depth (Fusion). Every Gaussian that is kept is
    opaque. In the gaps between Gaussians their depth is a mean of the front and of what is behind; there it
    is at most GAP behind the depth of wider ones. Raises BadInput if no Gaussian is kept, if they are larger
    than the space between them, or if nothing is enclosed.
    """
    kept = splats.opacities >= config.min_opacity
    if not kept.any():
        problem = f"are all below min_opacity {config.min_opacity:g}; lower it"
        raise BadInput("the splat's opacities", problem)
    shell = replace(splats, opacities=torch.ones_like(splats.opacities)).map(lambda x: x[kept])
    low, high = box_of(shell.means)
    size, scale = float((high - low).max()), float(shell.scales.median())
    if size <= scale:
        problem = (
            f"has Gaussians as large ({scale:.2g}) as all of it ({size:.2g}); give one of many small ones"
        )
        raise BadInput("the splat", problem)
    cell = size / config.cells
    cells, filled = _occupancy(shell, cell, renderer, on_view)
    inside = filled > SOLID
    n = int(inside.sum())
    if not n:
        raise BadInput("the splat", "has no inside that the views agree on; lower min_opacity or cells")
    sh = splats.sh[kept].mean(0, keepdim=True).expand(n, -1, 3)
    upright = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    return Splats(cells[inside], upright, torch.full((n, 3), THICK * cell), filled[inside], sh)


def _occupancy(
    splats: Splats, cell: float, renderer: Renderer, on_view: Callable[[int], None] | None
) -> tuple[Tensor, Tensor]:
    """Centres (M, 3) of the cells in the box of `splats`, and how far each is filled (M,), in [0, 1]."""
    low, high = box_of(splats.means)
    reach = splats.scales.amax(-1, keepdim=True).clamp_max(REACH * float((high - low).max())) + cell
    ends = torch.stack([(splats.means - reach).amin(0), (splats.means + reach).amax(0)])
    cells = torch.cartesian_prod(*(torch.arange(a, b, cell) for a, b in ends.T.tolist())).reshape(-1, 3)
    frame = Frame.of_points(ends)
    scene = frame.enter(splats).map(lambda x: x.to(renderer.device))
    wide = replace(scene, scales=WIDE * scene.scales)
    fusion = Fusion(frame.enter_points(cells), cell * frame.scale, OPAQUE)
    for view, camera in enumerate(around(VIEWS, PX)):
        shown, limit = (picture_of(one, camera, PX, renderer)[..., 3:] for one in (scene, wide))
        fusion.add(camera, _limit_depth(shown, limit, GAP * cell * frame.scale))
        if on_view:
            on_view(view + 1)
    return cells, 0.5 + 0.5 * fusion.distances()


def _limit_depth(picture: Tensor, wide: Tensor, gap: float) -> Tensor:
    """`picture`, opacity and depth times opacity (px, px, 2), with depths at most `gap` behind those of
    `wide`.
    """
    opacity, total = picture.unbind(-1)
    limit = wide[..., 1] / wide[..., 0].clamp_min(1e-6) + gap
    return torch.stack([opacity, torch.minimum(total, opacity * limit)], -1)
