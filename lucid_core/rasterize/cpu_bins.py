"""CPU kernels, 2 of 3: which splats touch which 16x16 tile, front to back.

One radix sort by depth per view; then a counting sort into tiles, which keeps the order.
Splats that show are copied, in depth order, into records; a tile's list holds places in them, so it reads forwards.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .jit import kernel

TILE = 16
RECORD = 12  # mean x y, factor p q r, opacity, r g b z, log(255 opacity), half height
RADIX_BITS = 11  # three passes over 32 bits
LARGEST = 1e9


@kernel()
def _radix_sort(keys, ids):
    """Sort ids by their uint32 keys; stable."""
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


@kernel()
def _tile_range(center, radius, tiles):
    """First tile and the one after the last along one axis; clamped as floats, which do not overflow."""
    first = max(math.floor((center - radius) / TILE), 0.0)
    end = min(math.floor((center + radius) / TILE) + 1.0, float(tiles))
    return int(min(first, float(tiles))), int(max(end, 0.0))


@kernel(parallel=True)
def sort_and_count(means2d, radii, depth_keys, tiles_x, tiles_y, order, slots, counts, shown):
    """Per view: `order` (B, N) ids by depth, `slots` (B, N + 1) running pairs in that order, `counts` (B, tiles)
    pairs per tile, `shown` (B,) how many of `order` count. depth_keys (B, N) are float32 bits, monotone for z > 0."""
    for b in prange(means2d.shape[0]):
        ids = np.nonzero(radii[b, :, 0])[0].astype(np.int32)
        ids = _radix_sort(depth_keys[b][ids], ids)
        shown[b] = ids.shape[0]
        pairs = 0
        for s in range(ids.shape[0]):
            i = ids[s]
            order[b, s] = i
            slots[b, s] = pairs
            x0, x1 = _tile_range(means2d[b, i, 0], radii[b, i, 0], tiles_x)
            y0, y1 = _tile_range(means2d[b, i, 1], radii[b, i, 1], tiles_y)
            for y in range(y0, y1):
                for x in range(x0, x1):
                    counts[b, y * tiles_x + x] += 1
            pairs += max(x1 - x0, 0) * max(y1 - y0, 0)
        slots[b, ids.shape[0]] = pairs


@kernel(parallel=True)
def fill(
    means2d, factors, features, opacities, radii, tiles_x, tiles_y, order, slots, shown, starts,
    records, pair_splat, pair_slot,
):  # fmt: skip
    """Write the records (B, N, RECORD) and each tile's pairs: place in the records, gradient slot.

    starts (B, tiles): where each tile's pairs begin. A splat's slots are neighbours, so its gradients add up in order.
    """
    for b in prange(means2d.shape[0]):
        cursor = starts[b].copy()
        for s in range(shown[b]):
            i = order[b, s]
            strength = math.log(max(opacities[i] * 255.0, 1.0))  # where alpha = 1/255
            record = records[b, s]
            record[0], record[1] = means2d[b, i, 0], means2d[b, i, 1]
            record[2], record[3], record[4] = factors[b, i, 0], factors[b, i, 1], factors[b, i, 2]
            record[5] = opacities[i]
            record[6], record[7] = features[b, i, 0], features[b, i, 1]
            record[8], record[9] = features[b, i, 2], features[b, i, 3]
            record[10] = strength
            record[11] = min(math.sqrt(strength / max(factors[b, i, 2], 1e-30)), LARGEST)
            slot = starts[b, 0] + slots[b, s]
            x0, x1 = _tile_range(means2d[b, i, 0], radii[b, i, 0], tiles_x)
            y0, y1 = _tile_range(means2d[b, i, 1], radii[b, i, 1], tiles_y)
            for y in range(y0, y1):
                for x in range(x0, x1):
                    k = cursor[y * tiles_x + x]
                    cursor[y * tiles_x + x] = k + 1
                    pair_splat[k], pair_slot[k] = s, slot
                    slot += 1
