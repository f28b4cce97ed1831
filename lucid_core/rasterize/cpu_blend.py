"""CPU kernels, 3 of 3: blending of sorted Gaussians into 16x16 tiles, and its gradient.

A tile has 4x4 blocks of 4x4 pixels. The inner loops run over the 16 pixels of a block in one flat scratch
buffer with constant offsets, which LLVM vectorises. fastmath is safe here because the projection only outputs
finite, bounded values.

    alpha = opacity exp(-power),  power = d^2 + e^2,  d = p dx + q dy,  e = s dy
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .cpu_bins import TILE, Counts, Ids
from .jit import kernel
from .limits import ALPHA_MAX, TRANSMITTANCE_MIN

f32 = np.float32
Floats = NDArray[np.float32]
PIXELS = TILE * TILE
SIDE = 4  # pixels per block and blocks per tile, in x and y; x // SIDE is x >> 2
LANES = SIDE * SIDE
GRADIENTS = 10  # per pair: mean x y, factor p q s, opacity, r g b z
# the scratch buffer holds planes of a tile's pixels, block by block; offsets of the stop plane in both passes
STOP, STOP_BACK = 5 * PIXELS, 6 * PIXELS
SUMS, SUMS_AT = 10, 7 * PIXELS  # rows of lanes that accumulate a pair's gradient, and their offset
CHECK = 32  # Gaussians between two tests for opaque blocks
# stop values: larger than every k, and outside the image; float32, exact up to 2**24
NEVER = f32(2**30)
OUTSIDE = f32(-1)
CEILING, FLOOR = f32(ALPHA_MAX), f32(TRANSMITTANCE_MIN)
ZERO, ONE, TWO = f32(0), f32(1), f32(2)
REACH = f32(SIDE - 1)  # distance from the first to the last pixel of a block
# exp(-x) = poly(x)**8 on [0, 5.6], relative error 2e-6; beyond, alpha < 1/255 for any opacity
E0, E1, E2 = f32(0.9999999403953552), f32(-0.9999925494194031 / 8), f32(0.4998825788497925 / 8**2)
E3 = f32(-0.1659739762544632 / 8**3)
E4 = f32(0.03977256268262863 / 8**4)
E5 = f32(-0.005846760235726833 / 8**5)


def _count_trailing_zeros(_typing: Any, mask: Any) -> tuple[Any, Callable[..., Any]]:
    """An intrinsic of numba: (its signature, the function that generates its LLVM code)."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int32(types.int32), generate


# index of the lowest set bit of a non-zero int32
_lowest_bit: Callable[[int], int] = intrinsic(_count_trailing_zeros)


@kernel(fastmath=True, inline=True)
def _exp_minus(x: f32) -> f32:
    e = ((((E5 * x + E4) * x + E3) * x + E2) * x + E1) * x + E0
    e = e * e
    e = e * e
    return e * e


@kernel(fastmath=True, inline=True)
def _block_of(x: int, y: int) -> int:
    """Index of pixel x, y of a tile in a plane."""
    return ((y >> 2) * SIDE + (x >> 2)) * LANES + (y & 3) * SIDE + (x & 3)


@kernel(fastmath=True, inline=True)
def _corner(m: int, dx: f32, dy: f32) -> tuple[f32, f32]:
    """Position of the first pixel of block m, given that of the tile, dx, dy."""
    return dx + f32(SIDE * (m & 3)), dy + f32(SIDE * (m >> 2))


@kernel(fastmath=True)
def _near(dx: f32, dy: f32, p: f32, q: f32, s: f32, strength: f32) -> int:
    """Bit mask of the blocks where alpha may reach 1/255; dx, dy: from the mean to the tile's first pixel."""
    bits = 0
    for m in range(LANES):
        x, y = _corner(m, dx, dy)
        low, e = p * x + q * y + min(q * REACH, ZERO), s * y
        high = low + p * REACH + abs(q * REACH)
        d, e = max(max(low, -high), ZERO), max(max(e, -e - s * REACH), ZERO)
        bits |= 1 << m if d * d + e * e <= strength + f32(1e-3) else 0
    return bits


