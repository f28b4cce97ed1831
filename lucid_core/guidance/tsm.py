"""Trajectory Score Matching (Dreamer XL: Miao et al., arXiv 2405.11252), in variance-exploding form.

code            paper       meaning
t, mu, s        t, mu, s    fractions of the schedule; s < mu < t
z_mu, z_t       x_mu, x_t   latents (B, C, h, w), each one DDIM step from z_s with the inversion prompt
e_mu, e_t       eps_phi     predicted noise at mu with the inversion prompt, at t with the positive prompt
gamma           gamma       mu = s + gamma * (t - s) (theorem 1); 0 is ISM
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import setting
from .base import guided_eps
from .ism import ISM, inverse_eps, invert_to


@dataclass(frozen=True)
class TSM(ISM):
    """Settings of TSM, in addition to ISM's; the defaults are the authors' (their 0.3 corresponds to gamma =
    sqrt(1 - 0.3^2)).
    """

    TITLE = "Trajectory Score Matching (Dreamer XL)"

    gamma: float = setting(
        0.954, 0, 1, "Position of mu in the interval from s to t. 0 = s, the same as ISM; 1 = t."
    )
    pixel_limit: float = setting(
        0.05,
        1e-6,
        1e6,
        "Pixel-wise gradient clipping: largest gradient of one colour channel, for models with unstable "
        "gradients such as SDXL. Large values = no limit.",
        step=0.01,
    )

    def score(
        self, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds, generator: Generator
    ) -> Tensor:
        """See ISM."""
        return trajectory_score(self, prior, z0, noise, t, s, conds, generator)


def trajectory_score(
    tsm: TSM, prior: Prior, z0: Tensor, noise: Tensor, t: float, s: float, conds: Conds, generator: Generator
) -> Tensor:
    """Return g = sigma_t * (e_t - e_mu) (B, C, h, w), equation 7 with the weight of the authors' code."""
    mu = s + tsm.gamma * (t - s)
    sigma_s, sigma_mu, sigma_t = prior.sigma(s), prior.sigma(mu), prior.sigma(t)
    # 1. invert z0 to z_s with the inversion prompt
    z_s = invert_to(tsm, prior, z0, noise, s, conds, generator)
    # 2. two DDIM paths from z_s (equations 4 and 5)
    e_s = inverse_eps(prior, z_s, sigma_s, conds, tsm.inversion_cfg)
    z_mu, z_t = z_s + (sigma_mu - sigma_s) * e_s, z_s + (sigma_t - sigma_s) * e_s
    # 3. compare the predicted noise at their ends
    e_mu = inverse_eps(prior, z_mu, sigma_mu, conds, tsm.inversion_cfg)
    e_t = guided_eps(prior, z_t, sigma_t, conds, tsm.cfg)
    return sigma_t * (e_t - e_mu)
