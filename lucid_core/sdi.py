"""Score Distillation via Inversion (Lukoianov et al., NeurIPS 2024, arXiv 2405.15891), in variance-exploding form.

code            paper       meaning
t               t - tau     fraction of the schedule at which the model is asked; falls over the run
z0              x0(t)       latents of the rendered views (B, C, h, w)
kappa           kappa_y^t   the noise that DDIM inversion with the prompt finds in z0
e_t             eps_theta   predicted noise for z0 noised with kappa
cfg             gamma_fwd   classifier-free guidance of e_t
inversion_cfg   gamma_inv   the same in the inversion; negative works best (section 5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from .checks import check_bounds, require, setting
from .prior import Conds, Prior
from .score import MIN_T, gaussian, guided_eps


@dataclass(frozen=True)
class SDI:
    """Settings of the method; the defaults are the paper's, and its code's where it gives none. Times are fractions.

    The code counts both cfg from 0: its 7.5 and -7.5 are 8.5 and -6.5 here.
    """

    TITLE = "Score Distillation via Inversion"
    pixel_limit = math.inf

    cfg: float = setting(7.5, 0, 1000, "Classifier-free guidance scale.", step=0.5, rare=False)
    t_max: float = setting(0.98, MIN_T, 1, "Noise when the run begins; it falls to t_min in a straight line.")
    t_min: float = setting(0.25, MIN_T, 1, "Noise at the end of the run.")
    inversion_cfg: float = setting(-7.5, -1000, 1000, "Classifier-free guidance scale of the inversion.", step=0.5)
    inversion_steps: int = setting(10, 1, 100, "Steps that an inversion of the whole schedule would take.", step=1)
    eta: float = setting(0.3, 0, 1, "Share of new noise in each step of the inversion; 0 = none.")
    weight: float = setting(0.1, 1e-6, 1e6, "Weight of the guidance beside the regularisers.")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_min < self.t_max, "t_max", self.t_max, f"above t_min ({self.t_min})")

    def gradient(self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """See Guidance."""
        t = self.t_max + progress * (self.t_min - self.t_max)
        top = min(t + torch.rand((), generator=generator).item() / self.inversion_steps, 1.0)
        with torch.no_grad():
            return self.weight * inversion_score(self, prior, z0.detach(), t, top, conds, generator)


def inversion_score(sdi: SDI, prior: Prior, z0: Tensor, t: float, top: float, conds: Conds, generator: Generator) -> Tensor:
    """g = sigma_t * (e_t - kappa): equation 10. It is z0 less the prediction of z0: one step leads to the target."""
    # 1. invert z0 with the prompt up to a little above t
    sigmas = [prior.sigma(time) for time in inversion_times(t, top, sdi.inversion_steps)]
    z = inverted(sdi, prior, z0, sigmas, conds, generator)
    kappa = (z - z0) / sigmas[-1]
    # 2. the same noise at t, and what the model makes of it
    sigma_t = prior.sigma(t)
    e_t = guided_eps(prior, z0 + sigma_t * kappa, sigma_t, conds, sdi.cfg)
    return sigma_t * (e_t - kappa)


def inversion_times(t: float, top: float, steps: int) -> list[float]:
    """From the clean image by equal strides of the schedule as far as they stay below t, then to `top`."""
    return [*(MIN_T + i / steps for i in range(steps) if MIN_T + i / steps < t), top]


def inverted(sdi: SDI, prior: Prior, z0: Tensor, sigmas: list[float], conds: Conds, generator: Generator) -> Tensor:
    """DDIM inversion from the clean z0; the model, which does not know sigma 0, is asked about it at the lowest level."""
    z = z0
    for sigma_a, sigma_b in pairwise(sigmas):
        start = 0.0 if sigma_a == sigmas[0] else sigma_a
        z = z + (sigma_b - start) * guided_eps(prior, z, sigma_a, conds, sdi.inversion_cfg)
        if sdi.eta and start:
            z = z + sdi.eta * fresh_noise(start, sigma_b) * gaussian(z, generator)
    return z


def fresh_noise(sigma_a: float, sigma_b: float) -> float:
    """The authors' noise for a stride up: DDIM's (equation 16 there) for the stride down, at the upper level's scale."""
    ratio = (1 + sigma_b**2) / (1 + sigma_a**2)
    return sigma_a / sigma_b * ((sigma_b**2 - sigma_a**2) * ratio) ** 0.5
