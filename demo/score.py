"""How well a splat shows a thing of the demo world: PSNR and silhouette IoU against the world's own pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lucid_core.cameras import Cameras, turntable
from lucid_core.gaussians import Splats
from lucid_core.rasterize import rasterize

from . import world
from .world import Thing

VIEWS, ELEVATION_DEG, SIZE = 16, 15.0, 128
FOVY_DEG, FILL = 25.0, 0.8
SCALES = (0.5, 2.0)  # within which the splat's size is fitted
GRID, REFINEMENTS = 9, 10  # steps of 19%, then golden section to 0.3%


@dataclass(frozen=True)
class Score:
    """psnr: mean over the views of each view's PSNR in dB. iou: mean over the views of the silhouettes' IoU.

    scale: the factor that was fitted to the splat's size; nothing else is fitted.
    """

    psnr: float
    iou: float
    scale: float


@dataclass(frozen=True)
class Truth:
    """Turntable pictures of a thing on white: rgb (V, S, S, 3), mask (V, S, S) covered share, the splat's cameras."""

    rgb: Tensor
    mask: Tensor
    cameras: Cameras


@lru_cache(maxsize=8)
def truth(thing: Thing, views: int | None = None) -> Truth:
    """The pictures that `score` compares with, or `views` of them; its rgb above those of `render` makes a contact sheet."""
    views = views or VIEWS
    radius = float(world.distance(thing.kind, math.radians(FOVY_DEG), FILL))
    azimuth = torch.arange(views) * (2 * math.pi / views)  # as `turntable` goes round
    rgb, mask = world.render(
        thing, azimuth, math.radians(ELEVATION_DEG), math.radians(FOVY_DEG), SIZE, radius=radius, supersample=4
    )
    cameras = turntable(views, ELEVATION_DEG, radius, FOVY_DEG, SIZE, SIZE)
    return Truth(torch.from_numpy(rgb), torch.from_numpy(mask), cameras)


def score(splats: Splats, thing: Thing) -> Score:
    """Score `splats` (any device) as `thing`, at the size that suits it best."""
    expected = truth(thing)
    scale, rgb, alpha = best_view(splats, expected)
    return Score(psnr(rgb, expected.rgb), iou(alpha > 0.5, expected.mask > 0.5), scale)


def best_view(splats: Splats, expected: Truth) -> tuple[float, Tensor, Tensor]:
    """The scale at which `splats` come closest, and there rgb (V, S, S, 3) in [0, 1] on white and alpha (V, S, S)."""
    splats = splats.map(lambda x: x.detach().cpu().float())

    def psnr_at(log_scale: float) -> float:
        return psnr(_view(splats.scaled(math.exp(log_scale)), expected)[0], expected.rgb)

    scale = math.exp(maximise(psnr_at, math.log(SCALES[0]), math.log(SCALES[1])))
    return scale, *_view(splats.scaled(scale), expected)


def render(splats: Splats, thing: Thing, scale: float = 1.0, views: int | None = None) -> Tensor:
    """The splat from the views of `truth(thing, views)`, (V, S, S, 3) on white; `scale` as `score` found it."""
    return _view(splats.map(lambda x: x.detach().cpu().float()).scaled(scale), truth(thing, views))[0]


def _view(splats: Splats, expected: Truth) -> tuple[Tensor, Tensor]:
    """rgb (V, S, S, 3) in [0, 1] and alpha (V, S, S)."""
    with torch.no_grad():
        image = rasterize(splats, expected.cameras, SIZE, SIZE, background=torch.ones(3))
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
    """Where f is highest in [low, high]: the best of a grid, then golden section between its neighbours."""
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
