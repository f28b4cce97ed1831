"""Common parts of the guidance methods, in variance-exploding form: noise levels, DDIM steps,
classifier-free guidance.

code        papers              meaning
t           t                   fraction of the training schedule; sigma = prior.sigma(t)
z           x_t / sqrt(abar_t)  noisy latents z0 + sigma * eps (B, C, h, w)
e           eps_phi             predicted noise (B, C, h, w)
sigma       sqrt((1 - abar) / abar)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from ..diffusion.prior import Cond, Conds, Prior
from ..settings import BoundedSettings, check_bounds, require, setting

MIN_T = 1e-3  # one step of a 1000-step schedule, where the division by sigma is still stable
FIXED_NOISE = 0x15A  # separates the seed of the fixed noise from the run's other draws


class Guidance(ABC):
    """A guidance method: computes the gradient of the loss at the latents of the rendered views.

    weight: factor of the gradient. pixel_limit: largest gradient of the loss for one channel of one pixel of
    the views; inf = no limit.
    """

    weight: float = 1.0
    pixel_limit: float = math.inf

    @abstractmethod
    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """Return d loss / d z0 (B, C, h, w) for the latents z0 (B, C, h, w) of one batch of views.

        No autograd graph is kept. progress: finished fraction of the run, 0 to 1. All random numbers come
        from `generator` (on the CPU).
        """

    def with_strength(self, strength: float) -> Guidance:
        """Return the method with lower noise levels, like KSampler's denoise: `strength` (0 to 1) scales the
        range from the lowest to the highest level at the start, and limits the levels later on.

        A method that draws no noise level is returned unchanged.
        """
        return self


@dataclass(frozen=True)
class Distillation(Guidance):
    """Settings of the methods that draw the noise level at random.

    Raises BadSetting for a setting out of its bounds, an empty noise range, or an interval longer than the
    highest noise level.
    """

    t_min: float = setting(
        0.02, MIN_T, 1, "Lowest noise level: 0 = clean, 1 = pure noise. Lower works on finer detail."
    )
    t_min_start: float = setting(
        0.0, 0, 1, "Lowest noise level at the start of the run; reaches t_min after the warm-up. 0 = t_min."
    )
    t_max: float = setting(
        0.5,
        MIN_T,
        1,
        "Highest noise level after the warm-up, from 0 to 1. Lower keeps more of the splat.",
    )
    t_max_start: float = setting(
        0.98, MIN_T, 1, "Highest noise level at the start of the run; falls to t_max over the warm-up."
    )
    warmup: float = setting(
        0.3, 0, 1, "Share of the run over which the noise range is annealed. 0 = no warm-up."
    )
    weight: float = setting(
        0.1,
        1e-6,
        1e6,
        "Weight of the guidance loss relative to the regularisers. Higher is sharper and noisier; 0.1 = "
        "LucidDreamer's value.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_min < self.t_max, "t_max", self.t_max, f"above t_min ({self.t_min})")
        require(
            self.t_max <= self.t_max_start, "t_max_start", self.t_max_start, f"at least t_max ({self.t_max})"
        )
        below = f"below t_max_start ({self.t_max_start})"
        require(self.t_min_start < self.t_max_start, "t_min_start", self.t_min_start, below)
        for name, t in self.reach(self.t_max_start, self.t_max).items():
            require(
                getattr(self, name) <= t,
                name,
                getattr(self, name),
                f"at most the highest noise level at that time ({t:g})",
            )

    def with_strength(self, strength: float) -> Distillation:
        """See Guidance. Intervals are shortened to fit the reduced noise range."""
        if strength == 1:
            return self
        top = self.t_min + strength * (self.t_max_start - self.t_min)
        last = min(self.t_max, top)
        start = max(top - MIN_T, 0.0)
        limits = {"t_max_start": top, "t_max": last, "t_min_start": start, **self.reach(top, last)}
        return replace(self, **{name: min(getattr(self, name), t) for name, t in limits.items()})

    def reach(self, first: float, last: float) -> dict[str, float]:
        """Return the maximum length of each interval setting, by name, when the highest noise level anneals
        from `first` to `last`.
        """
        return {}

    def anneal(self, progress: float, first: float, last: float) -> float:
        """Interpolate linearly from `first` to `last` over the warm-up."""
        return first + (min(progress / self.warmup, 1.0) if self.warmup else 1.0) * (last - first)

    def t(self, progress: float, u: float) -> float:
        """Return the noise level t, a fraction of the schedule, for `u` uniform in [0, 1)."""
        low = self.anneal(progress, max(self.t_min_start or self.t_min, MIN_T), self.t_min)
        return low + u * (self.anneal(progress, self.t_max_start, self.t_max) - low)

    def draw_t(self, progress: float, generator: Generator) -> float:
        return self.t(progress, torch.rand((), generator=generator).item())


def eps(prior: Prior, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
    """Predict the noise in z (B, C, h, w) once per conditioning -> list of (B, C, h, w)."""
    return [(z - z0) / sigma for z0 in prior.denoise(z, sigma, conds)]


def guided_eps(prior: Prior, z: Tensor, sigma: float, conds: Conds, cfg: float) -> Tensor:
    """Predict the noise with classifier-free guidance (and Perp-Neg) in one model call -> (B, C, h, w).

    At a cfg of 1 the negative conditioning is not evaluated, where nothing needs it.
    """
    if not (conds.others or prior.needs_negative(cfg)):
        return eps(prior, z, sigma, [conds.y])[0]
    e_y, e_negative, *e_others = eps(prior, z, sigma, [conds.y, conds.negative, *conds.others])
    if e_others:
        e_y = e_negative + towards(e_y - e_negative, [e - e_negative for e in e_others], conds.weights)
    return prior.guide(z, sigma, [conds.y, conds.negative], [e_y, e_negative], cfg)


def towards(main: Tensor, others: list[Tensor], weights: Tensor) -> Tensor:
    """Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968): main + sum over k of weights (B, K) times the
    component of others[k] perpendicular to main.

    main, others and the result are (B, C, h, w), as differences from the unconditional noise. Projections are
    per view.
    """
    total, size2 = main, main.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    for k, other in enumerate(others):
        along = (other * main).sum((1, 2, 3), keepdim=True) / size2
        total = total + weights[:, k].to(main).reshape(-1, 1, 1, 1) * (other - along * main)
    return total


def deterministic(sigma_a: float, sigma_b: float) -> tuple[float, float]:
    """The split of `ddim` without new noise."""
    return sigma_b, 0.0


def ddim(
    z: Tensor,
    sigmas: list[float],
    predict: Callable[[Tensor, float], Tensor],
    split: Callable[[float, float], tuple[float, float]] = deterministic,
    generator: Generator | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12) of z (B, C, h, w) along the noise levels `sigmas`, up or down.

    predict(z, sigma): the noise (B, C, h, w) in z. split(sigma_a, sigma_b): the standard deviations of the
    predicted noise and of the new noise after a step; new noise is drawn from `generator`.
    """
    for sigma_a, sigma_b in pairwise(sigmas):
        predicted, new = split(sigma_a, sigma_b)
        z = z + (predicted - sigma_a) * predict(z, sigma_a)
        if new:
            z = z + new * gaussian(z, generator)
    return z


