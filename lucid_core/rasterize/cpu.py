"""The numba backend: differentiable and deterministic rendering on any CPU, in milliseconds.

It has two autograd functions, so that means2d is an ordinary tensor between them that can retain a gradient:
    Project  splats -> means2d, records for blending (see cpu_bins), radii, tile rectangles
    Blend    these  -> rgb, alpha, depth
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cameras import Cameras
from ..splats import Splats
from . import cpu_bins, cpu_blend, cpu_project
from .contract import Outputs
from .jit import spread

log = logging.getLogger(__name__)
SPLATS_PER_JOB = 1024  # minimum work per thread
SPLATS_PER_BAND, BANDS_PER_THREAD = 32768, 2  # binning works on bands of tile rows
_announced = False


def render(
    splats: Splats, cameras: Cameras, width: int, height: int, sh_degree: int, background: Tensor
) -> Outputs:
    """See contract.py."""
    _announce()
    # splats on a GPU are copied to the CPU and images back; gradients the other way
    device = splats.means.device
    splats, background = splats.map(Tensor.cpu), background.cpu()
    cameras = Cameras(cameras.viewmats.cpu(), cameras.Ks.cpu())
    means2d, records, radii, *tiles = Project.apply(  # type: ignore[no-untyped-call]  # torch gives no type
        splats.means,
        splats.quats,
        splats.scales,
        splats.opacities,
        splats.sh,
        cameras,
        width,
        height,
        sh_degree,
    )
    means2d = means2d.to(device)
    on_cpu = (means2d.cpu(), records, background, *tiles, width, height)
    rgb, alpha, depth = Blend.apply(*on_cpu)  # type: ignore[no-untyped-call]  # torch gives no type
    return rgb.to(device), alpha.to(device), depth.to(device), means2d, radii.to(device)


def _announce() -> None:
    global _announced
    if not _announced:
        _announced = True
        log.info("preparing the CPU rasterizer; the first compilation takes about half a minute")


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().contiguous().numpy()


class Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        sh: Tensor,
        cameras: Cameras,
        width: int,
        height: int,
        sh_degree: int,
    ) -> tuple[Tensor, ...]:
        views, n = len(cameras), len(means)
        means2d, records = means.new_empty(views, n, 2), means.new_empty(views, n, cpu_bins.RECORD)
        radii, rects = (torch.empty(views, n, size, dtype=torch.int32) for size in (2, 4))
        depths, touched = means.new_empty(views, n), torch.empty(views, n, dtype=torch.int64)
        ctx.camera = (
            _array(cameras.viewmats.double()),
            _array(cameras.Ks.double()),
            (sh_degree + 1) ** 2,
            width,
            height,
        )
        inputs = (_array(x) for x in (means, quats, scales, opacities, sh))
        outputs = (_array(x) for x in (means2d, records, radii, rects, depths, touched))
        spread(cpu_project.project, n, SPLATS_PER_JOB, *inputs, *ctx.camera, *outputs)
        ctx.save_for_backward(means, quats, scales, opacities, sh, radii, records)
        ctx.mark_non_differentiable(radii, rects, depths, touched)
        return means2d, records, radii, rects, depths, touched

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_means2d: Tensor, g_records: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, opacities, sh, radii, records = ctx.saved_tensors
        like = (means, quats, scales, opacities, sh)
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]
        inputs = (_array(x) for x in (means, quats, scales, sh))
        given = (_array(x) for x in (radii, records, g_means2d, g_records))
        outputs = (_array(x) for x in grads)
        jobs = (cpu_project.project_backward, len(means), SPLATS_PER_JOB)
        spread(*jobs, *inputs, *ctx.camera, *given, *outputs)
        return *grads, None, None, None, None


@dataclass(frozen=True)
class Bins:
    """The visible Gaussians, sorted by tile and depth; M = B * N. See cpu_bins."""

    records: NDArray[np.float32]  # (M, RECORD)
    rects: NDArray[np.int32]  # (M, 4) in tiles
    touched: NDArray[np.int64]  # (M,) number of tiles
    pairs: NDArray[np.int32]  # (pairs,) ids
    offsets: NDArray[np.int64]  # (B * tiles + 1,) into pairs


def _bin(
    all_records: Tensor, all_rects: Tensor, depths: Tensor, all_touched: Tensor, width: int, height: int
) -> Bins:
    views, n = all_touched.shape
    tiles_x, tiles_y = -(-width // cpu_bins.TILE), -(-height // cpu_bins.TILE)
    records, rects, touched = (_array(x.flatten(0, 1)) for x in (all_records, all_rects, all_touched))
    order, shown = np.empty((views, n), np.int32), np.empty(views, np.int64)
    spread(cpu_bins.sort, views, 1, _array(depths).view(np.uint32), order, shown)

    threads = min(torch.get_num_threads(), 1 + n // SPLATS_PER_BAND)
    # each band reads every Gaussian
    bands = 1 if threads == 1 else min(-(-BANDS_PER_THREAD * threads // views), tiles_y)
    band = -(-tiles_y // bands)
    jobs = views * -(-tiles_y // band)
    counts = np.empty((views, tiles_y, tiles_x), np.int64)
    spread(cpu_bins.count, jobs, 1, rects, band, counts)
    offsets = np.concatenate([[0], counts.ravel().cumsum()])
    pairs, cursors = np.empty(offsets[-1], np.int32), offsets[:-1].reshape(counts.shape).copy()
    spread(cpu_bins.fill, jobs, 1, rects, order, shown, band, cursors, pairs)
    return Bins(records, rects, touched, pairs, offsets)


class Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        records: Tensor,
        background: Tensor,
        rects: Tensor,
        depths: Tensor,
        touched: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        bins = _bin(records, rects, depths, touched, width, height)
        rgb = means2d.new_empty(len(means2d), height, width, 3)
        alpha, depth, remaining, stop = (torch.empty_like(rgb[..., :1]) for _ in range(4))
        images = (_array(x) for x in (rgb, alpha, depth, remaining, stop))
        tiles = len(bins.offsets) - 1
        spread(cpu_blend.blend, tiles, 1, bins.records, bins.pairs, bins.offsets, _array(background), *images)
        ctx.bins = bins
        ctx.save_for_backward(background, remaining, stop)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_rgb: Tensor, g_alpha: Tensor, g_depth: Tensor) -> tuple[Tensor | None, ...]:
        background, remaining, stop = ctx.saved_tensors
        bins, views = ctx.bins, len(stop)
        n = len(bins.records) // views
        images = (_array(x) for x in (remaining, stop, g_rgb, g_alpha, g_depth))
        slots = np.zeros((len(bins.pairs), cpu_blend.GRADIENTS), np.float32)
        starts = bins.touched.cumsum() - bins.touched  # (M,) first slot of each Gaussian
        lists = (bins.records, bins.pairs, bins.offsets, bins.rects, starts)
        tiles = len(bins.offsets) - 1
        spread(cpu_blend.blend_backward, tiles, 1, *lists, _array(background), *images, slots)

        g_means2d, g_records = (remaining.new_empty(views, n, size) for size in (2, cpu_bins.RECORD))
        outputs = (_array(x.flatten(0, 1)) for x in (g_means2d, g_records))
        spread(cpu_blend.reduce, views * n, SPLATS_PER_JOB, slots, starts, bins.touched, *outputs)
        g_background = torch.einsum("bhwc,bhwk->bc", g_rgb, remaining) if ctx.needs_input_grad[2] else None
        return g_means2d, g_records, g_background, None, None, None, None, None
