"""Interval Score Matching (LucidDreamer: Liang et al., CVPR 2024, arXiv 2311.11284), in variance-exploding form.

code            paper       meaning
t, s            t, s        fractions of the training schedule, s = t - delta_t
z0              x0          latents of the rendered views (B, C, h, w)
z_s, z_t        x_s, x_t    noisy latents, by DDIM inversion of z0; here z = x / sqrt(abar)
e_s, e_t        eps_phi     predicted noise at s without the prompt, at t with it
delta_t         delta_T     the interval
delta_s         delta_S     stride of the inversion that leads from z0 to z_s
y, inverse      y, empty    prompt of each view; prompt of the inversion
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from .checks import check_bounds, require, setting
from .prior import Cond, Conds, Prior

MIN_T = 1e-3  # one step of a 1000-step schedule: where the division by sigma is still safe


@dataclass(frozen=True)
class ISM:
    """Settings of the method; the defaults are the official ones (SD 2.1-base). Times are fractions of the schedule."""

    cfg: float = setting(7.5, 0, 1000, "Classifier-free guidance scale. Higher follows the prompt harder and saturates "
                         "colours; 1 = the prompt alone.", step=0.5, rare=False)  # fmt: skip
    t_min: float = setting(0.02, MIN_T, 1, "Least noise that the model is asked about, as a fraction of its schedule.")
    t_max: float = setting(0.5, MIN_T, 1, "Most noise, after the warm-up. Lower keeps what the splat already shows.")
    t_max_start: float = setting(0.98, MIN_T, 1, "Most noise when the run begins; it falls to t_max over the warm-up.")
    delta_t: float = setting(0.08, MIN_T, 1, "The interval between the two noise levels that are compared.")
    delta_t_start: float = setting(0.1, MIN_T, 1, "The interval when the run begins; it goes to delta_t over the warm-up.")
    delta_s: float = setting(0.2, MIN_T, 1, "Stride of the DDIM inversion. Longer is cheaper and coarser.")
    inversion_steps: int = setting(5, 0, 50, "Most steps of the DDIM inversion; 0 = none: plain noise at the lower end "
                                   "of the interval.", step=1)  # fmt: skip
    warmup: float = setting(0.3, 0, 1, "Share of the run over which the noise range and the interval anneal; 0 = none.")
    weight: float = setting(0.1, 1e-6, 1e6, "Weight of the guidance beside the regularisers (the paper's lambda).")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_min < self.t_max, "t_max", self.t_max, f"above t_min ({self.t_min})")
        require(self.t_max <= self.t_max_start, "t_max_start", self.t_max_start, f"at least t_max ({self.t_max})")

    def times(self, progress: float, u: float) -> tuple[float, float]:
        """Draw (t, s): `progress` of the run in [0, 1], `u` uniform in [0, 1)."""
        start = 1 - min(progress / self.warmup, 1) if self.warmup else 0.0
        t_max = self.t_max + start * (self.t_max_start - self.t_max)
        delta_t = self.delta_t + start * (self.delta_t_start - self.delta_t)
        t = self.t_min + u * (t_max - self.t_min)
        return t, max(t - delta_t, MIN_T)

    def gradient(self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """d loss / d z0 for one batch of views (B, C, h, w); no graph is kept.

        `progress` is the fraction of the run that is done. Randomness comes from `generator` (on the CPU) alone.
        """
        t, s = self.times(progress, torch.rand((), generator=generator).item())
        noise = offset_noise(z0, generator)
        with torch.no_grad():
            return self.weight * interval_score(self, prior, z0.detach(), noise, t, s, conds)


PRESETS = {
    "official": ISM(),
    # Minutes on a CPU. One long inversion stride keeps most of what five give (without any, gradients are far noisier) for
    # 4 model evaluations a view; a lower, longer fall of t_max replaces the steps that there is no time for.
    "cpu": ISM(cfg=5.0, t_max=0.3, t_max_start=0.8, delta_s=1.0, inversion_steps=1, warmup=0.8),
}


def interval_score(ism: ISM, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds) -> Tensor:
    """g = sigma_t * (e_t - e_s): equation 17 of the paper with w(t) = sqrt((1 - abar_t) / abar_t), as in its code."""
    sigma_s, sigma_t = prior.sigma(s), prior.sigma(t)
    # 1. invert z0 to z_s without the prompt
    z_s = invert(prior, z0, noise, inversion_times(s, ism.delta_s, ism.inversion_steps), conds.inverse)
    # 2. one more step of the same inversion leads to z_t; its noise e_s is also what e_t is compared with
    e_s = eps(prior, z_s, sigma_s, [conds.inverse])[0]
    z_t = z_s + (sigma_t - sigma_s) * e_s
    # 3. with the prompt, by classifier-free guidance
    e_y, e_negative = eps(prior, z_t, sigma_t, [conds.y, conds.negative])
    e_t = e_negative + ism.cfg * (e_y - e_negative)
    return sigma_t * (e_t - e_s)


def inversion_times(s: float, delta_s: float, steps: int) -> list[float]:
    """Times of the inversion: from max(s - steps * delta_s, 0) by delta_s up to s; the last stride may be shorter."""
    start = max(s - steps * delta_s, MIN_T)
    grid = (start + i * delta_s for i in range(steps))
    return [time for time in grid if time < s - 1e-9] + [s]


def invert(prior: Prior, z0: Tensor, noise: Tensor, times: list[float], cond: Cond) -> Tensor:
    """DDIM inversion of z0 along `times`; noise is added once, at the first of them (equation 12)."""
    sigmas = [prior.sigma(time) for time in times]
    z = z0 + sigmas[0] * noise
    for sigma_a, sigma_b in pairwise(sigmas):
        z = z + (sigma_b - sigma_a) * eps(prior, z, sigma_a, [cond])[0]
    return z


def eps(prior: Prior, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
    """Predicted noise for each conditioning."""
    return [(z - z0) / sigma for z0 in prior.denoise(z, sigma, conds)]


def offset_noise(like: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise plus a constant per channel of a tenth of it, shared by the batch, as in the official code."""
    shape = like.shape
    noise = torch.randn(shape, generator=generator) + 0.1 * torch.randn((1, shape[1], 1, 1), generator=generator)
    return noise.to(like)
