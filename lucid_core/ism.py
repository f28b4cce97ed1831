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

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor

from .checks import setting
from .prior import Conds, Prior
from .score import MIN_T, Distillation, eps, fixed_noise, gaussian, guided_eps, offset_noise


@dataclass(frozen=True)
class ISM(Distillation):
    """Settings of the method; the defaults are the official ones (SD 2.1-base). Times are fractions of the schedule."""

    cfg: float = setting(7.5, 0, 1000, "Classifier-free guidance scale. Higher follows the prompt harder and saturates "
                         "colours; 1 = the prompt alone.", step=0.5, rare=False)  # fmt: skip
    cfg_start: float = setting(0.0, 0, 1000, "cfg when the run begins; it goes to cfg over the warm-up. 0 = cfg.", step=0.5)
    delta_t: float = setting(0.08, MIN_T, 1, "The interval between the two noise levels that are compared.")
    delta_t_start: float = setting(0.1, MIN_T, 1, "The interval when the run begins; it goes to delta_t over the warm-up.")
    delta_s: float = setting(0.2, MIN_T, 1, "Stride of the DDIM inversion. Longer is cheaper and coarser.")
    inversion_steps: int = setting(5, 0, 50, "Most steps of the DDIM inversion; 0 = none: plain noise at the lower end "
                                   "of the interval.", step=1)  # fmt: skip
    inversion_cfg: float = setting(0.0, 0, 1000, "Pull of the negative prompt on the inversion, which strengthens the "
                                   "guidance; 0 = the inverse prompt alone.", step=0.5)  # fmt: skip
    eta: float = setting(0.0, 0, 1, "Share of new noise in each step of the inversion; 0 = none: the inversion is exact.")
    fix_noise: bool = setting(False, 0, 1, "Use one noise for the whole run instead of a new one in every step.")

    def reach(self, first: float, last: float) -> dict[str, float]:
        """See Distillation."""
        return {"delta_t": last, "delta_t_start": first}

    def times(self, progress: float, u: float) -> tuple[float, float]:
        """Draw (t, s): `progress` of the run in [0, 1], `u` uniform in [0, 1)."""
        t = self.t(progress, u)
        return t, max(t - self.annealed(progress, self.delta_t_start, self.delta_t), MIN_T)

    def at(self, progress: float) -> ISM:
        """These settings with the cfg of that moment."""
        return replace(self, cfg=self.annealed(progress, self.cfg_start or self.cfg, self.cfg))

    def gradient(self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """See Guidance."""
        t, s = self.times(progress, torch.rand((), generator=generator).item())
        now = self.at(progress)
        noise = (fixed_noise if self.fix_noise else offset_noise)(z0, generator)
        with torch.no_grad():
            return self.weight * interval_score(now, prior, z0.detach(), noise, t, s, conds, generator)


PRESETS = {
    "official": ISM(),
    # One inversion stride instead of up to five: 3.9 model evaluations a view on average in place of 4.5. With 2 views a step
    # in place of 4 that is 44% of official's, for 0.2 dB (BENCHMARKS.md).
    "fast": ISM(delta_s=1.0, inversion_steps=1),
    # Minutes on a CPU with a small model, which asks for other noise than the official range. ISM's pull on what a view shows
    # wrong is x0 predicted at s minus x0 predicted at t: at t below 0.3 both predictions show it, the pull is near nothing
    # and the model's own bias is left (BENCHMARKS.md), so the range climbs out of there. A high cfg finds the shape, a low
    # one then lets go of what it exaggerates. One long inversion stride keeps most of what five give.
    "cpu": ISM(
        cfg=2.0,
        cfg_start=5.0,
        t_min=0.4,
        t_min_start=0.02,
        t_max=0.7,
        t_max_start=0.8,
        delta_s=1.0,
        inversion_steps=1,
        warmup=0.8,
    ),
}


def interval_score(
    ism: ISM, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds, generator: Generator
) -> Tensor:
    """g = sigma_t * (e_t - e_s): equation 17 of the paper with w(t) = sqrt((1 - abar_t) / abar_t), as in its code."""
    sigma_s, sigma_t = prior.sigma(s), prior.sigma(t)
    # 1. invert z0 to z_s without the prompt
    z_s = inverted(ism, prior, z0, noise, s, conds, generator)
    # 2. one more step of the same inversion leads to z_t; its noise e_s is also what e_t is compared with
    e_s = inverse_eps(prior, z_s, sigma_s, conds, ism.inversion_cfg)
    z_t = z_s + (sigma_t - sigma_s) * e_s
    # 3. with the prompt
    e_t = guided_eps(prior, z_t, sigma_t, conds, ism.cfg)
    return sigma_t * (e_t - e_s)


def inverted(ism: ISM, prior: Prior, z0: Tensor, noise: Tensor, s: float, conds: Conds, generator: Generator) -> Tensor:
    """z_s by DDIM inversion of z0; noise is added at its first time (equation 12), `eta` of it anew later."""
    sigmas = [prior.sigma(time) for time in inversion_times(s, ism.delta_s, ism.inversion_steps)]
    z = z0 + sigmas[0] * noise
    for sigma_a, sigma_b in pairwise(sigmas):
        e = inverse_eps(prior, z, sigma_a, conds, ism.inversion_cfg)
        fresh = fresh_noise(sigma_a, sigma_b, ism.eta)
        z = z - sigma_a * e + (sigma_b**2 - fresh**2) ** 0.5 * e
        z = z + fresh * gaussian(z, generator) if fresh else z
    return z


def inversion_times(s: float, delta_s: float, steps: int) -> list[float]:
    """Times of the inversion: from max(s - steps * delta_s, 0) by delta_s up to s; the last stride may be shorter."""
    start = max(s - steps * delta_s, MIN_T)
    grid = (start + i * delta_s for i in range(steps))
    return [time for time in grid if time < s - 1e-9] + [s]


def fresh_noise(sigma_a: float, sigma_b: float, eta: float) -> float:
    """Standard deviation of the new noise in a step from sigma_a up to sigma_b.

    DDIM's equation 16 run upwards, with eta on the variance and at most half of it new, as in the official code.
    """
    return sigma_b * min(eta * (sigma_b**2 / sigma_a**2 - 1), 0.5) ** 0.5


def inverse_eps(prior: Prior, z: Tensor, sigma: float, conds: Conds, inversion_cfg: float) -> Tensor:
    """The inversion's noise: under the inverse prompt, pulled towards the negative one (the official code's reverse cfg)."""
    if not inversion_cfg:
        return eps(prior, z, sigma, [conds.inverse])[0]
    e_inverse, e_negative = eps(prior, z, sigma, [conds.inverse, conds.negative])
    return e_inverse + inversion_cfg * (e_negative - e_inverse)
