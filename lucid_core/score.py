"""What the guidances share, in variance-exploding form: noise levels, DDIM steps, guidance by prompts.

code        papers              meaning
t           t                   fraction of the training schedule; sigma = prior.sigma(t)
z           x_t / sqrt(abar_t)  noisy latents z0 + sigma * eps (B, C, h, w)
e           eps_phi             predicted noise
sigma       sqrt((1 - abar) / abar)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from .checks import check_bounds, require, setting
from .prior import Cond, Conds, Prior

MIN_T = 1e-3  # one step of a 1000-step schedule: where the division by sigma is still safe
FIXED_NOISE = 0x15A  # apart from the run's other draws


class Guidance(Protocol):
    """A method: what would the model change about these views?"""

    pixel_limit: float  # largest share of the gradient that a pixel's channel of the views may have; inf = no limit

    def gradient(self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """d loss / d z0 for one batch of views (B, C, h, w); no graph is kept.

        `progress` is the fraction of the run that is done. Randomness comes from `generator` (on the CPU) alone.
        """


@dataclass(frozen=True)
class Distillation:
    """The settings of every method that draws its noise level at random."""

    pixel_limit = math.inf

    t_min: float = setting(0.02, MIN_T, 1, "Least noise that the model is asked about, as a fraction of its schedule.")
    t_min_start: float = setting(0.0, 0, 1, "Least noise when the run begins; it goes to t_min over the warm-up. 0 = t_min.")
    t_max: float = setting(0.5, MIN_T, 1, "Most noise, after the warm-up. Lower keeps what the splat already shows.")
    t_max_start: float = setting(0.98, MIN_T, 1, "Most noise when the run begins; it falls to t_max over the warm-up.")
    warmup: float = setting(0.3, 0, 1, "Share of the run over which the noise range anneals; 0 = none.")
    weight: float = setting(0.1, 1e-6, 1e6, "Weight of the guidance beside the regularisers (the paper's lambda).")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_min < self.t_max, "t_max", self.t_max, f"above t_min ({self.t_min})")
        require(self.t_max <= self.t_max_start, "t_max_start", self.t_max_start, f"at least t_max ({self.t_max})")
        below = f"below t_max_start ({self.t_max_start})"
        require(self.t_min_start < self.t_max_start, "t_min_start", self.t_min_start, below)
        for name, t in self.reach(self.t_max_start, self.t_max).items():
            require(getattr(self, name) <= t, name, getattr(self, name), f"at most the most noise of that time ({t:g})")

    def reach(self, first: float, last: float) -> dict[str, float]:
        """The longest that the method's intervals may be, by their names, where the most noise goes from `first` to `last`."""
        return {}

    def annealed(self, progress: float, first: float, last: float) -> float:
        """From `first` to `last` linearly over the warm-up."""
        return first + (min(progress / self.warmup, 1.0) if self.warmup else 1.0) * (last - first)

    def t(self, progress: float, u: float) -> float:
        """The noise level for `u` uniform in [0, 1)."""
        low = self.annealed(progress, max(self.t_min_start or self.t_min, MIN_T), self.t_min)
        return low + u * (self.annealed(progress, self.t_max_start, self.t_max) - low)

    def draw_t(self, progress: float, generator: Generator) -> float:
        return self.t(progress, torch.rand((), generator=generator).item())


def eps(prior: Prior, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
    """Predicted noise for each conditioning."""
    return [(z - z0) / sigma for z0 in prior.denoise(z, sigma, conds)]


def guided_eps(prior: Prior, z: Tensor, sigma: float, conds: Conds, cfg: float) -> Tensor:
    """Noise under the prompts by classifier-free guidance (and Perp-Neg), all of it in one model call."""
    e_y, e_negative, *e_others = eps(prior, z, sigma, [conds.y, conds.negative, *conds.others])
    if e_others:
        e_y = e_negative + towards(e_y - e_negative, [e - e_negative for e in e_others], conds.weights)
    return prior.guide(z, sigma, [conds.y, conds.negative], [e_y, e_negative], cfg)


def towards(main: Tensor, others: list[Tensor], weights: Tensor | None) -> Tensor:
    """Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968): main + sum of weights (B, K) * the part of each other that is
    perpendicular to it. All (B, C, h, w), as differences to the noise without a prompt; right angles are taken view by view.
    """
    total, size2 = main, main.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    for k, other in enumerate(others):
        along = (other * main).sum((1, 2, 3), keepdim=True) / size2
        total = total + weights[:, k].to(main).reshape(-1, 1, 1, 1) * (other - along * main)
    return total


def invert(z: Tensor, sigmas: list[float], ask: Callable[[Tensor, float], Tensor]) -> Tensor:
    """DDIM (Song et al. 2021, equation 12 with sigma = 0) along `sigmas`, up or down; `ask(z, sigma)` predicts the noise."""
    for sigma_a, sigma_b in pairwise(sigmas):
        z = z + (sigma_b - sigma_a) * ask(z, sigma_a)
    return z


def variance_of(sigma: float) -> float:
    """1 - abar: the share of a noisy latent's variance that is noise."""
    return sigma**2 / (1 + sigma**2)


def gaussian(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def offset_noise(like: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise plus a constant per channel of a tenth of it, shared by the batch, as in LucidDreamer's code."""
    noise = torch.randn(like.shape, generator=generator)
    return (noise + 0.1 * torch.randn((1, like.shape[1], 1, 1), generator=generator)).to(like)


def fixed_noise(like: Tensor, generator: Generator) -> Tensor:
    """One offset noise for the whole run: it follows from the run's seed, not from how far the run is."""
    return offset_noise(like, Generator().manual_seed(generator.initial_seed() ^ FIXED_NOISE))


@dataclass(frozen=True)
class PixelGradient:
    """What a gradient of the views (B, H, W, 3) is like.

    residual: in place of the gradient through the VAE's encoder, the view less the picture that the model makes of it.
    limit: see `limit_pixels`; inf = what the method or the model needs. average: see `average_pixels`.
    """

    residual: bool = False
    limit: float = math.inf
    average: int = 1


def average_pixels(images: Tensor, size: int) -> None:
    """Give what backpropagation brings to `images` (B, H, W, 3) its mean over squares of `size` pixels, a divisor of H, W."""
    if size > 1:
        pooled = lambda grad: avg_pool2d(grad.movedim(-1, 1), size).repeat_interleave(size, 2).repeat_interleave(size, 3)
        images.register_hook(lambda grad: pooled(grad).movedim(1, -1))


def limit_pixels(images: Tensor, limit: float) -> None:
    """Hold what backpropagation brings to `images` (B, H, W, 3): no channel of a pixel above `limit`, its hue kept.

    Pixel-wise gradient clipping (Pan et al., ICLR 2024, arXiv 2310.12474), as in Dreamer XL's code: a pixel is scaled as one.
    """
    if limit < math.inf:
        images.register_hook(lambda grad: grad * (limit / grad.abs().amax(-1, keepdim=True)).clamp(max=1))
