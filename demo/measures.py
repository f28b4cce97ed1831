"""How pictures of a splat differ from the true ones, beyond the PSNR and IoU of demo.score.

Pictures are turntables rgb (V, H, W, 3) in [0, 1] on white, view i at azimuth i / V of a turn; silhouettes (V, H, W) are
covered shares in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

WINDOW, DEVIATION = 11, 1.5  # pixels; SSIM's own window
K1, K2 = 0.01, 0.03
RIM = 3  # pixels on both sides of an outline: there colours are mixed with the background's
MUD = 5.0  # CIELAB units in a, b: what the eye takes for another colour, in any light
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

    The views within 45 degrees of the back, over both silhouettes there, are explained by least squares as a sum of the true
    picture from the opposite side, the true picture, the mean of the true ones from all round and one value for each
    channel; the score is the share of the first. So what is blurred, plain or of a wrong colour on the back is no face, and
    a face that is half as strong there counts one half. It says nothing about a thing whose back is its front.
    """
    views = len(images)
    if views % 2:
        raise ValueError(f"images has {views} views; it must be an even number, so that each has an opposite one")
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
    """Share of the splat's pixels, RIM inside its outline, whose hue is none of the true pictures': a, b of CIELAB lie more
    than MUD from those of every pixel of the thing. 0 where nothing is there."""
    seen = _chroma(images)[_eroded(alpha > 0.5)]
    true = _chroma(expected)[_eroded(mask > 0.5)].round().unique(dim=0)  # to 0.7 of a unit
    if len(seen) == 0 or len(true) == 0:
        return 0.0
    nearest = torch.cat([torch.cdist(part, true).amin(1) for part in seen.split(4096)])
    return float((nearest > MUD).float().mean())


def fog(images: Tensor, mask: Tensor) -> float:
    """Mean darkening of the white outside the true silhouette, RIM away from it, in 1/255."""
    outside = ~_dilated(mask > 0.5)
    return float(255 * (1 - images[outside]).clamp_min(0).mean())


def _chroma(images: Tensor) -> Tensor:
    """a, b of CIELAB (V, H, W, 2) for sRGB (V, H, W, 3) in [0, 1]."""
    rows = np.ascontiguousarray(images.float().clamp(0, 1).numpy().reshape(-1, images.shape[2], 3))
    return torch.from_numpy(cv2.cvtColor(rows, cv2.COLOR_RGB2LAB)[..., 1:]).reshape(*images.shape[:3], 2)


def _dilated(silhouettes: Tensor) -> Tensor:
    """(V, H, W) bool, wider by RIM."""
    return max_pool2d(silhouettes.float()[:, None], 2 * RIM + 1, 1, RIM)[:, 0] > 0


def _eroded(silhouettes: Tensor) -> Tensor:
    return ~_dilated(~silhouettes)


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
