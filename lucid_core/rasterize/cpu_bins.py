"""CPU kernels, 2 of 3: lists of Gaussians per 16x16 tile, front to back.

One radix sort by depth per view is followed by a stable counting sort into tiles. Each (tile, Gaussian) pair
has its own gradient slot. The slots of a Gaussian are contiguous, row by row of its tile rectangle, so their
indices are computed and not stored.

Ids index the Gaussians of all views: M = B * N, and the ids of view b start at b * N.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import kernel

Ids = NDArray[np.int32]  # of Gaussians
Counts = NDArray[np.int64]  # and sums of counts

TILE = 16
# floats per record, which fill one cache line: mean x y, factor p q s, opacity, r g b z, log(255 opacity),
# box x0 x1 y0 y1
RECORD = 16
RADIX_BITS = 11  # three passes over 32 bits


@kernel(allocates=True)
def _radix_sort(keys: NDArray[np.uint32], ids: Ids) -> Ids:
    """ids sorted by their uint32 keys; stable. Both inputs are overwritten."""
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
def sort(first: int, end: int, depth_keys: NDArray[np.uint32], order: Ids, shown: Counts) -> None:
    """For views first to end: order[b, :shown[b]] are the ids that touch a tile, sorted by depth.

    order (B, N), shown (B,). depth_keys (B, N): bits of float32 z, monotonic for z > 0; 0 = no tile touched.
    """
    n = depth_keys.shape[1]
    for b in range(first, end):
        ids, keys, found = np.empty(n, np.int32), np.empty(n, np.uint32), 0
        for i in range(n):
            if depth_keys[b, i]:
                ids[found], keys[found] = b * n + i, depth_keys[b, i]
                found += 1
        order[b, :found] = _radix_sort(keys[:found], ids[:found])
        shown[b] = found


@kernel(allocates=True)
def count(first: int, end: int, rects: NDArray[np.int32], band: int, counts: Counts) -> None:
    """counts (B, tiles_y, tiles_x): number of pairs per tile. A job is `band` tile rows of one view.

    Each rectangle adds four values to a 2D difference array, whose prefix sum gives the counts without
    branches.
    """
    views, tiles_y, tiles_x = counts.shape
    bands, n = (tiles_y + band - 1) // band, rects.shape[0] // views
    for job in range(first, end):
        b, top = job // bands, (job % bands) * band
        bottom = min(top + band, tiles_y)
        steps = np.zeros((bottom - top + 1, tiles_x + 1), np.int64)
        for i in range(b * n, (b + 1) * n):
            x0, x1 = rects[i, 0], rects[i, 1]
            y0, y1 = min(max(rects[i, 2], top), bottom) - top, min(max(rects[i, 3], top), bottom) - top
            steps[y0, x0] += 1
            steps[y0, x1] -= 1
            steps[y1, x0] -= 1
            steps[y1, x1] += 1
        for y in range(bottom - top):
            along = 0
            for x in range(tiles_x):
                along += steps[y, x]
                counts[b, top + y, x] = along + (counts[b, top + y - 1, x] if y else 0)


@kernel()
def fill(
    first: int,
    end: int,
    rects: NDArray[np.int32],
    order: Ids,
    shown: Counts,
    band: int,
    cursors: Counts,
    pairs: Ids,
) -> None:
    """pairs: ids by tile, front to back. cursors (B, tiles_y, tiles_x) move from start to end of a tile."""
    _, tiles_y, _ = cursors.shape
    bands = (tiles_y + band - 1) // band
    for job in range(first, end):
        b, top = job // bands, (job % bands) * band
        for s in range(shown[b]):
            i = order[b, s]
            for y in range(max(rects[i, 2], top), min(rects[i, 3], top + band)):
                for x in range(rects[i, 0], rects[i, 1]):
                    pairs[cursors[b, y, x]] = i
                    cursors[b, y, x] += 1
