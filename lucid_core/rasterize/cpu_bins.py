"""CPU kernels, 2 of 3: which splats touch which 16x16 tile, front to back.

One radix sort by depth per view, then a counting sort into tiles, which keeps the order. A (tile, splat) pair owns a
gradient slot; the slots of a splat are neighbours, row by row of its rectangle of tiles, so nobody has to store them.

Ids count the splats of all views: M = B * N, view b's begin at b * N.
"""

from __future__ import annotations

import numpy as np

from .jit import kernel

TILE = 16
# what blending reads of a splat: mean x y, factor p q s, opacity, r g b z, log(255 opacity), box x0 x1 y0 y1; a cache line
RECORD = 16
RADIX_BITS = 11  # three passes over 32 bits


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
def sort(first, end, records, touched, order, shown):
    """For views first to end: order (B, N) begins with the `shown` (B,) ids that touch a tile, by depth.

    The keys are the bits of float32 z, which grow with z > 0; touched is (B, N) here.
    """
    n = touched.shape[1]
    for b in range(first, end):
        ids, keys, found = np.empty(n, np.int32), np.empty(n, np.uint32), 0
        for i in range(n):
            if touched[b, i]:
                ids[found], keys[found] = b * n + i, records[b * n + i, 9]
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