def variance_of(sigma: float) -> float:
    """Return 1 - abar, the noise share of the variance of a noisy latent."""
    return sigma**2 / (1 + sigma**2)


def gaussian(like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise with the shape, device and dtype of `like`."""
    return torch.randn(like.shape, generator=generator).to(like)


def offset_noise(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise (B, C, h, w) plus one offset per channel with standard deviation 0.1, shared by
    the batch, as in LucidDreamer's code.
    """
    noise = torch.randn(like.shape, generator=generator)
    return (noise + 0.1 * torch.randn((1, like.shape[1], 1, 1), generator=generator)).to(like)


def draw_noise(like: Tensor, generator: Generator, fixed: bool) -> Tensor:
    """`fixed_noise` or `offset_noise`."""
    return (fixed_noise if fixed else offset_noise)(like, generator)


def fixed_noise(like: Tensor, generator: Generator) -> Tensor:
    """Offset noise that depends only on the run's seed, so that every step gets the same."""
    return offset_noise(like, Generator().manual_seed(generator.initial_seed() ^ FIXED_NOISE))


@dataclass(frozen=True)
class PixelGradient(BoundedSettings):
    """How the gradient at the views (B, H, W, 3) is computed and limited.

    Raises BadSetting for a value out of bounds.
    """

    image_residual: bool = setting(
        False,
        0,
        1,
        "Use the difference between view and decoded x0 prediction as the image gradient instead of "
        "backpropagating through the VAE encoder. Cleaner colours, less memory.",
    )
    pixel_limit: float = setting(
        0.0,
        0,
        1e6,
        "Maximum gradient per pixel channel, against speckle; 0 = automatic (set by guidance or model).",
        step=0.001,
    )
    pixel_average: int = setting(
        1,
        1,
        64,
        "Average the image gradient over squares of this many pixels, e.g. 8 as in a VAE latent; 1 = off.",
        step=1,
    )


def average_pixel_gradients(images: Tensor, size: int) -> None:
    """Register a hook that replaces the gradient at `images` (B, H, W, 3) by its mean over squares of `size`
    x `size` pixels; `size` must divide H and W, 1 = off.
    """
    if size > 1:

        def average(grad: Tensor) -> Tensor:
            means = avg_pool2d(grad.movedim(-1, 1), size)
            return means.repeat_interleave(size, 2).repeat_interleave(size, 3).movedim(1, -1)

        images.register_hook(average)


def clip_pixel_gradients(images: Tensor, limit: float) -> None:
    """Register a hook that clips the gradient at `images` (B, H, W, 3): no channel of a pixel exceeds
    `limit` (inf = no limit).

    Pixel-wise gradient clipping (Pan et al., ICLR 2024, arXiv 2310.12474), as in Dreamer XL's code: the three
    channels of a pixel are scaled by the same factor, which keeps their ratio.
    """
    if limit < math.inf:
        images.register_hook(lambda grad: grad * (limit / grad.abs().amax(-1, keepdim=True)).clamp(max=1))
