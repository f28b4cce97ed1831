"""How pictures of a splat differ from the true ones, beyond the PSNR and IoU of demo.score.

Pictures are turntables rgb (V, H, W, 3) in [0, 1] on white, view i at azimuth i / V of a turn; silhouettes (V, H, W) are
covered shares in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, DEVIATION = 11, 1.5  # pixels; SSIM's own window
K1, K2 = 0.01, 0.03
LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def ssim(images: Tensor, expected: Tensor) -> float:
    """Structural similarity (Wang et al. 2004, equation 13), mean over views, channels and the windows inside the picture."""
    x, y = (_planes(pictures) for pictures in (images, expected))
    at = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    gauss = (-0.5 * (at / DEVIATION) ** 2).exp()
    window = torch.outer(gauss, gauss)[None, None] / gauss.sum() ** 2
    mean = lambda planes: conv2d(planes, window)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similar = (2 * mx * my + K1**2) * (2 * vxy + K2**2) / ((mx * mx + my * my + K1**2) * (vx + vy + K2**2))
    return float(similar.mean())


def sharpness(images: Tensor, expected: Tensor) -> float:
    """Variance of the Laplacian of the luma, as a share of the true picture's; mean over the views.

    Below 1 is blur, above 1 speckle. Of the whole picture: where both are white the Laplacian is 0, so that a frame round
    the object would change both variances by the same factor, and would miss what floats outside of it.
    """
    return float((_edges(images) / _edges(expected).clamp_min(1e-12)).mean())


def color_error(images: Tensor, alpha: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Root mean square difference of the channels of the two mean colours, mean over the views.

    A mean colour is that of all that is there, without the white behind it: blind to shape and detail, it tells a wrong hue
    and the strong colours of a high cfg.
    """
    difference = _mean_color(images, alpha) - _mean_color(expected, mask)  # (V, 3)
    return float(difference.square().mean(-1).sqrt().mean())


def faces(images: Tensor, expected: Tensor, mask: Tensor) -> float:
    """How much of the true front the back shows: 0 as the true back does, 1 for a thing with two fronts.

    In each view within 45 degrees of the back, d is the true picture from the opposite side less the true picture, over
    both silhouettes and less its mean there, so that a wrong colour or brightness all over does not count. The score is
    the least-squares share of d in the splat's picture less the true one, all these views together. What is unlike both
    sides counts by chance only. It says nothing about a thing whose back is its front.
    """
    views = len(images)
    if views % 2:
        raise ValueError(f"images has {views} views; it must be an even number, so that each has an opposite one")
    found = size = 0.0
    for i in range(-(-3 * views // 8), 5 * views // 8 + 1):
        opposite = (i + views // 2) % views
        there = (mask[i] > 0.5) | (mask[opposite] > 0.5)
        d = (expected[opposite] - expected[i])[there]  # (P, 3)
        d = d - d.mean(0)
        found, size = found + ((images[i] - expected[i])[there] * d).sum(), size + d.square().sum()
    return float(found / size)


def _planes(images: Tensor) -> Tensor:
    """(V, H, W, C) -> (V * C, 1, H, W)."""
    return images.movedim(-1, 1).flatten(0, 1)[:, None]


def _edges(images: Tensor) -> Tensor:
    """(V,) variances of the Laplacian."""
    luma = images @ LUMA.to(images)
    return conv2d(luma[:, None], LAPLACIAN.to(images)[None, None]).flatten(1).var(dim=1, correction=0)


def _mean_color(images: Tensor, alpha: Tensor) -> Tensor:
    """(V, 3); black where nothing is there."""
    own = images - (1 - alpha[..., None])  # premultiplied: the white behind it taken off
    return own.sum((1, 2)) / alpha.sum((1, 2)).clamp_min(1e-6)[:, None]
