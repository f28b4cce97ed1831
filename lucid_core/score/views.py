"""The views of a splat that are judged."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..cameras import frame_splats, rotate
from ..conditioning.picture import on_white
from ..errors import BadInput
from ..rasterize import Renderer, to_device
from ..splats import Splats
from .classifier import require_turntable

FOVY_DEG = 30.0


def turntable_views(
    splats: Splats,
    views: int,
    size: int,
    elevation_deg: float,
    renderer: Renderer,
    report: Callable[[int, Tensor], None] = lambda done, image: None,
) -> tuple[Tensor, Tensor]:
    """`views` views on white over a full turn from the front, each of the whole splat in `size` pixels.

    Returns rgb (V, S, S, 3) and alpha (V, S, S), both in [0, 1], on the CPU. report: called after each view.
    """
    angles = torch.arange(views) * (2 * math.pi / views)
    shown, camera = frame_splats(
        splats.map(lambda x: x.cpu()), math.radians(elevation_deg), math.radians(FOVY_DEG), size, size
    )
    shown = shown.map(lambda x: x.to(renderer.device))
    images, alphas = [], []
    for angle in angles:
        around = to_device(rotate(camera, angle[None], torch.zeros(3)), renderer.device)
        with torch.no_grad():
            view = renderer(shown, around, size, size, background=shown.means.new_ones(3))
        images.append(view.rgb.clamp(0, 1).cpu())
        alphas.append(view.alpha[..., 0].cpu())
        report(len(images), images[-1][0])
    return torch.cat(images), torch.cat(alphas)


def pick_views(image: Tensor, views: int, size: int) -> tuple[Tensor, Tensor]:
    """At most `views` pictures (V, size, size, 3) of a turntable (B, H, W, 3 or 4), and their azimuths (V,)
    in degrees. Transparent pictures are put on white.

    Raises BadInput for pictures that are not square, and what `require_turntable` raises.
    """
    with torch.inference_mode(False):
        pictures = on_white(image)
        require_turntable(pictures)
        count, height, width = pictures.shape[:3]
        if height != width:
            raise BadInput("image", f"is {width} x {height} pixels; render square views, of the model's size")
        chosen = torch.arange(min(views, count)) * count // min(views, count)
        pictures = pictures[chosen].clamp(0, 1)
        if height != size:
            planes = torch.nn.functional.interpolate(pictures.movedim(-1, 1), (size, size), mode="area")
            pictures = planes.movedim(1, -1)
        return pictures, chosen * (360 / count)
