"""The variance-preserving (DDPM) form of a prior: x = sqrt(abar) * z. A second way to write every method."""

from __future__ import annotations

import torch
from torch import Tensor


def abar(prior, t: float) -> float:
    return 1 / (1 + prior.sigma(t) ** 2)


def noised(prior, x0: Tensor, noise: Tensor, t: float) -> Tensor:
    return abar(prior, t) ** 0.5 * x0 + (1 - abar(prior, t)) ** 0.5 * noise


def eps(prior, x: Tensor, t: float, cond) -> Tensor:
    """The model's noise for x at t: from its z0 by the DDPM relation."""
    a = abar(prior, t)
    (x0,) = prior.denoise(x / a**0.5, prior.sigma(t), [cond])
    return (x - a**0.5 * x0) / (1 - a) ** 0.5


def cfg_eps(prior, x: Tensor, t: float, y, negative, scale: float) -> Tensor:
    e_y, e_negative = eps(prior, x, t, y), eps(prior, x, t, negative)
    return e_negative + scale * (e_y - e_negative)


def ddim(prior, x: Tensor, e: Tensor, a: float, b: float) -> Tensor:
    """One deterministic step from time a to time b, equation 12 of DDIM."""
    abar_a, abar_b = abar(prior, a), abar(prior, b)
    x0 = (x - (1 - abar_a) ** 0.5 * e) / abar_a**0.5
    return abar_b**0.5 * x0 + (1 - abar_b) ** 0.5 * e


def w(prior, t: float) -> float:
    """sqrt((1 - abar) / abar), the weight of LucidDreamer's code and its heirs."""
    return ((1 - abar(prior, t)) / abar(prior, t)) ** 0.5


def rand(shape=(2, 4, 3, 3), seed=0):
    """A maker of float64 Gaussian tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)
