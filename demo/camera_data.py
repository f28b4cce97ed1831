"""Training views of the demo camera model: objects of the demo world, each from many directions on white."""

from __future__ import annotations

import numpy as np

from .data import Scenes, background_word_of, view_of
from .words import COLORS, KINDS

VIEWS, PICTURES = 18, 8  # views of an object; the first PICTURES of them may be the model's input
FRONTAL = 0.5  # share of the pictures within 60 degrees of the front


def draw(objects: int, seed: int) -> Scenes:
    """`VIEWS` scenes of each of `objects` objects, object by object. All views of an object have the same
    field of view and fill; each object is independent of their number.

    Pictures: any azimuth, elevation -5 to 40 degrees. Targets: elevation -12 to 50 degrees, for 15% of them
    50 to 80.
    """
    parts = [_draw_one(np.random.default_rng([seed, i])) for i in range(objects)]
    stacked = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    azimuth, elevation = stacked.pop("azimuth"), stacked.pop("elevation")
    return Scenes(
        view=view_of(azimuth, elevation),
        background_word=background_word_of(stacked["background"]),
        azimuth_rad=np.radians(azimuth),
        elevation_rad=np.radians(elevation),
        **stacked,
    )


def _draw_one(rng: np.random.Generator) -> dict[str, np.ndarray]:
    targets = VIEWS - PICTURES
    color = rng.integers(len(COLORS))
    frontal = rng.random(PICTURES) < FRONTAL
    azimuth = np.where(frontal, rng.uniform(-60, 60, PICTURES), rng.uniform(-180, 180, PICTURES))
    high = rng.random(targets) < 0.15
    elevation = np.where(high, rng.uniform(50, 80, targets), rng.uniform(-12, 50, targets))
    rgb = np.array(list(COLORS.values()))[color] + rng.normal(0, 0.015, 3)
    same = lambda value: np.full(VIEWS, value)
    return {
        "kind": same(rng.integers(len(KINDS))),
        "color": same(color),
        "azimuth": np.concatenate([azimuth, rng.uniform(-180, 180, targets)]),
        "elevation": np.concatenate([rng.uniform(-5, 40, PICTURES), elevation]),
        "fovy_rad": same(rng.uniform(0.36, 0.54)),
        "fill": same(rng.uniform(0.74, 0.90)),
        "offset": np.zeros((VIEWS, 2)),
        "rgb": np.tile(rgb.clip(0.02, 1.0), (VIEWS, 1)),
        "background": np.ones(VIEWS),
    }
