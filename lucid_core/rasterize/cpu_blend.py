"""CPU kernels, 3 of 3: blending sorted splats into 16x16 tiles, and its gradient.

The inner loops are rows of 16 pixels over one flat scratch buffer at constant offsets, which LLVM turns into
vector code. fastmath is safe here: projection lets only finite, bounded splats through.
"""

from __future__ import annotations

import numpy as np

from .cpu_bins import TILE
from .jit import kernel
from .limits import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

f32 = np.float32
PIXELS = TILE * TILE
GRADIENTS = 10  # per pair: mean x y, factor p q r, opacity, r g b z
SUMS, SUMS_AT = 9, 7 * PIXELS  # rows of lanes in which the gradient of a pair gathers, and where they begin
CHECK = 8  # splats between two looks at whether the whole tile is opaque
NEVER, OUTSIDE = f32(2**30), f32(-1)  # a stop beyond every k; kept as float32 beside the pixels, exact to 2**24
THRESHOLD, CEILING, FLOOR = f32(ALPHA_MIN), f32(ALPHA_MAX), f32(TRANSMITTANCE_MIN)
ZERO, ONE, TWO = f32(0), f32(1), f32(2)
# exp(x) = poly(x / 8)**8 on [-5.6, 0], relative error 2e-6; below, alpha is under 1/255 whatever the opacity
LOWEST, EIGHTH = f32(-5.6), f32(0.125)
E0, E1, E2 = f32(0.9999999403953552), f32(0.9999925494194031), f32(0.4998825788497925)
E3, E4, E5 = f32(0.1659739762544632), f32(0.03977256268262863), f32(0.005846760235726833)


@kernel(fastmath=True, inline=True)
def _exp(x):
    y = max(min(x, ZERO), LOWEST) * EIGHTH
    e = ((((E5 * y + E4) * y + E3) * y + E2) * y + E1) * y + E0
    e = e * e
    e = e * e
    return e * e


@kernel(fastmath=True, inline=True)
def _rows(records, n, top):
    """Rows of the tile that begins at `top` where the splat's alpha can reach 1/255."""
    return max(int(records[n, 11]) - top, 0), min(int(records[n, 12]) - top, TILE)


@kernel(fastmath=True, inline=True)
def _row_misses(u, p, drop, strength):
    """Whether alpha stays under 1/255 in all 16 pixels; u is p dx + q dy at the first, drop is r dy^2."""
    nearest = max(max(u, -(u + f32(TILE - 1) * p)), ZERO)
    return nearest * nearest + drop > strength + f32(1e-3)


@kernel(fastmath=True)
def _blend_row(pixels, row, k, u, p, drop, opacity, r, g, b, z):
    """pixels holds the tile's planes T r g b z stop; stop is the k that made a pixel opaque."""
    at = (row & (TILE - 1)) * TILE
    for i in range(TILE):
        d = u + p * f32(i)
        alpha = min(opacity * _exp(-d * d - drop), CEILING)
        T = pixels[at + i]
        after = T - alpha * T
        stop = pixels[at + i + 5 * PIXELS]
        hit = (alpha >= THRESHOLD) & (stop > k)
        pixels[at + i + 5 * PIXELS] = k if hit & (after <= FLOOR) else stop
        w = alpha * T if hit & (after > FLOOR) else ZERO
        pixels[at + i] = T - w
        pixels[at + i + PIXELS] += w * r
        pixels[at + i + 2 * PIXELS] += w * g
        pixels[at + i + 3 * PIXELS] += w * b
        pixels[at + i + 4 * PIXELS] += w * z


@kernel(fastmath=True)
def _all_stopped(pixels, k):
    """Looks row by row, so that it mostly ends at the first."""
    for j in range(TILE):
        alive = ZERO
        for i in range(TILE):
            alive += ONE if pixels[j * TILE + i + 5 * PIXELS] > k else ZERO
        if alive > ZERO:
            return False
    return True


