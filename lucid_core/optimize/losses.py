"""Losses: regularisers beside the guidance (weights as in the official code), and differences of images."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def tv(images: Tensor) -> Tensor:
    """Twice the sum of the mean squared differences of neighbours along rows and along columns, as in the
    official code; images (B, H, W, C).
    """
    rows = (images[:, 1:] - images[:, :-1]).square().mean()
    columns = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    return 2 * (rows + columns)


def scale(scales: Tensor) -> Tensor:
    """Mean standard deviation of the Gaussians, which keeps them small; scales (N, 3) linear."""
    return scales.mean()


def disparity(depth: Tensor, alpha: Tensor, focal: Tensor) -> Tensor:
    """Disparity image (B, H, W, 1): 1 at the nearest point, 0 at the farthest opaque one and in empty space.

    depth (B, H, W, 1) alpha-weighted, alpha (B, H, W, 1), focal (B,) in image widths. Empty space is treated
    as 10 world units away.
    """
    inverse = focal[:, None, None, None] / (depth + 10 * (1 - alpha) + 1e-5)
    fixed = inverse.detach()
    solid = torch.where(alpha.detach() >= 0.9, fixed, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    far = torch.where(solid.isfinite(), solid, fixed.amin(dim=(1, 2, 3), keepdim=True))
    near = fixed.amax(dim=(1, 2, 3), keepdim=True)
    return ((inverse - far) / (near - far).clamp_min(1e-6)).clamp(0, 1)


def entropy(alpha: Tensor) -> Tensor:
    """Mean binary entropy of alpha (B, H, W, 1) in nats: 0 when each pixel is fully opaque or empty."""
    p = alpha.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def aspect(scales: Tensor) -> Tensor:
    """Mean of max(longest / middle - 2, 0) over the Gaussians' axes (anti-needle); linear scales (N, 3)."""
    _, middle, longest = scales.sort(-1).values.unbind(-1)
    return (longest / middle.clamp_min(1e-8) - 2).clamp_min(0).mean()


WINDOW, SIGMA = 11, 1.5  # pixels, of the Gaussian window of SSIM
C1, C2 = 0.01**2, 0.03**2  # stabilise the divisions


def ssim(images: Tensor, pictures: Tensor) -> Tensor:
    """Structural similarity of each image (B,): 1 = equal; the mean of `ssim_map`."""
    return ssim_map(images, pictures).mean(dim=(1, 2))


def ssim_map(images: Tensor, pictures: Tensor) -> Tensor:
    """Structural similarity (B, H - 10, W - 10) at all places of the window inside the image, mean over the
    channels; both (B, H, W, C) in [0, 1], at least WINDOW px. Source: Wang et al. 2004.
    """
    a, b = (x.movedim(-1, 1) for x in (images, pictures))
    mean_a, aa, ab = blur(torch.stack([a, a * a, a * b])).unbind(0)
    mean_b, bb = blur(torch.stack([b, b * b])).unbind(0)
    both, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    covariance, variances = ab - both, aa + bb - squares
    similarity = (2 * both + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return similarity.mean(1)


def blur(x: Tensor) -> Tensor:
    """The last two dimensions (H, W), averaged by the window of SSIM -> (H - 10, W - 10).

    By products with band matrices: on a CPU a fifth of the time of a convolution.
    """
    height, width = x.shape[-2:]
    rows, columns = (window_matrix(size, x.dtype, x.device) for size in (height, width))
    return rows @ x @ columns.T


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # the matrix is kept, and may be needed in a backward pass later
def window_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (size - 10, size) that averages by the window of SSIM."""
    offsets = torch.arange(WINDOW, dtype=dtype) - WINDOW // 2
    window = torch.softmax(-(offsets**2) / (2 * SIGMA**2), 0)
    matrix = torch.zeros(size - WINDOW + 1, size, dtype=dtype)
    for i, weight in enumerate(window.tolist()):
        matrix.diagonal(i).fill_(weight)
    return matrix.to(device)


def decorrelation(values: Tensor, given: Tensor, valid: Tensor) -> Tensor:
    """Mean over B of 1 - the correlation of `values` and `given` over `valid` pixels, from 0 to 2.

    All (B, H, W, 1), `valid` bool. The unknown scale and shift of `given` do not matter. 0 for an image of
    less than two valid pixels.
    """
    weight = valid.to(values)
    count = weight.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    centred = [weight * (x - (weight * x).sum(dim=(1, 2, 3), keepdim=True) / count) for x in (values, given)]
    a, b = (x.flatten(1) for x in centred)
    norms = a.square().sum(1) * b.square().sum(1)
    known = norms > 1e-12
    correlation = (a * b).sum(1) / torch.where(known, norms, 1.0).sqrt()
    return torch.where(known, 1 - correlation, 0.0).mean()
