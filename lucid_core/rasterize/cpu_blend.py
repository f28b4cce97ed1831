"""CPU kernels, 3 of 3: blending sorted splats into 16x16 tiles, and its gradient.

The inner loops are rows of 16 pixels over one flat scratch buffer at constant offsets, which LLVM turns into
vector code. fastmath is safe here: projection lets only finite, bounded splats through.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .cpu_bins import TILE
from .jit import kernel
from .limits import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

f32 = np.float32
PIXELS = TILE * TILE
GRADIENTS = 10  # per pair: mean x y, factor p q r, opacity, r g b z
CHECK = 8  # splats between two looks at whether the whole tile is opaque
NEVER = np.int32(2**31 - 1)
THRESHOLD, CEILING, FLOOR = f32(ALPHA_MIN), f32(ALPHA_MAX), f32(TRANSMITTANCE_MIN)
ZERO, ONE, TWO = f32(0), f32(1), f32(2)
# exp(x) = poly(x / 8)**8 on [-5.6, 0], relative error 2e-6; below, alpha is under 1/255 whatever the opacity
LOWEST, EIGHTH = f32(-5.6), f32(0.125)
E0, E1, E2 = f32(0.9999999403953552), f32(0.9999925494194031), f32(0.4998825788497925)
E3, E4, E5 = f32(0.1659739762544632), f32(0.03977256268262863), f32(0.005846760235726833)


@kernel(fastmath=True)
def _exp(x):
    y = max(min(x, ZERO), LOWEST) * EIGHTH
    e = ((((E5 * y + E4) * y + E3) * y + E2) * y + E1) * y + E0
    e = e * e
    e = e * e
    return e * e


@kernel(fastmath=True)
def _rows(record, y0):
    """Rows of the tile that begins at y0 where the splat's alpha can reach 1/255."""
    center = record[1] - y0
    first, end = math.ceil(center - record[11]), math.floor(center + record[11]) + ONE
    return int(max(min(first, f32(TILE)), ZERO)), int(min(max(end, ZERO), f32(TILE)))


@kernel(fastmath=True)
def _row_misses(u, p, drop, strength):
    """Whether alpha stays under 1/255 in all 16 pixels; u is p dx + q dy at the first, drop is r dy^2."""
    nearest = max(max(u, -(u + f32(TILE - 1) * p)), ZERO)
    return nearest * nearest + drop > strength + f32(1e-3)


@kernel(fastmath=True)
def _blend_row(pixels, stops, at, k, u, p, drop, opacity, r, g, b, z):
    """pixels holds planes T r g b z of the tile; stops, the k that made a pixel opaque."""
    for i in range(TILE):
        d = u + p * f32(i)
        alpha = min(opacity * _exp(-d * d - drop), CEILING)
        T = pixels[at + i]
        after = T - alpha * T
        hit = (alpha >= THRESHOLD) & (stops[at + i] > k)
        stops[at + i] = k if hit & (after <= FLOOR) else stops[at + i]
        w = alpha * T if hit & (after > FLOOR) else ZERO
        pixels[at + i] = T - w
        pixels[at + i + PIXELS] += w * r
        pixels[at + i + 2 * PIXELS] += w * g
        pixels[at + i + 3 * PIXELS] += w * b
        pixels[at + i + 4 * PIXELS] += w * z


@kernel(fastmath=True)
def _all_stopped(stops, k):
    latest = stops[0]
    for i in range(PIXELS):
        latest = max(latest, stops[i])
    return latest <= k


@kernel(parallel=True, fastmath=True)
def blend(records, pair_splat, offsets, background, width, height, tiles_x, tiles_y, rgb, alpha, depth, remaining, stop):
    """-> rgb (B, H, W, 3), alpha, depth, remaining transmittance and stop (B, H, W); the last two for `blend_backward`."""
    tiles = tiles_x * tiles_y
    for job in prange(records.shape[0] * tiles):
        b, tile = job // tiles, job % tiles
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        x0, y0 = f32(left) + f32(0.5), f32(top) + f32(0.5)
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        pixels, stops = np.zeros(5 * PIXELS, np.float32), np.full(PIXELS, np.int32(-1))
        pixels[:PIXELS] = ONE
        for j in range(rows):
            for i in range(columns):
                stops[j * TILE + i] = NEVER
        first = offsets[job]
        for k in range(offsets[job + 1] - first):
            record = records[b, pair_splat[first + k]]
            p, q, opacity, strength = record[2], record[3], record[5], record[10]
            row, end = _rows(record, y0)
            for j in range(row, end):
                dy = y0 + f32(j) - record[1]
                u, drop = p * (x0 - record[0]) + q * dy, record[4] * dy * dy
                if _row_misses(u, p, drop, strength):
                    continue
                _blend_row(
                    pixels, stops, j * TILE, np.int32(k), u, p, drop, opacity, record[6], record[7], record[8], record[9]
                )  # fmt: skip
            if k % CHECK == CHECK - 1 and _all_stopped(stops, k):
                break
        for j in range(rows):
            for i in range(columns):
                at, y, x = j * TILE + i, top + j, left + i
                T = pixels[at]
                for c in range(3):
                    rgb[b, y, x, c] = pixels[at + (1 + c) * PIXELS] + T * background[b, c]
                alpha[b, y, x], depth[b, y, x], remaining[b, y, x] = ONE - T, pixels[at + 4 * PIXELS], T
                stop[b, y, x] = stops[at]


