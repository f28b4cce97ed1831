"""The numba backend: milliseconds on any CPU, differentiable, deterministic.

Two autograd functions, so that means2d is an ordinary tensor between them and can keep its gradient:
    Project  splats -> means2d, row factors, features (r, g, b, z), radii
    Blend    those  -> rgb, alpha, depth
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cameras import Cameras
from ..gaussians import Splats
from . import cpu_bins, cpu_blend, cpu_project
from .jit import follow_torch_threads

log = logging.getLogger(__name__)
_lock = threading.Lock()  # numba's default thread pool must not be entered twice
_announced = False


def render(splats: Splats, cameras: Cameras, width: int, height: int, sh_degree: int, background: Tensor):
    """-> rgb (B, H, W, 3), alpha (B, H, W, 1), depth (B, H, W, 1), means2d (B, N, 2), radii (B, N, 2) int32."""
    _announce()
    means2d, factors, features, radii = Project.apply(
        splats.means, splats.quats, splats.scales, splats.opacities.detach(), splats.sh, cameras, width, height, sh_degree
    )
    rgb, alpha, depth = Blend.apply(means2d, factors, features, splats.opacities, background, radii, width, height)
    return rgb, alpha, depth, means2d, radii


def _announce() -> None:
    global _announced
    if not _announced:
        _announced = True
        log.info("preparing the CPU rasterizer; the first time, compiling takes about half a minute")


def _run(kernel, *args):
    with _lock:
        follow_torch_threads()
        return kernel(*args)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


class Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, sh, cameras, width, height, sh_degree):
        views, n = len(cameras), len(means)
        means2d, factors = means.new_zeros(views, n, 2), means.new_zeros(views, n, 3)
        features, radii = means.new_zeros(views, n, 4), torch.zeros(views, n, 2, dtype=torch.int32)
        ctx.camera = (_array(cameras.viewmats.double()), _array(cameras.Ks.double()), width, height, (sh_degree + 1) ** 2)
        inputs = (_array(x) for x in (means, quats, scales, opacities, sh))
        _run(cpu_project.project, *inputs, *ctx.camera, *(_array(x) for x in (means2d, factors, features, radii)))
        ctx.save_for_backward(means, quats, scales, sh, radii, features)
        ctx.mark_non_differentiable(radii)
        return means2d, factors, features, radii

    @staticmethod
    @once_differentiable
    def backward(ctx, g_means2d, g_factors, g_features, _g_radii):
        means, quats, scales, sh, radii, features = ctx.saved_tensors
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (means, quats, scales, sh)]
        inputs = (_array(x) for x in (means, quats, scales, sh))
        given = (_array(x) for x in (radii, features, g_means2d, g_factors, g_features))
        _run(cpu_project.project_backward, *inputs, *ctx.camera, *given, *(_array(x) for x in grads))
        g_means, g_quats, g_scales, g_sh = grads
        return g_means, g_quats, g_scales, None, g_sh, None, None, None, None


@dataclass(frozen=True)
class Bins:
    """The splats that show, by depth and by tile; see cpu_bins for each array."""

    tiles_x: int
    tiles_y: int
    order: np.ndarray  # (B, N) ids by depth
    splat_slots: np.ndarray  # (B, N + 1)
    shown: np.ndarray  # (B,)
    offsets: np.ndarray  # (B * tiles + 1,)
    records: np.ndarray  # (B, N, RECORD)
    pair_splat: np.ndarray  # (pairs,)
    pair_slot: np.ndarray  # (pairs,)


def _bin(means2d, factors, features, opacities, radii, width: int, height: int) -> Bins:
    views, n = means2d.shape[:2]
    tiles_x, tiles_y = -(-width // cpu_bins.TILE), -(-height // cpu_bins.TILE)
    order, splat_slots = np.empty((views, n), np.int32), np.empty((views, n + 1), np.int64)
    counts, shown = np.zeros((views, tiles_x * tiles_y), np.int64), np.empty(views, np.int64)
    depth_keys = np.ascontiguousarray(features[..., 3]).view(np.uint32)
    _run(cpu_bins.sort_and_count, means2d, radii, depth_keys, tiles_x, tiles_y, order, splat_slots, counts, shown)
    offsets = np.concatenate([[0], counts.ravel().cumsum()])
    records = np.empty((views, n, cpu_bins.RECORD), np.float32)
    pair_splat, pair_slot = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
    starts = offsets[:-1].reshape(counts.shape)
    _run(
        cpu_bins.fill, means2d, factors, features, opacities, radii, tiles_x, tiles_y, order, splat_slots, shown, starts,
        records, pair_splat, pair_slot,
    )  # fmt: skip
    return Bins(tiles_x, tiles_y, order, splat_slots, shown, offsets, records, pair_splat, pair_slot)


class Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, factors, features, opacities, background, radii, width, height):
        views = len(means2d)
        bins = _bin(*(_array(x) for x in (means2d, factors, features, opacities, radii)), width, height)
        rgb, alpha = means2d.new_empty(views, height, width, 3), means2d.new_empty(views, height, width, 1)
        depth, remaining = torch.empty_like(alpha), torch.empty_like(alpha)
        stop = torch.empty(views, height, width, dtype=torch.int32)
        planes = (rgb.numpy(), *(x.numpy()[..., 0] for x in (alpha, depth, remaining)), stop.numpy())
        _run(
            cpu_blend.blend, bins.records, bins.pair_splat, bins.offsets, _array(background), width, height,
            bins.tiles_x, bins.tiles_y, *planes,
        )  # fmt: skip
        ctx.bins, ctx.shape = bins, means2d.shape
        ctx.save_for_backward(background, remaining, stop)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx, g_rgb, g_alpha, g_depth):
        background, remaining, stop = ctx.saved_tensors
        bins, (views, n, _) = ctx.bins, ctx.shape
        height, width = stop.shape[1:]
        slots = np.zeros((len(bins.pair_slot), cpu_blend.GRADIENTS), np.float32)
        _run(
            cpu_blend.blend_backward, bins.records, bins.pair_splat, bins.pair_slot, bins.offsets, _array(background),
            width, height, bins.tiles_x, bins.tiles_y, _array(remaining)[..., 0], _array(stop),
            _array(g_rgb), _array(g_alpha)[..., 0], _array(g_depth)[..., 0], slots,
        )  # fmt: skip
        grads = [remaining.new_zeros(views, n, width) for width in (2, 3, 4)]
        g_opacities = remaining.new_zeros(views, n)
        starts = bins.offsets[:: bins.tiles_x * bins.tiles_y]
        outputs = (*(x.numpy() for x in grads), g_opacities.numpy())
        _run(cpu_blend.reduce, slots, bins.order, bins.splat_slots, bins.shown, np.ascontiguousarray(starts), *outputs)
        g_background = torch.einsum("bhwc,bhwk->bc", g_rgb, remaining)
        return *grads, g_opacities.sum(0), g_background, None, None, None
