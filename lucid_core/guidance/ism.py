"""Interval Score Matching (LucidDreamer: Liang et al., CVPR 2024, arXiv 2311.11284), in variance-exploding
form.

code            paper       meaning
t, s            t, s        fractions of the training schedule, s = t - delta_t
z0              x0          latents of the rendered views (B, C, h, w)
z_s, z_t        x_s, x_t    noisy latents (B, C, h, w) by DDIM inversion of z0; here z = x / sqrt(abar)
e_s, e_t        eps_phi     predicted noise at s with the inversion prompt, at t with the positive prompt
delta_t         delta_T     interval between s and t
delta_s         delta_S     stride of the inversion from z0 to z_s
y, inverse      y, empty    positive prompt of each view; inversion prompt
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from typing_extensions import Self

from ..diffusion.prior import Conds, Prior
from ..settings import setting
from .base import MIN_T, Distillation, ddim, draw_noise, eps, guided_eps


@dataclass(frozen=True)
class ISM(Distillation):
    """Settings of ISM; the defaults are the official ones (SD 2.1-base). Times are fractions of the training
    schedule.
    """

    cfg: float = setting(
        7.5,
        0,
        1000,
        "Classifier-free guidance scale. Higher follows the prompt more closely and saturates colours; "
        "1 = positive prompt only.",
        step=0.5,
        advanced=False,
    )
    cfg_start: float = setting(
        0.0,
        0,
        1000,
        "Guidance scale at the start of the run; reaches cfg after the warm-up. 0 = cfg.",
        step=0.5,
    )
    delta_t: float = setting(
        0.08, MIN_T, 1, "Interval between the two compared noise levels, as a fraction of the schedule."
    )
    delta_t_start: float = setting(
        0.1, MIN_T, 1, "Interval at the start of the run; reaches delta_t after the warm-up."
    )
    delta_s: float = setting(
        0.2,
        MIN_T,
        1,
        "Stride of the DDIM inversion, as a fraction of the schedule. Longer is cheaper and coarser.",
    )
    inversion_steps: int = setting(
        5,
        0,
        50,
        "Maximum number of DDIM inversion steps. 0 = random noise at the lower noise level instead.",
        step=1,
    )
    inversion_cfg: float = setting(
        0.0,
        0,
        1000,
        "Weight of the negative prompt in the inversion. Higher strengthens the guidance; 0 = inversion "
        "prompt only.",
        step=0.5,
    )
    eta: float = setting(0.0, 0, 1, "Share of new noise in each inversion step. 0 = deterministic inversion.")
    fix_noise: bool = setting(False, 0, 1, "Use the same noise in every step instead of new noise.")

    def reach(self, first: float, last: float) -> dict[str, float]:
        """See Distillation."""
        return {"delta_t": last, "delta_t_start": first}

    def times(self, progress: float, u: float) -> tuple[float, float]:
        """Return the times (t, s) for `progress` of the run in [0, 1] and `u` uniform in [0, 1)."""
        t = self.t(progress, u)
        return t, max(t - self.anneal(progress, self.delta_t_start, self.delta_t), MIN_T)

    def at(self, progress: float) -> Self:
        """Return these settings with cfg annealed to `progress`."""
        return replace(self, cfg=self.anneal(progress, self.cfg_start or self.cfg, self.cfg))

    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """See Guidance."""
        t, s = self.times(progress, torch.rand((), generator=generator).item())
        noise = draw_noise(z0, generator, self.fix_noise)
        with torch.no_grad():
            return self.weight * self.at(progress).score(prior, z0.detach(), noise, t, s, conds, generator)

    def score(
        self, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds, generator: Generator
    ) -> Tensor:
        """Return the unweighted gradient (B, C, h, w) at z0 for one draw of the noise and of the times."""
        return interval_score(self, prior, z0, noise, t, s, conds, generator)


PRESETS = {
    "official": ISM(),
    # One inversion stride instead of up to five: 3.9 model evaluations per view on average instead of 4.5.
    # With 2 views per step instead of 4 this is 44% of official's cost, for 0.2 dB less (docs/lab-notes.md).
    "fast": ISM(delta_s=1.0, inversion_steps=1),
    # For runs of minutes on a CPU with a small model, which needs another noise range than the official one.
    # ISM's gradient on an error in a view is the x0 prediction at s minus that at t. At t below 0.3 both
    # predictions contain the error, so the gradient is near zero and only the model's bias remains
    # (docs/lab-notes.md); the range therefore rises above it. A high cfg forms the shape, then a low cfg
    # removes exaggerations. Without inversion a view costs three evaluations per step instead of four. With a
    # small model, whose predictions hardly depend on the noise, ISM followed by image targets is better for
    # it on average; fields by ISM alone are not (docs/lab-notes.md).
    "cpu": ISM(
        cfg=2.0,
        cfg_start=5.0,
        t_min=0.4,
        t_min_start=0.02,
        t_max=0.7,
        t_max_start=0.8,
        inversion_steps=0,
        warmup=0.8,
    ),
}


def interval_score(
    ism: ISM, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds, generator: Generator
) -> Tensor:
    """Return g = sigma_t * (e_t - e_s) (B, C, h, w) for z0 and noise (B, C, h, w).

    Equation 17 of the paper with w(t) = sqrt((1 - abar_t) / abar_t), as in the official code.
    """
    sigma_s, sigma_t = prior.sigma(s), prior.sigma(t)
    # 1. invert z0 to z_s with the inversion prompt
    z_s = invert_to(ism, prior, z0, noise, s, conds, generator)
    # 2. one more inversion step leads to z_t; its predicted noise e_s is also the reference for e_t
    e_s = inverse_eps(prior, z_s, sigma_s, conds, ism.inversion_cfg)
    z_t = z_s + (sigma_t - sigma_s) * e_s
    # 3. predict the noise at t with the positive prompt
    e_t = guided_eps(prior, z_t, sigma_t, conds, ism.cfg)
    return sigma_t * (e_t - e_s)


def invert_to(
    ism: ISM, prior: Prior, z0: Tensor, noise: Tensor, s: float, conds: Conds, generator: Generator
) -> Tensor:
    """Return z_s (B, C, h, w) by DDIM inversion of z0 (B, C, h, w).

    `noise` (B, C, h, w) is added at the first time (equation 12); with `eta` each later step adds new noise.
    """
    sigmas = [prior.sigma(time) for time in inversion_times(s, ism.delta_s, ism.inversion_steps)]
    predict = lambda z, sigma: inverse_eps(prior, z, sigma, conds, ism.inversion_cfg)

    def split(sigma_a: float, sigma_b: float) -> tuple[float, float]:
        new = fresh_noise(sigma_a, sigma_b, ism.eta)
        return math.sqrt(sigma_b**2 - new**2), new

    return ddim(z0 + sigmas[0] * noise, sigmas, predict, split, generator)


def inversion_times(s: float, delta_s: float, steps: int) -> list[float]:
    """Return the times of the inversion, fractions of the schedule: from max(s - steps * delta_s, MIN_T) up
    to s in strides of delta_s; the last stride may be shorter.
    """
    start = max(s - steps * delta_s, MIN_T)
    grid = (start + i * delta_s for i in range(steps))
    return [time for time in grid if time < s - 1e-9] + [s]


def fresh_noise(sigma_a: float, sigma_b: float, eta: float) -> float:
    """Return the standard deviation of the new noise in a step from sigma_a up to sigma_b.

    DDIM's equation 16 in the upward direction. eta scales the variance, and at most half of the variance is
    new, as in the official code.
    """
    return sigma_b * math.sqrt(min(eta * (sigma_b**2 / sigma_a**2 - 1), 0.5))


def inverse_eps(prior: Prior, z: Tensor, sigma: float, conds: Conds, inversion_cfg: float) -> Tensor:
    """Predict the inversion's noise (B, C, h, w) with the inversion prompt, extrapolated towards the negative
    prompt by `inversion_cfg` (the official code's reverse cfg; 0 = off).
    """
    if not inversion_cfg:
        return eps(prior, z, sigma, [conds.inverse])[0]
    e_inverse, e_negative = eps(prior, z, sigma, [conds.inverse, conds.negative])
    return e_inverse + inversion_cfg * (e_negative - e_inverse)
