"""The demo world's objects as signed distance functions, and their sphere tracer (numba, one file: see
below).

World: right-handed, y up, the front of an object faces +z, its centre is the origin. All functions take a
point (x, y, z) and return a distance that is hardly ever longer than the way to the surface; an object's also
gives the material there. Numba's cache follows changes of this file only, so all that is compiled into
`trace` stays in it.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from lucid_core.rasterize.jit import kernel

MAIN, BLACK, NOSE, WOOD, CREAM, WHITE, ROOF, LIGHT = range(8)
MATERIALS = np.array([
    (0, 0, 0), (0.06, 0.06, 0.07), (0.95, 0.45, 0.08), (0.35, 0.20, 0.10),
    (0.93, 0.88, 0.76), (0.96, 0.96, 0.96), (0.42, 0.30, 0.25), (0.98, 0.93, 0.60),
])  # fmt: skip  # (8, 3) albedo; MAIN is replaced by the thing's own colour
BOUNDS = np.array(
    [0.99, 0.82, 1.02, 0.92, 0.86, 0.95, 1.00, 0.95, 0.90]
)  # by kind: radius of the bounding sphere used for framing
MARGIN = 0.03  # rays start and stop this far outside BOUNDS: the house's lower corners reach 1.026
SUN = np.array([0.55, 0.90, 0.75]) / sqrt(0.55**2 + 0.90**2 + 0.75**2)
MAX_STEPS, STEP, HIT, NORMAL_REACH = 90, 0.95, 0.0012, 0.002


@kernel(fastmath=True)
def _hypot(x, y):  # math.hypot avoids overflow, but takes twice the time
    return sqrt(x * x + y * y)


@kernel(fastmath=True)
def _length(x, y, z):
    return sqrt(x * x + y * y + z * z)


@kernel(fastmath=True)
def _ball(x, y, z, radius):
    return _length(x, y, z) - radius


@kernel(fastmath=True)
def _box(x, y, z, half_x, half_y, half_z, rounding):
    dx, dy, dz = abs(x) - half_x + rounding, abs(y) - half_y + rounding, abs(z) - half_z + rounding
    outside = _length(max(dx, 0.0), max(dy, 0.0), max(dz, 0.0))
    return outside + min(max(dx, max(dy, dz)), 0.0) - rounding


@kernel(fastmath=True)
def _cylinder(x, y, z, radius, half_height):
    side, end = sqrt(x * x + z * z) - radius, abs(y) - half_height
    return min(max(side, end), 0.0) + _hypot(max(side, 0.0), max(end, 0.0))


@kernel(fastmath=True)
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


@kernel(fastmath=True)
def _snowman(x, y, z):
    body = min(_ball(x, y + 0.46, z, 0.46), min(_ball(x, y - 0.14, z, 0.34), _ball(x, y - 0.62, z, 0.25)))
    eyes = _ball(abs(x) - 0.095, y - 0.68, z - 0.215, 0.05)
    buttons = min(_ball(x, y - 0.24, z - 0.325, 0.05), _ball(x, y - 0.06, z - 0.33, 0.05))
    black = min(min(eyes, buttons), _ball(x, y + 0.40, z - 0.455, 0.055))
    nose = _cone(_hypot(x, y - 0.60), z - 0.38, 0.15, 0.065, 0.012)
    distance, material = (black, BLACK) if black < body else (body, MAIN)
    return (nose, NOSE) if nose < distance else (distance, material)


@kernel(fastmath=True)
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


@kernel(fastmath=True)
def _is_spot(x, y, z):
    """Whether the direction (x, y, z) from the centre of the mushroom's cap points to one of its nine white
    spots.
    """
    ax, az = abs(x), abs(z)
    axes = max(y, 0.35 * y + 0.94 * max(ax, az))
    diagonals = 0.62 * ax + 0.55 * y + 0.56 * az if z > 0 else 0.60 * ax + 0.55 * y + 0.58 * az
    return max(axes, diagonals) > 0.972 * _length(x, y, z)


@kernel(fastmath=True)
def _mushroom(x, y, z):
    stem = _cone(_hypot(x, z), y + 0.42, 0.42, 0.27, 0.19) - 0.02
    up = (y - 0.02) * 1.18
    cap = 0.85 * max(_ball(x, up, z, 0.80), 0.02 - y)
    if cap >= stem:
        return stem, CREAM
    if y < 0.035:
        return cap, CREAM  # the underside
    return cap, WHITE if y > 0.06 and _is_spot(x, up, z) else MAIN


@kernel(fastmath=True)
def _mug(x, y, z):
    cup_x = x + 0.12
    r = _hypot(cup_x, z)
    outer = _cylinder(cup_x, y, z, 0.48, 0.56) - 0.015
    inner = _cylinder(cup_x, y - 0.12, z, 0.41, 0.56)
    cup = max(outer, -inner)
    ring = _hypot(_hypot((x - 0.40) * 1.05, y) - 0.27, z) - 0.075
    handle = 0.9 * max(ring, 0.47 - r)
    material = MAIN
    if handle > cup:
        if r < 0.44 and y > -0.46:
            material = CREAM
        elif z > 0.25 and cup_x * cup_x + y * y < 0.05:
            material = WHITE
    return min(cup, handle), material


@kernel(fastmath=True)
def surface(kind, x, y, z):
    """(distance, material) of the object `kind`, an index into words.KINDS."""
    if kind == 0:
        return _box(x, y, z, 0.56, 0.56, 0.56, 0.04), MAIN
    if kind == 1:
        return _ball(x, y, z, 0.80), MAIN
    if kind == 2:
        return _cone(_hypot(x, z), y, 0.75, 0.66, 0.01) - 0.02, MAIN
    if kind == 3:
        return _cylinder(x, y, z, 0.50, 0.72) - 0.02, MAIN
    if kind == 4:
        return _hypot(_hypot(x, y) - 0.60, z) - 0.24, MAIN
    if kind == 5:
        return _snowman(x, y, z)
    if kind == 6:
        return _house(x, y, z)
    if kind == 7:
        return _mushroom(x, y, z)
    return _mug(x, y, z)


@kernel(fastmath=True)
def light(nx, ny, nz):
    """Brightness of a surface with the unit normal (nx, ny, nz): a soft sun and some sky, no cast shadows."""
    half_lambert = 0.5 + 0.5 * (nx * SUN[0] + ny * SUN[1] + nz * SUN[2])
    return 0.50 + 0.54 * half_lambert * half_lambert + 0.05 * max(0.0, ny)


@kernel(fastmath=True)
def light_at(kind, x, y, z):
    """`light` for the surface at a point; the normal from four distances at a tetrahedron's corners."""
    e = NORMAL_REACH
    a, _ = surface(kind, x + e, y - e, z - e)
    b, _ = surface(kind, x - e, y - e, z + e)
    c, _ = surface(kind, x - e, y + e, z - e)
    d, _ = surface(kind, x + e, y + e, z + e)
    nx, ny, nz = a - b - c + d, c + d - a - b, b + d - a - c
    scale = 1.0 / (_length(nx, ny, nz) + 1e-12)
    return light(nx * scale, ny * scale, nz * scale)


