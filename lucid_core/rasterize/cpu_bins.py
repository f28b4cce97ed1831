"""CPU kernels, 2 of 3: which splats touch which 16x16 tile, front to back.

One radix sort by depth per view, then a counting sort into tiles, which keeps the order. A (tile, splat) pair owns a
gradient slot; the slots of a splat are neighbours, row by row of its rectangle of tiles, so nobody has to store them.

Ids count the splats of all views: M = B * N, view b's begin at b * N.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import kernel

TILE = 16
SLACK = 1e-3  # pixels; rounding must not lose one, and blending looks at each anyway
RECORD = 16  # what blending reads: mean x y, factor p q r, opacity, r g b z, log(255 opacity), first row and end; a cache line
RADIX_BITS = 11  # three passes over 32 bits


@kernel(inline=True)
def _half_size(strength, p, q, r, radius_x, radius_y):
    """Half width and height of the ellipse alpha = 1/255, at most the whole-pixel radii (also where p or r is 0)."""
    half_x = math.sqrt(strength * (r + q * q) / r) / p
    half_y = math.sqrt(strength / r)
    return half_x if half_x < radius_x else radius_x, half_y if half_y < radius_y else radius_y


@kernel(inline=True)
def _range(center, half, size):
    """First pixel along one axis whose centre is within `half` of `center`, and the one after the last.

    Clamped to [0, size] as floats, which do not overflow; there a cast rounds down.
    """
    half += SLACK
    first = int(min(max(center - half + 0.5, 0.0), float(size)))
    end = int(min(max(center + half + 0.5, 0.0), float(size)))
    return first, end


@kernel()
def pack(first, end, means2d, factors, features, opacities, radii, width, height, records, rects, touched):
    """-> records (M, RECORD) of what shows; rects (M, 4) tiles x0 x1 y0 y1; touched (M,) how many."""
    n = opacities.shape[0]
    for i in range(first, end):
        record, rect = records[i], rects[i]
        rect[:], touched[i] = 0, 0
        if radii[i, 0] == 0:
            continue
        opacity = opacities[i % n]
        strength = math.log(max(opacity * 255.0, 1.0))
        p, q, r = float(factors[i, 0]), float(factors[i, 1]), float(factors[i, 2])
        half_x, half_y = _half_size(strength, p, q, r, float(radii[i, 0]), float(radii[i, 1]))
        record[0], record[1] = means2d[i, 0], means2d[i, 1]
        record[2], record[3], record[4], record[5] = p, q, r, opacity
        for c in range(4):
            record[6 + c] = features[i, c]
        x0, x1 = _range(float(record[0]), half_x, width)
        y0, y1 = _range(float(record[1]), half_y, height)
        record[10], record[11], record[12] = strength, y0, y1
        if x0 < x1 and y0 < y1:
            rect[0], rect[1] = x0 // TILE, (x1 - 1) // TILE + 1
            rect[2], rect[3] = y0 // TILE, (y1 - 1) // TILE + 1
            touched[i] = (rect[1] - rect[0]) * (rect[3] - rect[2])


@kernel(allocates=True)
def _radix_sort(keys, ids):
    """ids in the order of their uint32 keys; stable. Both inputs become scratch."""
    keys_out, ids_out = np.empty_like(keys), np.empty_like(ids)
    mask = np.uint32((1 << RADIX_BITS) - 1)
    for step in range(3):
        shift = np.uint32(step * RADIX_BITS)
        starts = np.zeros((1 << RADIX_BITS) + 1, np.int64)
        for key in keys:
            starts[((key >> shift) & mask) + 1] += 1
        for digit in range(1 << RADIX_BITS):
            starts[digit + 1] += starts[digit]
        for i in range(keys.shape[0]):
            digit = (keys[i] >> shift) & mask
            keys_out[starts[digit]], ids_out[starts[digit]] = keys[i], ids[i]
            starts[digit] += 1
        keys, keys_out = keys_out, keys
        ids, ids_out = ids_out, ids
    return ids


@kernel(allocates=True)
def sort(first, end, depth_keys, touched, order, shown):
    """For views first to end: order (B, N) begins with the `shown` (B,) ids that touch a tile, by depth.

    depth_keys (B, N) are the bits of float32 z, which grow with z > 0; touched is (B, N) here.
    """
    n = touched.shape[1]
    for b in range(first, end):
        ids, keys, found = np.empty(n, np.int32), np.empty(n, np.uint32), 0
        for i in range(n):
            if touched[b, i]:
                ids[found], keys[found] = b * n + i, depth_keys[b, i]
                found += 1
        order[b, :found] = _radix_sort(keys[:found], ids[:found])
        shown[b] = found


@kernel()
def count(first, end, rects, band, tiles_x, tiles_y, counts):
    """counts (B, tiles): pairs in each tile; comes zeroed. A job is `band` rows of tiles of a view."""
    views, bands = counts.shape[0], (tiles_y + band - 1) // band
    n = rects.shape[0] // views
    for job in range(first, end):
        b, top = job // bands, (job % bands) * band
        for i in range(b * n, (b + 1) * n):
            for y in range(max(rects[i, 2], top), min(rects[i, 3], top + band)):
                for x in range(rects[i, 0], rects[i, 1]):
                    counts[b, y * tiles_x + x] += 1


@kernel()
def fill(first, end, rects, order, shown, band, tiles_x, tiles_y, cursors, pairs):
    """pairs: ids by tile, front to back. cursors (B, tiles), where each tile's pairs begin, are moved to their ends."""
    bands = (tiles_y + band - 1) // band
    for job in range(first, end):
        b, top = job // bands, (job % bands) * band
        for s in range(shown[b]):
            i = order[b, s]
            for y in range(max(rects[i, 2], top), min(rects[i, 3], top + band)):
                for x in range(rects[i, 0], rects[i, 1]):
                    pairs[cursors[b, y * tiles_x + x]] = i
                    cursors[b, y * tiles_x + x] += 1
