"""Invariant Score Distillation (VividDreamer: Zhuo et al., ECCV 2024, arXiv 2407.09822), in
variance-exploding form.

code            paper       meaning
z_t, z_c        z_t, z_t-c  noisy latents (B, C, h, w), and the same after one DDIM step down with the prompt
e_y             eps(z_t)    predicted noise with the positive prompt
invariant       delta_inv   change of the predicted noise over that step; replaces e - noise of SDS
classifier      delta_cls   predicted noise with the positive prompt minus that with the negative prompt
sigma_c/sigma_t lambda(t)   sigma_t * lambda * delta_inv = z0(z_t) - z0(z_c), two x0 predictions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import setting
from .base import MIN_T, Distillation, eps, gaussian, towards, variance_of


@dataclass(frozen=True)
class ISD(Distillation):
    """Settings of ISD. Times are fractions of the training schedule."""

    TITLE = "Invariant Score Distillation (VividDreamer)"

    cfg: float = setting(
        7.5,
        0,
        1000,
        "Weight of the classifier-free guidance term. Medium values such as 7.5 are enough; 0 = off.",
        step=0.5,
        advanced=False,
    )
    interval: float = setting(
        0.02,
        MIN_T,
        1,
        "Length of the DDIM step of the invariant term, as a fraction of the schedule (c in the paper).",
    )

    def reach(self, first: float, last: float) -> dict[str, float]:
        """See Distillation."""
        return {"interval": last}

    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """See Guidance."""
        t, noise = self.draw_t(progress, generator), gaussian(z0, generator)
        with torch.no_grad():
            return self.weight * invariant_score(self, prior, z0.detach(), noise, t, conds)


def invariant_score(isd: ISD, prior: Prior, z0: Tensor, noise: Tensor, t: float, conds: Conds) -> Tensor:
    """Return g = w(t) * (lambda(t) * delta_inv + cfg * delta_cls) (B, C, h, w) with w = 1 - abar_t."""
    sigma_t, sigma_c = prior.sigma(t), prior.sigma(max(t - isd.interval, MIN_T))
    # 1. add noise
    z_t = z0 + sigma_t * noise
    # 2. classifier term: positive minus negative prompt
    e_y, e_negative, *e_others = eps(prior, z_t, sigma_t, [conds.y, conds.negative, *conds.others])
    classifier = towards(e_y - e_negative, [e - e_negative for e in e_others], conds.weights)
    # 3. invariant term: change of the predicted noise over one DDIM step down with the prompt
    z_c = z_t + (sigma_c - sigma_t) * e_y
    invariant = eps(prior, z_c, sigma_c, [conds.y])[0] - e_y
    return variance_of(sigma_t) * (sigma_c / sigma_t * invariant + isd.cfg * classifier)