@kernel(fastmath=True, inline=True)
def _blocks(records: Floats, n: int, left: int, top: int, dx: f32, dy: f32, open: int) -> int:
    """Bit mask of the blocks in `open` where alpha may reach 1/255, for a tile that the box touches."""
    x0, x1 = max(int(records[n, 11]) - left, 0) >> 2, min(int(records[n, 12]) - left - 1, TILE - 1) >> 2
    y0, y1 = max(int(records[n, 13]) - top, 0) >> 2, min(int(records[n, 14]) - top - 1, TILE - 1) >> 2
    columns, rows = (2 << x1) - (1 << x0), (16 << SIDE * y1) - (1 << SIDE * y0)
    mask = columns * 0x1111 & rows & open
    if x1 - x0 + y1 - y0 > 2:  # more than 2 x 2 blocks: an exact test pays off
        mask &= _near(dx, dy, records[n, 2], records[n, 3], records[n, 4], records[n, 10])
    return mask


@kernel(fastmath=True)
def _blend_block(
    pixels: Floats,
    m: int,
    k: f32,
    u: f32,
    v: f32,
    p: f32,
    q: f32,
    s: f32,
    strength: f32,
    opacity: f32,
    r: f32,
    g: f32,
    b: f32,
    z: f32,
) -> None:
    """Blend Gaussian k into block m. u, v: d and e at the block's first pixel.

    pixels: planes T r g b z stop, where stop is the k at which the pixel became opaque.
    """
    at = (m & 15) * LANES
    for i in range(LANES):
        x, y = f32(i & 3), f32(i >> 2)
        d, e = u + (p * x + q * y), v + s * y
        power, T, stop = d * d + e * e, pixels[at + i], pixels[at + i + STOP]
        hit = (power <= strength) & (stop > k)
        w = T * min(opacity * _exp_minus(power), CEILING)
        w = w if hit else ZERO
        stops = T - w <= FLOOR
        pixels[at + i + STOP] = k if stops else stop
        w = ZERO if stops else w
        pixels[at + i] = T - w
        pixels[at + i + PIXELS] += w * r
        pixels[at + i + 2 * PIXELS] += w * g
        pixels[at + i + 3 * PIXELS] += w * b
        pixels[at + i + 4 * PIXELS] += w * z


@kernel(fastmath=True)
def _open(pixels: Floats, stop: int, k: f32) -> int:
    """Bit mask of the blocks with a pixel that is not opaque before k; stop: offset of the stop plane."""
    bits = 0
    for m in range(LANES):
        alive = ZERO
        for i in range(LANES):
            alive += ONE if pixels[stop + m * LANES + i] > k else ZERO
        bits |= 1 << m if alive > ZERO else 0
    return bits


