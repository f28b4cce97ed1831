"""The demo world's objects as signed distance functions, and their sphere tracer (numba, one file: see below).

World: right-handed, y up, the front of an object faces +z, its centre is the origin. All functions take a point (x, y, z)
and return a distance that is never longer than the way to the surface; an object's also gives the material it is of.
Numba's cache follows changes of this file only, so all that is compiled into `trace` stays in it.
"""

from __future__ import annotations

from math import hypot, sqrt

import numba
import numpy as np

MAIN, BLACK, NOSE, WOOD, CREAM, WHITE, ROOF, LIGHT = range(8)
MATERIALS = np.array([
    (0, 0, 0), (0.06, 0.06, 0.07), (0.95, 0.45, 0.08), (0.35, 0.20, 0.10),
    (0.93, 0.88, 0.76), (0.96, 0.96, 0.96), (0.42, 0.30, 0.25), (0.98, 0.93, 0.60),
])  # fmt: skip  # (8, 3) albedo; MAIN is replaced by the thing's own colour
BOUNDS = np.array([0.99, 0.82, 1.02, 0.92, 0.86, 0.95, 1.00, 0.95, 0.90])  # by kind: radius that the framing goes by
MARGIN = 0.03  # rays start and stop this far outside BOUNDS: the house's lower corners reach 1.026
SUN = np.array([0.55, 0.90, 0.75]) / sqrt(0.55**2 + 0.90**2 + 0.75**2)
MAX_STEPS, STEP, HIT, NORMAL_REACH = 90, 0.95, 0.0012, 0.002

_jit = numba.njit(cache=True, fastmath=True, error_model="numpy")


@_jit
def _length(x, y, z):
    return sqrt(x * x + y * y + z * z)


@_jit
def _ball(x, y, z, radius):
    return _length(x, y, z) - radius


@_jit
def _box(x, y, z, half_x, half_y, half_z, rounding):
    dx, dy, dz = abs(x) - half_x + rounding, abs(y) - half_y + rounding, abs(z) - half_z + rounding
    outside = _length(max(dx, 0.0), max(dy, 0.0), max(dz, 0.0))
    return outside + min(max(dx, max(dy, dz)), 0.0) - rounding


@_jit
def _cylinder(x, y, z, radius, half_height):
    side, end = sqrt(x * x + z * z) - radius, abs(y) - half_height
    return min(max(side, end), 0.0) + hypot(max(side, 0.0), max(end, 0.0))


@_jit
def _cone(r, h, half_height, low_radius, high_radius):
    """Capped cone about an axis; r from the axis, h along it."""
    cap_r = r - min(r, low_radius if h < 0 else high_radius)
    cap_h = abs(h) - half_height
    edge_r, edge_h = high_radius - low_radius, 2 * half_height
    along = ((high_radius - r) * edge_r + (half_height - h) * edge_h) / (edge_r * edge_r + edge_h * edge_h)
    along = max(0.0, min(1.0, along))
    side_r, side_h = r - high_radius + edge_r * along, h - half_height + edge_h * along
    sign = -1.0 if side_r < 0 and cap_h < 0 else 1.0
    return sign * sqrt(min(cap_r * cap_r + cap_h * cap_h, side_r * side_r + side_h * side_h))


@_jit
def _snowman(x, y, z):
    body = min(_ball(x, y + 0.46, z, 0.46), min(_ball(x, y - 0.14, z, 0.34), _ball(x, y - 0.62, z, 0.25)))
    eyes = _ball(abs(x) - 0.095, y - 0.68, z - 0.215, 0.05)
    buttons = min(_ball(x, y - 0.24, z - 0.325, 0.05), _ball(x, y - 0.06, z - 0.33, 0.05))
    black = min(min(eyes, buttons), _ball(x, y + 0.40, z - 0.455, 0.055))
    nose = _cone(hypot(x, y - 0.60), z - 0.38, 0.15, 0.065, 0.012)
    distance, material = (black, BLACK) if black < body else (body, MAIN)
    return (nose, NOSE) if nose < distance else (distance, material)


@_jit
def _house(x, y, z):
    walls = _box(x, y + 0.28, z, 0.60, 0.42, 0.45, 0.01)
    slope = (abs(z) * 0.64 + (y - 0.74) * 0.58) / 0.8637  # the ridge runs along x
    roof = max(slope, max(0.10 - y, abs(x) - 0.70))
    chimney = _box(x - 0.40, y - 0.62, z + 0.20, 0.09, 0.26, 0.09, 0.01)
    distance, material = walls, MAIN
    if roof < walls:
        distance, material = roof, ROOF
    elif z > 0.43:  # painted on the front
        if abs(x) < 0.13 and y < -0.16:
            material = WOOD
        elif abs(abs(x) - 0.36) < 0.12 and abs(y + 0.24) < 0.13:
            material = LIGHT
    return (chimney, WOOD) if chimney < distance else (distance, material)


@_jit
def _is_spot(x, y, z):
    """Whether the direction (x, y, z) from the middle of the mushroom's cap is in one of its nine white spots."""
    x, z = abs(x), abs(z)  # the spots lie symmetrically, but for a hair in the depth of the four diagonal ones
    return False


@_jit
def _mushroom(x, y, z):
    stem = _cone(hypot(x, z), y + 0.42, 0.42, 0.27, 0.19) - 0.02
    up = (y - 0.02) * 1.18
    cap = 0.85 * max(_ball(x, up, z, 0.80), 0.02 - y)
    if cap >= stem:
        return stem, CREAM
    if y < 0.035:
        return cap, CREAM  # the underside
    return cap, WHITE if y > 0.06 and _is_spot(x, up, z) else MAIN


@_jit
def _mug(x, y, z):
    cup_x = x + 0.12
    r = hypot(cup_x, z)
    outer = _cylinder(cup_x, y, z, 0.48, 0.56) - 0.015
    inner = _cylinder(cup_x, y - 0.12, z, 0.41, 0.56)
    cup = max(outer, -inner)
    ring = hypot(hypot((x - 0.40) * 1.05, y) - 0.27, z) - 0.075
    handle = 0.9 * max(ring, 0.47 - r)
    material = MAIN
    if handle > cup:
        if r < 0.44 and y > -0.46:
            material = CREAM
        elif z > 0.25 and cup_x * cup_x + y * y < 0.05:
            material = WHITE
    return min(cup, handle), material