@kernel(allocates=True)
def _scratch(size):
    """(size,) float32 that begins where a cache line does: a row is one, and one across two costs twice."""
    buffer = np.empty(size + TILE, np.float32)
    skip = -(buffer.ctypes.data // 4) % TILE
    return buffer[skip : skip + size]


@kernel(fastmath=True, inline=True)
def _tile(t, width, height):
    """Number among all views' tiles -> view, left, top in pixels."""
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    b, tile = t // (tiles_x * tiles_y), t % (tiles_x * tiles_y)
    return b, (tile % tiles_x) * TILE, (tile // tiles_x) * TILE


@kernel(fastmath=True)
def _blend_tile(records, ids, left, top, width, height, pixels):
    pixels[:] = ZERO
    pixels[:PIXELS], pixels[5 * PIXELS :] = ONE, OUTSIDE
    for j in range(min(TILE, height - top)):
        for i in range(min(TILE, width - left)):
            pixels[j * TILE + i + 5 * PIXELS] = NEVER
    x0, y0 = f32(left) + f32(0.5), f32(top) + f32(0.5)
    for k in range(ids.shape[0]):
        n = ids[k]
        p, q, r, opacity, strength = records[n, 2], records[n, 3], records[n, 4], records[n, 5], records[n, 10]
        first, end = _rows(records, n, top)
        for j in range(first, end):
            dy = y0 + f32(j) - records[n, 1]
            u, drop = p * (x0 - records[n, 0]) + q * dy, r * dy * dy
            if not _row_misses(u, p, drop, strength):
                _blend_row(pixels, j, f32(k), u, p, drop, opacity, records[n, 6], records[n, 7], records[n, 8], records[n, 9])
        if k % CHECK == CHECK - 1 and _all_stopped(pixels, f32(k)):
            break


@kernel(fastmath=True, allocates=True)
def blend(first, end, records, pairs, offsets, background, rgb, alpha, depth, remaining, stop):
    """-> rgb (B, H, W, 3); alpha, depth, remaining (transmittance) and stop (B, H, W), the last two for the gradient.

    A job t is one of all views' tiles; its splats are pairs[offsets[t] : offsets[t + 1]], front to back.
    """
    _, height, width = stop.shape
    pixels = _scratch(6 * PIXELS)
    for t in range(first, end):
        b, left, top = _tile(t, width, height)
        _blend_tile(records, pairs[offsets[t] : offsets[t + 1]], left, top, width, height, pixels)
        for j in range(min(TILE, height - top)):
            for i in range(min(TILE, width - left)):
                at, y, x = j * TILE + i, top + j, left + i
                T = pixels[at]
                for c in range(3):
                    rgb[b, y, x, c] = pixels[at + (1 + c) * PIXELS] + T * background[b, c]
                alpha[b, y, x], depth[b, y, x] = ONE - T, pixels[at + 4 * PIXELS]
                remaining[b, y, x], stop[b, y, x] = T, pixels[at + 5 * PIXELS]


@kernel(fastmath=True)
def _blend_row_backward(pixels, row, k, dy, u, p, drop, opacity, r, g, b, z):
    """pixels holds planes T, behind, the gradients of r g b z, and stop; T and behind step back to before this splat.

    behind = sum over what lies behind of weight * <color, gradient>. After the planes come SUMS rows of 16 lanes that
    gather weight * gradient (4) and, with G = dL/d(log alpha): G, G dy, G dy^2, G d, G d dy (d = u + p i).
    """
    at = (row & (TILE - 1)) * TILE
    for i in range(TILE):
        d = u + p * f32(i)
        raw = opacity * _exp(-d * d - drop)
        alpha = min(raw, CEILING)
        alpha = alpha if (alpha >= THRESHOLD) & (pixels[at + i + 6 * PIXELS] > k) else ZERO
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
        pixels[i + SUMS_AT + TILE] += w * gg
        pixels[i + SUMS_AT + 2 * TILE] += w * gb
        pixels[i + SUMS_AT + 3 * TILE] += w * gz
        pixels[i + SUMS_AT + 4 * TILE] += G
        pixels[i + SUMS_AT + 5 * TILE] += G * dy
        pixels[i + SUMS_AT + 6 * TILE] += G * dy * dy
        pixels[i + SUMS_AT + 7 * TILE] += G * d
        pixels[i + SUMS_AT + 8 * TILE] += G * d * dy


@kernel(fastmath=True)
def _sum(pixels, row):
    """A row of sums -> its total, and the total of lane * sum."""
    total, moment = ZERO, ZERO
    for i in range(TILE):
        value = pixels[SUMS_AT + row * TILE + i]
        total += value
        moment += value * f32(i)
    return total, moment


@kernel(fastmath=True)
def _pair_backward(records, n, pixels, k, left, top, slots, slot):
    """All rows of one (tile, splat) pair -> its GRADIENTS."""
    p, q, r, opacity, strength = records[n, 2], records[n, 3], records[n, 4], records[n, 5], records[n, 10]
    dx, y0 = f32(left) + f32(0.5) - records[n, 0], f32(top) + f32(0.5)
    pixels[SUMS_AT:] = ZERO
    first, end = _rows(records, n, top)
    for j in range(first, end):
        dy = y0 + f32(j) - records[n, 1]
        u, drop = p * dx + q * dy, r * dy * dy
        if not _row_misses(u, p, drop, strength):
            _blend_row_backward(
                pixels, j, k, dy, u, p, drop, opacity, records[n, 6], records[n, 7], records[n, 8], records[n, 9]
            )
    for c in range(4):
        slots[slot, 6 + c] = _sum(pixels, c)[0]
    G, Gy, Gyy = _sum(pixels, 4)[0], _sum(pixels, 5)[0], _sum(pixels, 6)[0]
    Gd, Gdi = _sum(pixels, 7)
    Gdy = _sum(pixels, 8)[0]
    # log alpha = log opacity - d^2 - r dy^2, with d = p dx + q dy
    slots[slot, 0], slots[slot, 1] = TWO * p * Gd, TWO * (q * Gd + r * Gy)
    slots[slot, 2], slots[slot, 3], slots[slot, 4] = -TWO * (dx * Gd + Gdi), -TWO * Gdy, -Gyy
    slots[slot, 5] = G / opacity


@kernel(fastmath=True)
def _load_tile(b, left, top, background, remaining, stop, g_rgb, g_alpha, g_depth, pixels):
    """Fill the planes of `_blend_row_backward` for one tile of view b; returns its latest stop."""
    _, height, width = stop.shape
    pixels[:] = ZERO
    pixels[:PIXELS], pixels[6 * PIXELS : SUMS_AT] = ONE, OUTSIDE
    latest = ZERO
    for j in range(min(TILE, height - top)):
        for i in range(min(TILE, width - left)):
            at, y, x = j * TILE + i, top + j, left + i
            g_remaining = -g_alpha[b, y, x]
            for c in range(3):
                g_remaining += g_rgb[b, y, x, c] * background[b, c]
                pixels[at + (2 + c) * PIXELS] = g_rgb[b, y, x, c]
            pixels[at], pixels[at + PIXELS] = remaining[b, y, x], g_remaining * remaining[b, y, x]
            pixels[at + 5 * PIXELS], pixels[at + 6 * PIXELS] = g_depth[b, y, x], stop[b, y, x]
            latest = max(latest, stop[b, y, x])
    return latest


@kernel(fastmath=True, allocates=True)
def blend_backward(
    first, end, records, pairs, offsets, rects, starts, background, remaining, stop, g_rgb, g_alpha, g_depth, slots
):
    """Back to front -> slots (pairs, GRADIENTS), zeroed before; each pair's is its own, so no two threads add to one.

    starts (M,): a splat's first slot.
    """
    _, height, width = stop.shape
    pixels = _scratch(SUMS_AT + SUMS * TILE)
    for t in range(first, end):
        b, left, top = _tile(t, width, height)
        latest = _load_tile(b, left, top, background, remaining, stop, g_rgb, g_alpha, g_depth, pixels)
        count = offsets[t + 1] - offsets[t]
        for k in range(min(count, int(latest)) - 1, -1, -1):
            n = pairs[offsets[t] + k]
            slot = starts[n] + (top // TILE - rects[n, 2]) * (rects[n, 1] - rects[n, 0]) + left // TILE - rects[n, 0]
            _pair_backward(records, n, pixels, f32(k), left, top, slots, slot)


@kernel(allocates=True)
def reduce(first, end, slots, starts, touched, g_means2d, g_factors, g_features, g_opacities):
    """Add up each splat's slots, in order -> gradients (B, N, ...), of the opacities (N,). A job is a splat."""
    views, n, _ = g_means2d.shape
    total = np.empty(GRADIENTS, np.float32)
    for i in range(first, end):
        g_opacities[i] = 0
        for b in range(views):
            total[:] = 0
            at = starts[b * n + i]
            for slot in range(at, at + touched[b * n + i]):
                for c in range(GRADIENTS):
                    total[c] += slots[slot, c]
            g_means2d[b, i, 0], g_means2d[b, i, 1] = total[0], total[1]
            g_factors[b, i, 0], g_factors[b, i, 1], g_factors[b, i, 2] = total[2], total[3], total[4]
            g_opacities[i] += total[5]
            for c in range(4):
                g_features[b, i, c] = total[6 + c]
