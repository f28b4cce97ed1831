"""Score Distillation Sampling (DreamFusion: Poole et al., ICLR 2023, arXiv 2209.14988), in variance-exploding
form.

code        paper               meaning
z0          x                   latents of the rendered views (B, C, h, w)
noise       epsilon             Gaussian noise (B, C, h, w), new in every step
e_t         eps_hat_phi         predicted noise with classifier-free guidance
cfg         omega               guidance scale; the paper counts from 0, so its 100 is 101 here
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import setting
from .base import MIN_T, Distillation, gaussian, guided_eps, variance_of


@dataclass(frozen=True)
class SDS(Distillation):
    """Settings of SDS; the defaults are the paper's. Times are fractions of the training schedule."""

    TITLE = "Score Distillation Sampling (DreamFusion)"

    cfg: float = setting(
        100.0,
        0,
        1000,
        "Classifier-free guidance scale. SDS needs a high value (100) to converge; 7.5 gives blurry results.",
        step=0.5,
        advanced=False,
    )
    t_max: float = setting(
        0.98,
        MIN_T,
        1,
        "Highest noise level after the warm-up, from 0 to 1. Lower keeps more of the splat.",
    )
    warmup: float = setting(
        0.0, 0, 1, "Share of the run over which the noise range is annealed. 0 = no warm-up."
    )

    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """See Guidance."""
        t, noise = self.draw_t(progress, generator), gaussian(z0, generator)
        with torch.no_grad():
            return self.weight * noise_residual(self, prior, z0.detach(), noise, t, conds)


def noise_residual(sds: SDS, prior: Prior, z0: Tensor, noise: Tensor, t: float, conds: Conds) -> Tensor:
    """Return g = w(t) * (e_t - noise) (B, C, h, w), equation 3 with w(t) = 1 - abar_t."""
    sigma = prior.sigma(t)
    # 1. add noise
    z_t = z0 + sigma * noise
    # 2. predicted noise minus added noise
    e_t = guided_eps(prior, z_t, sigma, conds, sds.cfg)
    return variance_of(sigma) * (e_t - noise)
