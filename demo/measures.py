"""Measures of the difference between images of a splat and the true images, besides demo.score's PSNR and
IoU.

Images are turntables, rgb (V, H, W, 3) in [0, 1] on white, with view i at azimuth i / V of a full turn.
Silhouettes (V, H, W) are coverage in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from lucid_core.score.measures import LUMA, dilate, fog

__all__ = ["color_error", "faces", "fog", "mud", "sharpness", "ssim"]

WINDOW, DEVIATION = 11, 1.5  # size and standard deviation of SSIM's window in pixels
K1, K2 = 0.01, 0.03  # SSIM's constants
MUD = 5.0  # distance in CIELAB's a, b from which two hues look different, whatever the brightness
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def ssim(images: Tensor, expected: Tensor) -> float:
    """Structural similarity (Wang et al. 2004, equation 13): mean over views, channels, and windows that lie
    completely inside the image.
    """
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
    """Variance of the Laplacian of the luma, divided by that of the true image; mean over the views.

    Below 1: blurred; above 1: speckled. It covers the whole image: the Laplacian of the white background is
    0, so a crop to the object would change both variances by the same factor, but would miss floaters
    outside.
    """
    return float((_edges(images) / _edges(expected).clamp_min(1e-12)).mean())


def color_error(images: Tensor, alpha: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Root mean square difference between the channels of the two mean colours; mean over the views.

    A mean colour is that of all covered pixels, without the white background. It ignores shape and detail,
    and detects a wrong hue or the oversaturation of a high cfg.
    """
    difference = _mean_color(images, alpha) - _mean_color(expected, mask)  # (V, 3)
    return float(difference.square().mean(-1).sqrt().mean())


def faces(images: Tensor, expected: Tensor, mask: Tensor) -> float:
    """How much of the true front appears on the back (Janus problem): 0 = none, 1 = an object with two
    fronts.

    Views within 45 degrees of the back are fitted by least squares, over the union of both silhouettes, with
    a sum of the true image from the opposite side, the true image, the mean of all true images, and a
    constant for each channel. The score is the coefficient of the first. So a blurred, plain or wrongly
    coloured back does not count as a face, and a face of half the contrast counts as one half. The score is
    meaningless for an object whose front and back look the same. Raises ValueError for an odd number of
    views.
    """
    views = len(images)
    if views % 2:
        raise ValueError(
            f"images has {views} views; it must be an even number, so that each has an opposite one"
        )
    average = expected.mean(0)
    seen, causes = [], []
    for i in range(-(-3 * views // 8), 5 * views // 8 + 1):
        opposite = (i + views // 2) % views
        there = (mask[i] > 0.5) | (mask[opposite] > 0.5)
        pictures = torch.stack([expected[opposite], expected[i], average], -1)[there]  # (P, 3, 3)
        channels = torch.eye(3).to(pictures).expand(len(pictures), 3, 3)
        causes.append(torch.cat([pictures, channels], -1).flatten(0, 1))  # (3 P, 6)
        seen.append(images[i][there].flatten())  # (3 P,)
    a, b = torch.cat(causes).double(), torch.cat(seen).double()
    return float((torch.linalg.pinv(a.mT @ a, rtol=1e-9, hermitian=True) @ (a.mT @ b))[0])


def mud(images: Tensor, alpha: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Fraction of the splat's pixels, more than RIM inside its outline, with a hue that the true images
    do not have: a, b of CIELAB differ by more than MUD from those of every pixel of the object. 0 if
    nothing is seen.
    """
    seen = _chroma(images)[_eroded(alpha > 0.5)]
    true = _chroma(expected)[_eroded(mask > 0.5)].round().unique(dim=0)  # to 0.7 of a unit
    if len(seen) == 0 or len(true) == 0:
        return 0.0
    nearest = torch.cat([torch.cdist(part, true).amin(1) for part in seen.split(4096)])
    return float((nearest > MUD).float().mean())


def _chroma(images: Tensor) -> Tensor:
    """a, b of CIELAB (V, H, W, 2) for sRGB (V, H, W, 3) in [0, 1]."""
    rows = np.ascontiguousarray(images.float().clamp(0, 1).numpy().reshape(-1, images.shape[2], 3))
    return torch.from_numpy(cv2.cvtColor(rows, cv2.COLOR_RGB2LAB)[..., 1:]).reshape(*images.shape[:3], 2)


def _eroded(silhouettes: Tensor) -> Tensor:
    return ~dilate(~silhouettes)


def _planes(images: Tensor) -> Tensor:
    """(V, H, W, C) -> (V * C, 1, H, W)."""
    return images.movedim(-1, 1).flatten(0, 1)[:, None]


def _edges(images: Tensor) -> Tensor:
    """(V,) variances of the Laplacian."""
    luma = images @ images.new_tensor(LUMA)
    return conv2d(luma[:, None], LAPLACIAN.to(images)[None, None]).flatten(1).var(dim=1, correction=0)


def _mean_color(images: Tensor, alpha: Tensor) -> Tensor:
    """(V, 3); black for an empty view."""
    own = images - (1 - alpha[..., None])  # premultiplied colour: without the white background
    return own.sum((1, 2)) / alpha.sum((1, 2)).clamp_min(1e-6)[:, None]
