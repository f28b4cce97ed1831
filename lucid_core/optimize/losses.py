"""Regularisation losses used beside the guidance (weights as in the official code)."""

from __future__ import annotations

import torch
from torch import Tensor


def tv(images: Tensor) -> Tensor:
    """Total variation: mean squared difference of neighbours over both directions; images (B, H, W, C)."""
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
