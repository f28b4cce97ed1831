"""Trajectory Score Matching (Dreamer XL: Miao et al., arXiv 2405.11252), in variance-exploding form.

code            paper       meaning
t, mu, s        t, mu, s    fractions of the schedule; s < mu < t
z_mu, z_t       x_mu, x_t   both one DDIM step without the prompt from z_s: two paths from one start
e_mu, e_t       eps_phi     predicted noise at mu without the prompt, at t with it
gamma           gamma       mu = s + gamma * (t - s) (theorem 1); 0 is ISM
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .checks import setting
from .ism import ISM, inverse_eps, inverted
from .prior import Conds, Prior
from .score import fixed_noise, guided_eps, offset_noise


@dataclass(frozen=True)
class TSM(ISM):
    """Settings of the method: ISM's and its own; the defaults are the authors' (their 0.3 enters as sqrt(1 - 0.3^2))."""

    TITLE = "Trajectory Score Matching (Dreamer XL)"

    gamma: float = setting(0.954, 0, 1, "Where in the interval the second path ends: 0 at its lower end (ISM), 1 at its top.")
    pixel_limit: float = setting(0.05, 1e-6, 1e6, "Most that a channel of a pixel may pull, for models with unstable "
                                 "gradients such as SDXL; large = no limit.", step=0.01)  # fmt: skip

    def gradient(self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """See Guidance."""
        t, s = self.times(progress, torch.rand((), generator=generator).item())
        noise = (fixed_noise if self.fix_noise else offset_noise)(z0, generator)
        with torch.no_grad():
            return self.weight * trajectory_score(self.at(progress), prior, z0.detach(), noise, t, s, conds, generator)


def trajectory_score(
    tsm: TSM, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds, generator: Generator
) -> Tensor:
    """g = sigma_t * (e_t - e_mu): equation 7, with the weight of their code."""
    mu = s + tsm.gamma * (t - s)
    sigma_s, sigma_mu, sigma_t = prior.sigma(s), prior.sigma(mu), prior.sigma(t)
    # 1. invert z0 to z_s without the prompt
    z_s = inverted(tsm, prior, z0, noise, s, conds, generator)
    # 2. two paths from there (equations 4 and 5)
    e_s = inverse_eps(prior, z_s, sigma_s, conds, tsm.inversion_cfg)
    z_mu, z_t = z_s + (sigma_mu - sigma_s) * e_s, z_s + (sigma_t - sigma_s) * e_s
    # 3. compare their ends
    e_mu = inverse_eps(prior, z_mu, sigma_mu, conds, tsm.inversion_cfg)
    e_t = guided_eps(prior, z_t, sigma_t, conds, tsm.cfg)
    return sigma_t * (e_t - e_mu)
