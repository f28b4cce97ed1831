"""Zero padding of a narrow network's tensors into a wide network's shapes."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def pad(value: Tensor, shape: tuple[int, ...], parts: dict[int, tuple[int, ...]] | None = None) -> Tensor:
    """`value` in the leading corner of a zero tensor of `shape`.

    `parts` lists dimensions that are concatenations: {dim: sizes of the narrow parts}. The wide dimension is
    split into as many equal parts, and each narrow part is put at the beginning of one. Raises ValueError if
    the parts do not fit.
    """
    parts = parts or {}
    wide = torch.zeros(shape, dtype=value.dtype)
    slices = [
        _slices(value.shape[dim], shape[dim], parts.get(dim, (value.shape[dim],)))
        for dim in range(value.ndim)
    ]
    for block in product(*slices):
        narrow_index, wide_index = zip(*block, strict=True)
        wide[wide_index] = value[narrow_index]
    return wide


def _slices(narrow: int, wide: int, parts: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Pairs (narrow slice, wide slice) of one dimension, one per part."""
    stride = wide // len(parts)
    if sum(parts) != narrow or max(parts) > stride:
        raise ValueError(f"parts {parts} do not fill {narrow} channels or do not fit {len(parts)} x {stride}")
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return [
        (slice(start, start + size), slice(i * stride, i * stride + size))
        for i, (start, size) in enumerate(zip(starts, parts, strict=True))
    ]