@kernel(allocates=True)
def _scratch(size: int) -> Floats:
    """(size,) float32, aligned to cache lines: each row of a block is one line, so access needs only one."""
    buffer = np.empty(size + TILE, np.float32)
    skip = -(buffer.ctypes.data // 4) % TILE
    return buffer[skip : skip + size]


@kernel(fastmath=True, inline=True)
def _tile(t: int, width: int, height: int) -> tuple[int, int, int]:
    """Tile index over all views -> view, left, top in pixels."""
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    b, tile = t // (tiles_x * tiles_y), t % (tiles_x * tiles_y)
    return b, (tile % tiles_x) * TILE, (tile // tiles_x) * TILE


@kernel(fastmath=True)
def _blend_tile(
    records: Floats, ids: Ids, left: int, top: int, width: int, height: int, pixels: Floats
) -> None:
    pixels[:] = ZERO
    pixels[:PIXELS], pixels[STOP:] = ONE, OUTSIDE
    for j in range(min(TILE, height - top)):
        for i in range(min(TILE, width - left)):
            pixels[_block_of(i, j) + STOP] = NEVER
    open = _open(pixels, STOP, OUTSIDE)
    x0, y0 = f32(left) + f32(0.5), f32(top) + f32(0.5)
    for k in range(ids.shape[0]):
        n = ids[k]
        dx, dy = x0 - records[n, 0], y0 - records[n, 1]
        p = records[n, 2]
        q = records[n, 3]
        s = records[n, 4]
        opacity = records[n, 5]
        strength = records[n, 10]
        r, g, b, z = records[n, 6], records[n, 7], records[n, 8], records[n, 9]
        mask = _blocks(records, n, left, top, dx, dy, open)
        while mask:
            m = _lowest_bit(mask)
            mask &= mask - 1
            x, y = _corner(m, dx, dy)
            _blend_block(pixels, m, f32(k), p * x + q * y, s * y, p, q, s, strength, opacity, r, g, b, z)
        if k % CHECK == CHECK - 1:
            open = _open(pixels, STOP, f32(k))
            if not open:
                break


@kernel(fastmath=True, allocates=True)
def blend(
    first: int,
    end: int,
    records: Floats,
    pairs: Ids,
    offsets: Counts,
    background: Floats,
    rgb: Floats,
    alpha: Floats,
    depth: Floats,
    remaining: Floats,
    stop: Floats,
) -> None:
    """Writes rgb (B, H, W, 3); alpha, depth, remaining (transmittance) and stop (B, H, W, 1).

    remaining and stop are kept for the backward pass. Job t is a tile index over all views; its Gaussians are
    pairs[offsets[t] : offsets[t + 1]], front to back.
    """
    _, height, width, _ = stop.shape
    pixels = _scratch(6 * PIXELS)
    for t in range(first, end):
        b, left, top = _tile(t, width, height)
        _blend_tile(records, pairs[offsets[t] : offsets[t + 1]], left, top, width, height, pixels)
        for j in range(min(TILE, height - top)):
            for i in range(min(TILE, width - left)):
                at, y, x = _block_of(i, j), top + j, left + i
                T = pixels[at]
                for c in range(3):
                    rgb[b, y, x, c] = pixels[at + (1 + c) * PIXELS] + T * background[b, c]
                alpha[b, y, x, 0], depth[b, y, x, 0] = ONE - T, pixels[at + 4 * PIXELS]
                remaining[b, y, x, 0], stop[b, y, x, 0] = T, pixels[at + STOP]


@kernel(fastmath=True)
def _blend_block_backward(
    pixels: Floats,
    m: int,
    k: f32,
    dx: f32,
    dy: f32,
    p: f32,
    q: f32,
    s: f32,
    strength: f32,
    opacity: f32,
    r: f32,
    g: f32,
    b: f32,
    z: f32,
) -> None:
    """Backward pass of Gaussian k in block m. dx, dy: from the mean to the block's first pixel.

    pixels: planes T, behind, gradients of r g b z, stop. T and behind are set back to their values before
    this Gaussian. behind = sum over the Gaussians behind of weight * <color, gradient>. The rows of lanes at
    SUMS_AT accumulate weight * gradient (4) and, with G = dL/d(log alpha): G, G dy, G dy^2, G d, G d dx,
    G d dy.
    """
    at = (m & 15) * LANES
    for i in range(LANES):
        x, y = dx + f32(i % SIDE), dy + f32(i // SIDE)
        d, e = p * x + q * y, s * y
        power = d * d + e * e
        hit = (power <= strength) & (pixels[at + i + STOP_BACK] > k)
        raw = opacity * _exp_minus(power)
        raw = raw if hit else ZERO
        alpha = min(raw, CEILING)
        inverse = ONE / (ONE - alpha)
        T, behind = pixels[at + i] * inverse, pixels[at + i + PIXELS]
        gr, gg = pixels[at + i + 2 * PIXELS], pixels[at + i + 3 * PIXELS]
        gb, gz = pixels[at + i + 4 * PIXELS], pixels[at + i + 5 * PIXELS]
        w = alpha * T
        seen = r * gr + g * gg + b * gb + z * gz
        G = (seen * T - behind * inverse) * alpha
        G = G if raw < CEILING else ZERO
        pixels[at + i] = T
        pixels[at + i + PIXELS] = behind + w * seen
        pixels[i + SUMS_AT] += w * gr
        pixels[i + SUMS_AT + LANES] += w * gg
        pixels[i + SUMS_AT + 2 * LANES] += w * gb
        pixels[i + SUMS_AT + 3 * LANES] += w * gz
        pixels[i + SUMS_AT + 4 * LANES] += G
        pixels[i + SUMS_AT + 5 * LANES] += G * y
        pixels[i + SUMS_AT + 6 * LANES] += G * y * y
        pixels[i + SUMS_AT + 7 * LANES] += G * d
        pixels[i + SUMS_AT + 8 * LANES] += G * d * x
        pixels[i + SUMS_AT + 9 * LANES] += G * d * y


@kernel(fastmath=True)
def _sum(pixels: Floats, row: int) -> f32:
    total = ZERO
    for i in range(LANES):
        total += pixels[SUMS_AT + row * LANES + i]
    return total


@kernel(fastmath=True)
def _pair_backward(
    records: Floats, n: int, pixels: Floats, k: f32, left: int, top: int, open: int, slots: Floats, slot: int
) -> None:
    """Sum over the `open` blocks of one (tile, Gaussian) pair -> its gradients in slots[slot]."""
    p, q, s, opacity, strength = records[n, 2], records[n, 3], records[n, 4], records[n, 5], records[n, 10]
    r, g, b, z = records[n, 6], records[n, 7], records[n, 8], records[n, 9]
    dx, dy = f32(left) + f32(0.5) - records[n, 0], f32(top) + f32(0.5) - records[n, 1]
    mask = _blocks(records, n, left, top, dx, dy, open)
    if not mask:
        return
    pixels[SUMS_AT:] = ZERO
    while mask:
        m = _lowest_bit(mask)
        mask &= mask - 1
        x, y = _corner(m, dx, dy)
        _blend_block_backward(pixels, m, k, x, y, p, q, s, strength, opacity, r, g, b, z)
    for c in range(4):
        slots[slot, 6 + c] = _sum(pixels, c)
    G, Gy, Gyy = _sum(pixels, 4), _sum(pixels, 5), _sum(pixels, 6)
    Gd, Gdx, Gdy = _sum(pixels, 7), _sum(pixels, 8), _sum(pixels, 9)
    # log alpha = log opacity - (p dx + q dy)^2 - (s dy)^2
    slots[slot, 0], slots[slot, 1] = TWO * p * Gd, TWO * (q * Gd + s * s * Gy)
    slots[slot, 2], slots[slot, 3], slots[slot, 4] = -TWO * Gdx, -TWO * Gdy, -TWO * s * Gyy
    slots[slot, 5] = G / opacity


@kernel(fastmath=True)
def _load_tile(
    b: int,
    left: int,
    top: int,
    background: Floats,
    remaining: Floats,
    stop: Floats,
    g_rgb: Floats,
    g_alpha: Floats,
    g_depth: Floats,
    pixels: Floats,
) -> f32:
    """Fill the planes of `_blend_block_backward` for one tile of view b; returns its largest stop."""
    _, height, width, _ = stop.shape
    pixels[:] = ZERO
    pixels[:PIXELS], pixels[STOP_BACK:SUMS_AT] = ONE, OUTSIDE
    latest = ZERO
    for j in range(min(TILE, height - top)):
        for i in range(min(TILE, width - left)):
            at, y, x = _block_of(i, j), top + j, left + i
            g_remaining, T, stopped = -g_alpha[b, y, x, 0], remaining[b, y, x, 0], stop[b, y, x, 0]
            for c in range(3):
                g_remaining += g_rgb[b, y, x, c] * background[b, c]
                pixels[at + (2 + c) * PIXELS] = g_rgb[b, y, x, c]
            pixels[at], pixels[at + PIXELS] = T, g_remaining * T
            pixels[at + 5 * PIXELS], pixels[at + STOP_BACK] = g_depth[b, y, x, 0], stopped
            latest = max(latest, stopped)
    return latest


@kernel(fastmath=True, allocates=True)
def blend_backward(
    first: int,
    end: int,
    records: Floats,
    pairs: Ids,
    offsets: Counts,
    rects: NDArray[np.int32],
    starts: Counts,
    background: Floats,
    remaining: Floats,
    stop: Floats,
    g_rgb: Floats,
    g_alpha: Floats,
    g_depth: Floats,
    slots: Floats,
) -> None:
    """Backward pass, back to front -> slots (pairs, GRADIENTS), which must be zeroed before.

    Each pair has its own slot, so no two threads write to the same one. starts (M,): first slot of each
    Gaussian.
    """
    _, height, width, _ = stop.shape
    pixels = _scratch(SUMS_AT + SUMS * LANES)
    for t in range(first, end):
        b, left, top = _tile(t, width, height)
        latest = _load_tile(b, left, top, background, remaining, stop, g_rgb, g_alpha, g_depth, pixels)
        last, open = min(offsets[t + 1] - offsets[t], int(latest)) - 1, 0
        for k in range(last, -1, -1):
            if k == last or k % CHECK == CHECK - 1:
                open = _open(pixels, STOP_BACK, f32(k - k % CHECK))
            n = pairs[offsets[t] + k]
            slot = (
                starts[n]
                + (top // TILE - rects[n, 2]) * (rects[n, 1] - rects[n, 0])
                + left // TILE
                - rects[n, 0]
            )
            _pair_backward(records, n, pixels, f32(k), left, top, open, slots, slot)


@kernel()
def reduce(
    first: int, end: int, slots: Floats, starts: Counts, touched: Counts, g_means2d: Floats, g_records: Floats
) -> None:
    """Sum the slots of each Gaussian, in order -> gradients of means2d (M, 2) and records (M, RECORD).

    They are 0 for culled Gaussians.
    """
    for i in range(first, end):
        g_records[i] = 0
        for slot in range(starts[i], starts[i] + touched[i]):
            for c in range(GRADIENTS):
                g_records[i, c] += slots[slot, c]
        g_means2d[i, 0], g_means2d[i, 1] = g_records[i, 0], g_records[i, 1]
