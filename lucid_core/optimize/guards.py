"""Checks that stop a run, or warn when a run cannot succeed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..cameras import CameraRanges
from ..errors import BadSplats, NotFinite
from ..rasterize import Render
from ..splats import Splats

TOO_SMALL, TOO_LARGE = 20, 5  # factors relative to the visible extent: smaller or larger gives a warning


@torch.no_grad()
def require_finite(values: Mapping[str, Tensor | None], step: int, steps: int) -> None:
    """Raise NotFinite for the first of `values` with NaN or infinity.

    step: the current one of `steps`. All values are checked with a single device synchronisation.
    """
    given = {name: value for name, value in values.items() if value is not None and value.numel()}
    extremes = torch.stack([extreme for value in given.values() for extreme in value.aminmax()])
    finite = extremes.isfinite().view(-1, 2).all(1).tolist()
    for name, ok in zip(given, finite, strict=True):
        if not ok:
            raise NotFinite(name, step, steps)


def require_seen(render: Render, scene: Splats, cameras: CameraRanges) -> None:
    """Raise BadSplats if the first render is empty and the splat lies outside the camera orbit.

    There would be no gradient. `scene` is in the cameras' frame.
    """
    centre = scene.means.median(dim=0).values
    if not (render.alpha > 0).any() and centre.norm() > cameras.radius_max:
        place = ", ".join(f"{value:.3g}" for value in centre.tolist())
        raise BadSplats(
            "means",
            f"lie about ({place}), where no camera sees them; turn on fit_to_view, or move the splat to the "
            f"origin",
        )


def view_note(splats: Splats, cameras: CameraRanges) -> str:
    """A warning for the user if `splats` are far too small or too large for the first views, else ""."""
    radius = (cameras.radius_min + cameras.radius_max) / 2
    fovy = math.radians(cameras.fovy_min_deg + cameras.fovy_max_deg) / 2
    seen = 2 * radius * math.tan(fovy / 2)
    centre = splats.means.median(dim=0).values
    reach = ((splats.means - centre).norm(dim=-1) + splats.scales.amax(-1)).sort().values
    size = 2 * float(reach[math.ceil(0.99 * len(reach)) - 1])
    if seen / TOO_SMALL <= size <= seen * TOO_LARGE:
        return ""
    what = "a speck in" if size < seen else "far larger than"
    return (
        f"The splat is {size:.3g} units across, {what} what the cameras see, {seen:.3g}; turn on fit_to_view."
    )