@kernel(fastmath=True)
def _blend_row_backward(pixels, stops, at, k, u, p, drop, opacity, r, g, b, z):
    """pixels holds planes T, behind, and the gradients of r g b z; T and behind step back to before this splat.

    behind = sum over what lies behind of weight * <color, gradient>. Returns the row's sums of weight * gradient
    (4) and, with G = dL/d(log alpha): G, G d, G d i (d = u + p i).
    """
    sr, sg, sb, sz, s0, s1, s2 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for i in range(TILE):
        lane = f32(i)
        d = u + p * lane
        raw = opacity * _exp(-d * d - drop)
        alpha = min(raw, CEILING)
        alpha = alpha if (alpha >= THRESHOLD) & (stops[at + i] > k) else ZERO
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
        sr += w * gr
        sg += w * gg
        sb += w * gb
        sz += w * gz
        s0 += G
        s1 += G * d
        s2 += G * d * lane
    return sr, sg, sb, sz, s0, s1, s2


@kernel(parallel=True, fastmath=True)
def blend_backward(
    records, pair_splat, pair_slot, offsets, background, width, height, tiles_x, tiles_y, remaining, stop,
    g_rgb, g_alpha, g_depth, slots,
):  # fmt: skip
    """Back to front -> slots (pairs, GRADIENTS); a pair's slot is its own, so no two threads add to one number."""
    tiles = tiles_x * tiles_y
    for job in prange(records.shape[0] * tiles):
        b, tile = job // tiles, job % tiles
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        x0, y0 = f32(left) + f32(0.5), f32(top) + f32(0.5)
        pixels, stops = np.zeros(6 * PIXELS, np.float32), np.full(PIXELS, np.int32(-1))
        pixels[:PIXELS] = ONE
        latest = np.int32(-1)
        for j in range(min(TILE, height - top)):
            for i in range(min(TILE, width - left)):
                at, y, x = j * TILE + i, top + j, left + i
                stops[at], pixels[at] = stop[b, y, x], remaining[b, y, x]
                latest = max(latest, stops[at])
                g_remaining = -g_alpha[b, y, x]
                for c in range(3):
                    g_remaining += g_rgb[b, y, x, c] * background[b, c]
                    pixels[at + (2 + c) * PIXELS] = g_rgb[b, y, x, c]
                pixels[at + PIXELS] = g_remaining * pixels[at]
                pixels[at + 5 * PIXELS] = g_depth[b, y, x]
        first = offsets[job]
        for k in range(min(offsets[job + 1] - first, latest) - 1, -1, -1):
            record, slot = records[b, pair_splat[first + k]], slots[pair_slot[first + k]]
            p, q, strength = record[2], record[3], record[10]
            dx = x0 - record[0]
            sr, sg, sb, sz, s0 = ZERO, ZERO, ZERO, ZERO, ZERO
            gx, gy, gp, gq, gr = ZERO, ZERO, ZERO, ZERO, ZERO
            row, end = _rows(record, y0)
            for j in range(row, end):
                dy = y0 + f32(j) - record[1]
                u, drop = p * dx + q * dy, record[4] * dy * dy
                if _row_misses(u, p, drop, strength):
                    continue
                sums = _blend_row_backward(
                    pixels, stops, j * TILE, np.int32(k), u, p, drop, record[5],
                    record[6], record[7], record[8], record[9],
                )  # fmt: skip
                sr += sums[0]
                sg += sums[1]
                sb += sums[2]
                sz += sums[3]
                s0 += sums[4]
                gx += p * sums[5]
                gy += q * sums[5] + record[4] * dy * sums[4]
                gp -= dx * sums[5] + sums[6]
                gq -= dy * sums[5]
                gr -= dy * dy * sums[4]
            slot[0], slot[1], slot[2], slot[3], slot[4] = TWO * gx, TWO * gy, TWO * gp, TWO * gq, gr
            slot[5], slot[6], slot[7], slot[8], slot[9] = s0 / record[5], sr, sg, sb, sz


@kernel(parallel=True)
def reduce(slots, order, splat_slots, shown, starts, g_means2d, g_factors, g_features, g_opacities):
    """Add up each splat's slots, in order -> gradients per view (B, N, ...); outputs come zeroed."""
    block = 1024
    blocks = (order.shape[1] + block - 1) // block
    for job in prange(order.shape[0] * blocks):
        b, lowest = job // blocks, (job % blocks) * block
        total = np.empty(GRADIENTS, np.float32)
        for s in range(lowest, min(lowest + block, shown[b])):
            total[:] = 0
            for slot in range(starts[b] + splat_slots[b, s], starts[b] + splat_slots[b, s + 1]):
                for c in range(GRADIENTS):
                    total[c] += slots[slot, c]
            i = order[b, s]
            g_means2d[b, i, 0], g_means2d[b, i, 1] = total[0], total[1]
            g_factors[b, i, 0], g_factors[b, i, 1], g_factors[b, i, 2] = total[2], total[3], total[4]
            g_opacities[b, i] = total[5]
            for c in range(4):
                g_features[b, i, c] = total[6 + c]
