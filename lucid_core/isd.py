"""Invariant Score Distillation (VividDreamer: Zhuo et al., ECCV 2024, arXiv 2407.09822), in variance-exploding form.

code            paper       meaning
z_t, z_c        z_t, z_t-c  noisy latents, and the same one DDIM step of the prompted model lower
e_y             eps(z_t)    predicted noise with the prompt
invariant       delta_inv   what the prediction gains in that step, in the place of SDS's e - noise
classifier      delta_cls   with the prompt less without
sigma_c/sigma_t lambda(t)   with it, sigma_t * lambda * delta_inv is z0(z_t) - z0(z_c), two predictions of the image
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .checks import setting
from .prior import Conds, Prior
from .score import MIN_T, Distillation, eps, gaussian, towards, variance_of


@dataclass(frozen=True)
class ISD(Distillation):
    """Settings of the method. Times are fractions of the schedule."""

    TITLE = "Invariant Score Distillation (VividDreamer)"

    cfg: float = setting(7.5, 0, 1000, "Weight of the prompt against no prompt; a medium one will do.", step=0.5, rare=False)
    interval: float = setting(0.02, MIN_T, 1, "Length of the DDIM step whose gain is followed (the paper's c).")

    def reach(self, first: float, last: float) -> dict[str, float]:
        """See Distillation."""
        return {"interval": last}

    def gradient(self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """See Guidance."""
        t, noise = self.draw_t(progress, generator), gaussian(z0, generator)
        with torch.no_grad():
            return self.weight * invariant_score(self, prior, z0.detach(), noise, t, conds)


def invariant_score(isd: ISD, prior: Prior, z0: Tensor, noise: Tensor, t: float, conds: Conds) -> Tensor:
    """g = w(t) * (lambda(t) * delta_inv + cfg * delta_cls), w = 1 - abar_t."""
    sigma_t, sigma_c = prior.sigma(t), prior.sigma(max(t - isd.interval, MIN_T))
    # 1. add noise
    z_t = z0 + sigma_t * noise
    # 2. with and without the prompt
    e_y, e_negative, *e_others = eps(prior, z_t, sigma_t, [conds.y, conds.negative, *conds.others])
    classifier = towards(e_y - e_negative, [e - e_negative for e in e_others], conds.weights)
    # 3. one DDIM step down with the prompt, and what it predicts there
    z_c = z_t + (sigma_c - sigma_t) * e_y
    invariant = eps(prior, z_c, sigma_c, [conds.y])[0] - e_y
    return variance_of(sigma_t) * (sigma_c / sigma_t * invariant + isd.cfg * classifier)
