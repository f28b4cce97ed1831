"""Measures of a splat and its views that need neither a model nor the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..optional import load
from ..splats import Splats

RIM = 3  # pixels on both sides of an outline, where colours are mixed with the background
VISIBLE = 1 / 255  # least opacity of a Gaussian that a renderer draws
CELLS = 32  # cells across the object, of the grid in which parts are connected
NEAR = 0.98  # share of the opacity that the object's extent is measured on
QUANTILES = (0.1, 0.5, 0.9)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PLAIN = 0.02  # largest difference of a pixel from the background
Numbers = dict[str, float | list[float]]


def measure_splats(splats: Splats, alpha: Tensor) -> Numbers:
    """Measures of splats, rendered with opacity `alpha` (V, H, W).

    splats: their number. aspect: median and 95% quantile of longest / middle axis; 1 = round or a disc.
    floaters: see `floaters`. fog: see `fog`.
    """
    _, middle, longest = splats.scales.detach().cpu().sort(-1).values.unbind(-1)
    aspect = longest / middle.clamp_min(1e-8)
    return {
        "splats": len(splats),
        "aspect": quantiles(aspect, (0.5, 0.95)),
        "floaters": floaters(splats),
        "fog": fog(1 - alpha[..., None], alpha),
    }


def floaters(splats: Splats) -> float:
    """Share of the opacity outside the largest connected part, 0 to 1.

    Visible Gaussians are connected if their centres lie in the same cell or in adjacent cells (26 neighbours)
    of a grid, whose cells are 1/32 of the object: of the longest side of the box that holds 98% of the
    opacity along each axis.
    """
    kept = splats.opacities.detach().cpu() >= VISIBLE
    if not kept.any():
        return 0.0
    means, weight = (x.detach().cpu()[kept].double().numpy() for x in (splats.means, splats.opacities))
    extent = max(_extent(means[:, axis], weight) for axis in range(3))
    cells, own = np.unique(np.floor(means / max(extent / CELLS, 1e-12)), axis=0, return_inverse=True)
    tree = load("scipy.spatial", "scipy").cKDTree(cells)
    pairs = tree.query_pairs(1.5, p=np.inf, output_type="ndarray")
    sparse = load("scipy.sparse", "scipy")
    links = sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(cells),) * 2)
    _, part = load("scipy.sparse.csgraph", "scipy").connected_components(links, directed=False)
    weights = np.bincount(part[own.reshape(-1)], weights=weight)
    return float(1 - weights.max() / weights.sum())


def _extent(values: NDArray[Any], weight: NDArray[Any]) -> float:
    """Width of the interval that holds the middle NEAR of the weight."""
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = np.searchsorted(share, [(1 - NEAR) / 2, (1 + NEAR) / 2]).clip(0, len(values) - 1)
    return float(values[order[high]] - values[order[low]])


def measure_views(images: Tensor, alpha: Tensor) -> Numbers:
    """Measures of views (V, H, W, 3) in [0, 1] with opacity `alpha` (V, H, W).

    saturation, brightness: 10%, 50% and 90% quantiles over the object's pixels, of HSV's S and V.
    high_frequency: see `high_frequency`.
    """
    seen = images[alpha > 0.5]
    brightness, lowest = (seen.amax(-1), seen.amin(-1)) if len(seen) else (torch.zeros(1), torch.zeros(1))
    saturation = (brightness - lowest) / brightness.clamp_min(1e-6)
    return {
        "saturation": quantiles(saturation, QUANTILES),
        "brightness": quantiles(brightness, QUANTILES),
        "high_frequency": high_frequency(images),
    }


def quantiles(values: Tensor, shares: tuple[float, ...]) -> list[float]:
    """The quantiles of values (N,), of any number (torch.quantile has a limit)."""
    return [float(np.quantile(values.numpy(), share)) for share in shares]


def fog(images: Tensor, silhouettes: Tensor) -> float:
    """Mean darkening of the white background more than RIM outside the silhouette, in units of 1/255.

    images (V, H, W, C) in [0, 1], silhouettes (V, H, W): coverage in [0, 1]. 0 where nothing is outside.
    """
    outside = ~dilate(silhouettes > 0.5)
    return float(255 * (1 - images[outside]).clamp_min(0).mean()) if outside.any() else 0.0


def dilate(silhouettes: Tensor) -> Tensor:
    """(V, H, W) bool, dilated by RIM."""
    return max_pool2d(silhouettes.float()[:, None], 2 * RIM + 1, 1, RIM)[:, 0] > 0


def high_frequency(images: Tensor) -> float:
    """Share of the luma's spectral power, without the mean, above a quarter of the sampling frequency; mean
    over the views (V, H, W, 3). 0 = blurred, about 0.6 = white noise.
    """
    luma = images @ images.new_tensor(LUMA)
    power = torch.fft.fft2(luma - luma.mean((1, 2), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(size).abs() for size in luma.shape[1:])
    high = (rows[:, None] > 0.25) | (columns > 0.25)
    return float((power[:, high].sum(1) / power.sum((1, 2)).clamp_min(1e-12)).mean())


def silhouette_of(images: Tensor) -> Tensor:
    """Coverage (V, H, W), 0 or 1, of views (V, H, W, 3) on a plain background, whose colour is the median of
    the border.
    """
    border = torch.cat([images[:, [0, -1]].flatten(1, 2), images[:, :, [0, -1]].flatten(1, 2)], 1)
    background = border.median(1).values[:, None, None]
    return ((images - background).abs().amax(-1) > PLAIN).float()


def similarity(embeddings: Tensor) -> Tensor:
    """Cosine of each embedding (V, D) with the first, (V,): 1 = the same direction."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    return unit @ unit[0]
