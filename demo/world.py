"""The demo world: nine objects in eight colours, and their true images from any direction.

World frame: y up, front at +z; a splat's (x, y, z) is this world's (x, -y, -z). Azimuth 0 is the front and
increases towards +x (the viewer's right), elevation increases upwards, as in lucid_core.cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lucid_core.rasterize.jit import spread

from . import shapes
from .words import COLORS, KINDS, concepts_in

__all__ = ["COLORS", "KINDS", "Thing", "bounding_radius", "distance", "parse", "render"]

ROWS_EACH = 16  # least number of pixel rows per thread


@dataclass(frozen=True)
class Thing:
    """One object of one colour; rgb is its albedo, each in [0, 1]."""

    kind: str
    color: str
    rgb: tuple[float, float, float]

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"the demo world has no {self.kind!r}; choose one of {', '.join(KINDS)}")


def thing_of(prompt: str) -> Thing:
    """The object that `prompt` names. Raises ValueError unless `parse` finds one."""
    thing = parse(prompt)
    if thing is None:
        raise ValueError(f"{prompt!r} names no object of the demo world; demo/README.md lists them")
    return thing


def parse(prompt: str) -> Thing | None:
    """The object that `prompt` names; None unless it names exactly one object and one colour of the world
    (synonyms count).
    """
    named = set(concepts_in(prompt))
    kinds, colors = named.intersection(KINDS), named.intersection(COLORS)
    if len(kinds) != 1 or len(colors) != 1:
        return None
    (kind,), (color,) = kinds, colors
    return Thing(kind, color, COLORS[color])


def bounding_radius(kind: str) -> float:
    """Radius of the bounding sphere about the origin by which `kind` is framed, in world units."""
    return float(shapes.BOUNDS[KINDS.index(kind)])


def distance(kind: str, fovy_rad: ArrayLike, fill: ArrayLike) -> np.ndarray:
    """Camera distance at which the bounding sphere fills the fraction `fill` of the image."""
    return bounding_radius(kind) / np.sin(np.arctan(fill * np.tan(np.asarray(fovy_rad) / 2)))


def render(
    thing: Thing | Sequence[Thing],
    azimuth_rad: ArrayLike,
    elevation_rad: ArrayLike,
    fovy_rad: ArrayLike,
    size: int,
    *,
    radius: ArrayLike | None = None,
    fill: ArrayLike = 0.8,
    offset: ArrayLike = (0.0, 0.0),
    background: ArrayLike = 1.0,
    supersample: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """B images of `thing`, or of one object each: rgb (B, size, size, 3) and coverage (B, size, size),
    float32 in [0, 1].

    Each argument is one number for all views or (B,). radius: distance from the camera to the object's
    centre; None = where the bounding sphere fills the fraction `fill` of the image. offset (2,) or (B, 2):
    moves the image right and down, in units of its side. background: grey level in [0, 1]. Traces
    supersample**2 rays per pixel.
    """
    things = [thing] if isinstance(thing, Thing) else list(thing)
    angles = np.broadcast_arrays(
        *map(np.atleast_1d, (azimuth_rad, elevation_rad, fovy_rad)), np.empty(len(things))
    )
    azimuth, elevation, fovy, _ = (np.asarray(a, np.float64) for a in angles)
    views = len(azimuth)
    things = things * views if len(things) == 1 else things
    if radius is None:
        radius = np.array(
            [distance(t.kind, f, s) for t, f, s in zip(things, fovy, np.broadcast_to(fill, views))]
        )
    axes = camera_axes(azimuth, elevation)
    rgb = np.empty((views, size, size, 3), np.float32)
    mask = np.empty((views, size, size), np.float32)
    spread(
        shapes.trace,
        views * size,  # jobs: rows
        ROWS_EACH,
        np.array([KINDS.index(t.kind) for t in things]),
        np.array([t.rgb for t in things], np.float64),
        -axes[:, 2] * np.broadcast_to(radius, views)[:, None],
        axes,
        np.tan(fovy / 2),
        np.ascontiguousarray(np.broadcast_to(np.asarray(offset, np.float64), (views, 2))),
        np.ascontiguousarray(np.broadcast_to(np.asarray(background, np.float64), views)),
        supersample,
        rgb,
        mask,
    )
    return rgb, mask


def camera_axes(azimuth_rad: np.ndarray, elevation_rad: np.ndarray) -> np.ndarray:
    """(B,) angles -> (B, 3, 3): rows are the right, up and forward directions of a camera that looks at the
    origin.
    """
    sin_a, cos_a, sin_e, cos_e = (
        np.sin(azimuth_rad),
        np.cos(azimuth_rad),
        np.sin(elevation_rad),
        np.cos(elevation_rad),
    )
    right = np.stack([cos_a, np.zeros_like(sin_a), -sin_a], -1)
    forward = np.stack([-sin_a * cos_e, -sin_e, -cos_a * cos_e], -1)
    return np.stack([right, np.cross(right, forward), forward], 1)
