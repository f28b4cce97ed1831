"""Training images of the demo prior: random scenes of the demo world, rendered once into one file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from .words import BACKGROUNDS, COLORS, KINDS, VIEWS
from .world import Thing, render

# Scenes drawn and rendered at a time. Each chunk has its own seed, so an interrupted rendering can continue.
CHUNK = 500


@dataclass(frozen=True)
class Scenes:
    """N scenes. kind, color, view, background_word (N,): indices into the lists of `words`. offset (N,
    2), as in `world.render`; rgb (N, 3): albedo in [0, 1]; all others (N,). background: grey level in [0,
    1].
    """

    kind: np.ndarray
    color: np.ndarray
    view: np.ndarray
    background_word: np.ndarray
    azimuth_rad: np.ndarray
    elevation_rad: np.ndarray
    fovy_rad: np.ndarray
    fill: np.ndarray
    offset: np.ndarray
    rgb: np.ndarray
    background: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    def things(self) -> list[Thing]:
        names = list(COLORS)
        return [
            Thing(KINDS[k], names[c], tuple(rgb))
            for k, c, rgb in zip(self.kind, self.color, self.rgb.tolist())
        ]


def draw(n: int, rng: np.random.Generator) -> Scenes:
    """`n` random scenes: azimuth -180 to 180 degrees, elevation -10 to 50 degrees, for 22% of them 50 to
    85.
    """
    color = rng.integers(0, len(COLORS), n)
    azimuth = rng.uniform(-180, 180, n)
    elevation = np.where(rng.random(n) < 0.22, rng.uniform(50, 85, n), rng.uniform(-10, 50, n))
    rgb = np.array(list(COLORS.values()))[color] + rng.normal(0, 0.015, (n, 3))
    background = np.where(rng.random(n) < 0.4, 1.0, rng.uniform(0.12, 1.0, n))
    return Scenes(
        kind=rng.integers(0, len(KINDS), n),
        color=color,
        view=view_of(azimuth, elevation),
        background_word=background_word_of(background),
        azimuth_rad=np.radians(azimuth),
        elevation_rad=np.radians(elevation),
        fovy_rad=rng.uniform(0.32, 0.60, n),
        fill=rng.uniform(0.74, 0.90, n),
        offset=rng.normal(0, 0.012, (n, 2)).clip(-0.03, 0.03),
        rgb=rgb.clip(0.02, 1.0),
        background=background,
    )


def view_of(azimuth_deg: np.ndarray, elevation_deg: np.ndarray) -> np.ndarray:
    """Index into VIEWS of the word for each direction, (N,) degrees; azimuth in [-180, 180)."""
    front, side, back, overhead = range(len(VIEWS))
    turn = np.abs(azimuth_deg)
    level = np.where(turn < 45, front, np.where(turn > 135, back, side))
    return np.where(elevation_deg > 50, overhead, level)


def background_word_of(grey: np.ndarray) -> np.ndarray:
    """Index into BACKGROUNDS of the word for each grey level (N,) in [0, 1]."""
    white, gray, dark = range(len(BACKGROUNDS))
    return np.where(grey > 0.985, white, np.where(grey > 0.45, gray, dark))


def draw_all(n: int, seed: int) -> Scenes:
    """The first `n` scenes of the data set with `seed`; each scene is independent of `n`."""
    chunks = [draw(CHUNK, np.random.default_rng([seed, i])) for i in range(-(-n // CHUNK))]
    return Scenes(*(np.concatenate([getattr(c, f.name) for c in chunks])[:n] for f in fields(Scenes)))


def pictures(path: Path, scenes: Scenes, size: int) -> np.ndarray:
    """Images (N, size, size, 3) uint8, memory-mapped from `path`; renders those that are not there yet.

    Raises ValueError if the file has images of another shape.
    """
    shape = (len(scenes), size, size, 3)
    images = open_memmap(path, "r+") if path.exists() else open_memmap(path, "w+", np.uint8, shape)
    if images.shape != shape:
        raise ValueError(
            f"{path} has images of shape {images.shape}, not {shape}; use another folder or remove the file"
        )
    things = scenes.things()
    for start in range(0, len(scenes), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(scenes)))
        if images[chunk.stop - 1, 0, 0].any():  # already rendered: no background is black
            continue
        rgb, _ = render(
            things[chunk],
            scenes.azimuth_rad[chunk],
            scenes.elevation_rad[chunk],
            scenes.fovy_rad[chunk],
            size,
            fill=scenes.fill[chunk],
            offset=scenes.offset[chunk],
            background=scenes.background[chunk],
        )
        images[chunk] = (rgb * 255 + 0.5).astype(np.uint8)
    images.flush()
    return images
