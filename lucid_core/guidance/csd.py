"""Classifier Score Distillation (Yu et al., ICLR 2024, arXiv 2310.19415), in variance-exploding form.

code            paper           meaning
z_t             x_t             noisy latents of the views (B, C, h, w)
e_y             eps_phi(y)      predicted noise with the positive prompt
e_negative      eps_phi(y_neg)  predicted noise with the negative prompt
e_inverse       eps_phi         predicted noise without a prompt (inversion prompt, empty by default)
negative_share  -               share of e_negative in the reference prediction; the rest is e_inverse
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import setting
from .base import Distillation, eps, gaussian, towards, variance_of


@dataclass(frozen=True)
class CSD(Distillation):
    """Settings of CSD. Times are fractions of the training schedule."""

    TITLE = "Classifier Score Distillation"

    negative_share_start: float = setting(
        1.0,
        0,
        1,
        "Share of the negative prompt in the reference prediction at the start of the run; the rest is "
        "the inversion prompt. 1 = negative prompt only, which saves one model evaluation.",
    )
    negative_share: float = setting(
        1.0, 0, 1, "Share of the negative prompt after the warm-up. The authors' code refines from 1 to 0.5."
    )

    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """See Guidance."""
        t, noise = self.draw_t(progress, generator), gaussian(z0, generator)
        share = self.anneal(progress, self.negative_share_start, self.negative_share)
        with torch.no_grad():
            return self.weight * classifier_score(prior, z0.detach(), noise, t, share, conds)


def classifier_score(
    prior: Prior, z0: Tensor, noise: Tensor, t: float, negative_share: float, conds: Conds
) -> Tensor:
    """Return g = w(t) * (e_y - reference) (B, C, h, w) with w = 1 - abar_t, for z0 and noise (B, C, h, w).

    This is only the classifier term of SDS, so it has no cfg.
    """
    sigma = prior.sigma(t)
    # 1. add noise
    z_t = z0 + sigma * noise
    # 2. all predictions in one call
    empty = [conds.inverse] if negative_share < 1 else []
    e_y, e_base, *rest = eps(prior, z_t, sigma, [conds.y, conds.negative, *empty, *conds.others])
    if empty:
        e_base = negative_share * e_base + (1 - negative_share) * rest.pop(0)
    # 3. the implicit classifier's score
    return variance_of(sigma) * towards(e_y - e_base, [e - e_base for e in rest], conds.weights)
