"""Score Distillation via Inversion (Lukoianov et al., NeurIPS 2024, arXiv 2405.15891), in variance-exploding
form.

code            paper       meaning
t               t - tau     noise level as a fraction of the schedule; falls over the run
z0              x0(t)       latents of the rendered views (B, C, h, w)
kappa           kappa_y^t   noise (B, C, h, w) by DDIM inversion of z0 with the positive prompt
e_t             eps_theta   predicted noise for z0 noised with kappa
cfg             gamma_fwd   classifier-free guidance scale of e_t
inversion_cfg   gamma_inv   classifier-free guidance scale of the inversion; negative works best (section 5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import check_bounds, require, setting
from .base import MIN_T, Guidance, ddim, guided_eps


@dataclass(frozen=True)
class SDI(Guidance):
    """Settings of SDI; the defaults are the paper's, or its code's where the paper gives none. Times are
    fractions of the training schedule.

    The authors' code counts both cfg values from 0: its 7.5 and -7.5 are 8.5 and -6.5 here. Raises BadSetting
    for a setting out of its bounds or an empty noise range.
    """

    TITLE = "Score Distillation via Inversion"

    cfg: float = setting(
        7.5, 0, 1000, "Classifier-free guidance scale. 1 = positive prompt only.", step=0.5, advanced=False
    )
    t_max: float = setting(
        0.98,
        MIN_T,
        1,
        "Noise level at the start of the run, as a fraction of the schedule; falls linearly to t_min.",
    )
    t_min: float = setting(
        0.25, MIN_T, 1, "Noise level at the end of the run, as a fraction of the schedule."
    )
    inversion_cfg: float = setting(
        -7.5,
        -1000,
        1000,
        "Classifier-free guidance scale of the inversion. Negative values work best.",
        step=0.5,
    )
    inversion_steps: int = setting(
        10,
        1,
        100,
        "Number of DDIM inversion steps for the full schedule; shorter inversions take fewer.",
        step=1,
    )
    eta: float = setting(0.3, 0, 1, "Share of new noise in each inversion step. 0 = deterministic inversion.")
    weight: float = setting(0.1, 1e-6, 1e6, "Weight of the guidance loss relative to the regularisers.")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_min < self.t_max, "t_max", self.t_max, f"above t_min ({self.t_min})")

    def with_strength(self, strength: float) -> SDI:
        """See Guidance."""
        return (
            self if strength == 1 else replace(self, t_max=self.t_min + strength * (self.t_max - self.t_min))
        )

    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """See Guidance."""
        t = self.t_max + progress * (self.t_min - self.t_max)
        top = min(t + torch.rand((), generator=generator).item() / self.inversion_steps, 1.0)
        with torch.no_grad():
            return self.weight * inversion_score(self, prior, z0.detach(), t, top, conds, generator)


def inversion_score(
    sdi: SDI, prior: Prior, z0: Tensor, t: float, top: float, conds: Conds, generator: Generator
) -> Tensor:
    """Return g = sigma_t * (e_t - kappa) (B, C, h, w), equation 10.

    It equals z0 minus the x0 prediction, so one gradient step of size 1 reaches the x0 prediction.
    """
    # 1. invert z0 with the positive prompt to `top`, slightly above t
    sigmas = [prior.sigma(time) for time in inversion_times(t, top, sdi.inversion_steps)]
    z = invert_from_clean(sdi, prior, z0, sigmas, conds, generator)
    kappa = (z - z0) / sigmas[-1]
    # 2. add the same noise at level t and predict it with the positive prompt
    sigma_t = prior.sigma(t)
    e_t = guided_eps(prior, z0 + sigma_t * kappa, sigma_t, conds, sdi.cfg)
    return sigma_t * (e_t - kappa)


def inversion_times(t: float, top: float, steps: int) -> list[float]:
    """Return the times of the inversion: equal strides of 1 / steps from MIN_T while below t, then `top`."""
    return [*(MIN_T + i / steps for i in range(steps) if MIN_T + i / steps < t), top]


def invert_from_clean(
    sdi: SDI, prior: Prior, z0: Tensor, sigmas: list[float], conds: Conds, generator: Generator
) -> Tensor:
    """Invert the clean z0 (B, C, h, w) by DDIM along `sigmas`, the first of which stands for 0.

    The model is not trained at sigma 0, so the first step evaluates it at the lowest level, sigmas[0].
    """
    predict = lambda z, sigma: guided_eps(prior, z, max(sigma, sigmas[0]), conds, sdi.inversion_cfg)
    split = lambda sigma_a, sigma_b: (sigma_b, sdi.eta * fresh_noise(sigma_a, sigma_b))
    return ddim(z0, [0.0, *sigmas[1:]], predict, split, generator)


def fresh_noise(sigma_a: float, sigma_b: float) -> float:
    """Return the standard deviation of the new noise in a step from sigma_a up to sigma_b, as in the authors'
    code: DDIM's equation 16 for the step down, at the scale of the upper level.
    """
    ratio = (1 + sigma_b**2) / (1 + sigma_a**2)
    return sigma_a / sigma_b * math.sqrt((sigma_b**2 - sigma_a**2) * ratio)
