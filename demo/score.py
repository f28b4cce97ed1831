"""Score of a splat or field against an object of the demo world: PSNR and silhouette IoU with true images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lucid_core.cameras import Cameras, turntable
from lucid_core.field.grid import Field
from lucid_core.field.render import render as render_field
from lucid_core.rasterize import rasterize
from lucid_core.splats import Splats

from . import world
from .world import Thing

VIEWS, ELEVATION_DEG, SIZE = 16, 15.0, 128
FOVY_DEG, FILL = 25.0, 0.8
SCALES = (0.5, 2.0)  # range of the fitted scale of the splat
GRID, REFINEMENTS = 9, 10  # a grid of 19% steps, then golden-section search to 0.3%


@dataclass(frozen=True)
class Score:
    """psnr: mean of the views' PSNR in dB. iou: mean of the views' silhouette IoU.

    scale: the fitted scale factor of the splat; nothing else is fitted.
    """

    psnr: float
    iou: float
    scale: float


@dataclass(frozen=True)
class Truth:
    """True turntable images of an object on white: rgb (V, S, S, 3) and mask (V, S, S) (coverage), both in
    [0, 1], and the cameras for rendering the splat.
    """

    rgb: Tensor
    mask: Tensor
    cameras: Cameras


@lru_cache(maxsize=8)
def truth(thing: Thing, views: int | None = None, elevation_deg: float = ELEVATION_DEG) -> Truth:
    """The true images that `score` uses, or a turntable of `views` images at another elevation. With the
    images of `render` they make a contact sheet.
    """
    views = views or VIEWS
    radius = float(world.distance(thing.kind, math.radians(FOVY_DEG), FILL))
    azimuth = torch.arange(views) * (2 * math.pi / views)  # as in `turntable`
    rgb, mask = world.render(
        thing,
        azimuth,
        math.radians(elevation_deg),
        math.radians(FOVY_DEG),
        SIZE,
        radius=radius,
        supersample=4,
    )
    cameras = turntable(views, elevation_deg, radius, FOVY_DEG, SIZE, SIZE)
    return Truth(torch.from_numpy(rgb), torch.from_numpy(mask), cameras)


def score(splats: Splats | Field, thing: Thing) -> Score:
    """Score of `splats` (on any device) against `thing`, at the scale with the highest PSNR."""
    expected = truth(thing)
    scale, rgb, alpha = best_view(splats, expected)
    return Score(psnr(rgb, expected.rgb), iou(alpha > 0.5, expected.mask > 0.5), scale)


def best_view(splats: Splats | Field, expected: Truth) -> tuple[float, Tensor, Tensor]:
    """The scale of `splats` with the highest PSNR, and its rgb (V, S, S, 3) in [0, 1] on white and alpha
    (V, S, S).
    """
    splats = splats.map(lambda x: x.detach().cpu().float())

    def psnr_at(log_scale: float) -> float:
        return psnr(view(splats.scale_by(math.exp(log_scale)), expected)[0], expected.rgb)

    scale = math.exp(maximise(psnr_at, math.log(SCALES[0]), math.log(SCALES[1])))
    return scale, *view(splats.scale_by(scale), expected)


def render(splats: Splats | Field, thing: Thing, scale: float = 1.0, views: int | None = None) -> Tensor:
    """The splat, scaled by `scale`, in the views of `truth(thing, views)`: (V, S, S, 3) in [0, 1] on
    white.
    """
    return view(splats.map(lambda x: x.detach().cpu().float()).scale_by(scale), truth(thing, views))[0]


def view(splats: Splats | Field, expected: Truth) -> tuple[Tensor, Tensor]:
    """The splat on the CPU in the views of `expected`: rgb (V, S, S, 3) in [0, 1] on white and alpha (V, S,
    S).
    """
    with torch.no_grad():
        draw = render_field if isinstance(splats, Field) else rasterize
        image = draw(splats, expected.cameras, SIZE, SIZE, background=torch.ones(3))
    return image.rgb.clamp(0, 1), image.alpha[..., 0]


def psnr(images: Tensor, expected: Tensor) -> float:
    """Mean over the views of -10 log10 of the view's mean squared error; both (V, H, W, 3) in [0, 1]."""
    error = (images - expected).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)  # (V,) at most 100 dB
    return float((-10 * error.log10()).mean())


def iou(silhouettes: Tensor, expected: Tensor) -> float:
    """Mean over the views of intersection over union; both (V, H, W) bool."""
    intersection = (silhouettes & expected).sum(dim=(1, 2))
    union = (silhouettes | expected).sum(dim=(1, 2)).clamp_min(1)
    return float((intersection / union).mean())


def maximise(f: Callable[[float], float], low: float, high: float) -> float:
    """The argument in [low, high] with the highest f: the best of a grid, then golden-section search between
    its neighbours.
    """
    step = (high - low) / (GRID - 1)
    best = max((low + i * step for i in range(GRID)), key=f)
    low, high = max(low, best - step), min(high, best + step)
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    f_left, f_right = f(left), f(right)
    for _ in range(REFINEMENTS):
        if f_left > f_right:
            high, right, f_right = right, left, f_left
            left = high - ratio * (high - low)
            f_left = f(left)
        else:
            low, left, f_left = left, right, f_right
            right = low + ratio * (high - low)
            f_right = f(right)
    return (low + high) / 2