@kernel(fastmath=True)
def _march(kind, eye, dx, dy, dz):
    """Follow the ray from `eye` (3,) along a unit direction: (hit, x, y, z, material)."""
    toward = eye[0] * dx + eye[1] * dy + eye[2] * dz
    reach = BOUNDS[kind] + MARGIN
    square = toward * toward - (eye[0] * eye[0] + eye[1] * eye[1] + eye[2] * eye[2] - reach * reach)
    x, y, z, material = 0.0, 0.0, 0.0, MAIN
    if square <= 0:
        return False, x, y, z, material
    t, end = max(-toward - sqrt(square), 0.0), -toward + sqrt(square)
    for _ in range(MAX_STEPS):
        if t >= end:
            break
        x, y, z = eye[0] + t * dx, eye[1] + t * dy, eye[2] + t * dz
        distance, material = surface(kind, x, y, z)
        if distance < HIT:
            return True, x, y, z, material
        t += STEP * distance
    return False, x, y, z, material


@kernel(fastmath=True)
def _shoot(kind, albedo, eye, axes, px, py, rgb):
    """Add the colour along image-plane position (px, py) to `rgb` (3,) and say whether something was hit."""
    dx = axes[2, 0] + px * axes[0, 0] + py * axes[1, 0]
    dy = axes[2, 1] + px * axes[0, 1] + py * axes[1, 1]
    dz = axes[2, 2] + px * axes[0, 2] + py * axes[1, 2]
    scale = 1.0 / _length(dx, dy, dz)
    hit, x, y, z, material = _march(kind, eye, dx * scale, dy * scale, dz * scale)
    if not hit:
        return False
    brightness = light_at(kind, x, y, z)
    for channel in range(3):
        own = albedo[channel] if material == MAIN else MATERIALS[material, channel]
        rgb[channel] += min(own * brightness, 1.0)
    return True


@kernel(fastmath=True, allocates=True)
def trace(first, end, kinds, albedos, eyes, axes, tangents, offsets, backgrounds, supersample, rgb, mask):
    """Render rows first to end - 1, of all B * S, into rgb (B, S, S, 3) and mask (B, S, S), the covered
    shares.

    kinds (B,) indices; albedos (B, 3); eyes (B, 3) world; axes (B, 3, 3) rows are the camera's right, up and
    forward; tangents (B,) of half the field of view; offsets (B, 2) shift the picture right and down, in
    picture sides; backgrounds (B,) grey levels; supersample**2 rays a pixel.
    """
    size, share = rgb.shape[1], 1.0 / (supersample * supersample)
    for i in range(first, end):
        view, row = i // size, i % size
        for column in range(size):
            pixel = np.zeros(3)
            hits = 0
            for sample in range(supersample * supersample):
                u = (column + (sample % supersample + 0.5) / supersample) / size - offsets[view, 0]
                v = (row + (sample // supersample + 0.5) / supersample) / size - offsets[view, 1]
                px, py = (2 * u - 1) * tangents[view], (1 - 2 * v) * tangents[view]
                hits += _shoot(kinds[view], albedos[view], eyes[view], axes[view], px, py, pixel)
            empty = 1.0 - hits * share
            for channel in range(3):
                rgb[view, row, column, channel] = pixel[channel] * share + empty * backgrounds[view]
            mask[view, row, column] = hits * share
