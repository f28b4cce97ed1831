"""Random augmentation of training views: background, scale noise, mirroring, disparity images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..splats import Splats
from .config import Augmentation

DARKEST_GREY = 0.15  # sRGB, as in the training images of the demo model


def random_backgrounds(views: int, augmentation: Augmentation, generator: Generator) -> Tensor:
    """Random sRGB backgrounds (views, 3) in [0, 1], drawn on the CPU from `generator`.

    Changing backgrounds penalise semi-transparent Gaussians, which match one background but not the next.
    """
    share, black, grey = torch.rand(3, views, 1, generator=generator)
    other = torch.where(black < 0.5, 0.0, torch.rand(views, 3, generator=generator))
    if augmentation.background_colors == "grey":
        other = (DARKEST_GREY + (1 - DARKEST_GREY) * grey).expand(-1, 3)
    return torch.where(share < augmentation.background_share, other, 1.0)


def light_backgrounds(views: int, augmentation: Augmentation, darkest: float, generator: Generator) -> Tensor:
    """Random white or grey sRGB backgrounds (views, 3) from `darkest` to 1, drawn on the CPU.

    Diffusion models generate worse images on dark backgrounds.
    """
    share, grey = torch.rand(2, views, 1, generator=generator)
    backgrounds = torch.where(share < augmentation.background_share, darkest + (1 - darkest) * grey, 1.0)
    return backgrounds.expand(-1, 3)


def jitter(splats: Splats, augmentation: Augmentation, generator: Generator) -> Splats:
    """The splats with relative Gaussian noise (std `scale_jitter`) on the scales (N, 3)."""
    noise = torch.randn(splats.scales.shape, generator=generator).to(splats.scales)
    return Splats(
        splats.means,
        splats.quats,
        splats.scales * (1 + augmentation.scale_jitter * noise).clamp_min(0),
        splats.opacities,
        splats.sh,
    )


def guided_images(
    rgb: Tensor, disparity: Tensor, augmentation: Augmentation, generator: Generator
) -> tuple[Tensor, bool]:
    """The input of the guidance: (images (B, H, W, 3), whether they are mirrored).

    With probability `disparity_share` the images are the disparity (B, H, W, 1) in place of rgb (B, H, W, 3).
    """
    as_disparity, flipped = torch.rand(2, generator=generator)
    images = disparity.expand(-1, -1, -1, 3) if as_disparity < augmentation.disparity_share else rgb
    mirrored = bool(flipped < augmentation.flip_share)
    return images.flip(2) if mirrored else images, mirrored
