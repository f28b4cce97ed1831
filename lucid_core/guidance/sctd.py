"""Segmented Consistency Trajectory Distillation (SegmentDreamer: Zhu et al., ICCV 2025, arXiv 2507.05256).

code            paper       meaning, in variance-exploding form; all z are (B, C, h, w)
e, s, t         e, s, t     fractions of the schedule: lower edge of a segment, point between, upper end
z_e, z_t        x_e, x_t    z0 noised to e; z_e inverted by DDIM to t with the inversion prompt
z_s             x_s         z_t sampled by DDIM to s with the positive prompt
z_es, z_et      x_e         back at e: from z_s with the inversion prompt, from z_t with the positive prompt
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import setting
from .base import Distillation, ddim, draw_noise, eps, guided_eps, variance_of

TWO_STRIDES = 0.15  # from this t on, the inversion to z_t goes through s (the authors' t_threshold)
APART = 0.01  # minimum distance of s from e and t


@dataclass(frozen=True)
class SCTD(Distillation):
    """Settings of SCTD; the defaults are the authors'. Times are fractions of the training schedule."""

    TITLE = "Segmented Consistency Trajectory Distillation (SegmentDreamer)"

    cfg: float = setting(
        7.5,
        0,
        1000,
        "Classifier-free guidance scale; also weights the cross-consistency term as cfg + 1.",
        step=0.5,
        advanced=False,
    )
    t_min_start: float = setting(
        0.0,
        0,
        1,
        "Lowest noise level at the start of the run; reaches t_min after the warm-up. 0 = t_min + "
        "t_max_start - t_max.",
    )
    segments: int = setting(
        5,
        1,
        50,
        "Number of segments of the schedule; consistency is enforced within each. 1 = whole schedule.",
        step=1,
    )
    delta_t: float = setting(
        0.08,
        0.03,
        1,
        "Minimum distance of t from the lower edge of its segment, as a fraction of the schedule.",
    )
    fix_noise: bool = setting(True, 0, 1, "Use the same noise in every step instead of new noise.")

    def times(self, progress: float, u: float, v: float) -> tuple[float, float, float]:
        """Return (t, s, e) for u and v uniform in [0, 1). The range of t moves down over the warm-up."""
        lowest = min(self.t_min, self.t_min_start or self.t_min)
        start = self.t_min_start or self.t_min + self.t_max_start - self.t_max
        low = self.anneal(progress, start, self.t_min)
        t = low + u * (self.anneal(progress, self.t_max_start, self.t_max) - low)
        length = (self.t_max_start - lowest) / self.segments
        e = lowest + int((t - lowest) / length + 1e-9) * length
        t = min(max(t, e + self.delta_t), 1.0)
        e = min(e, t - 3 * APART)
        return t, e + APART + v * (t - e - 2 * APART), e

    def gradient(
        self, prior: Prior, z0: Tensor, conds: Conds, progress: float, generator: Generator
    ) -> Tensor:
        """See Guidance."""
        t, s, e = self.times(progress, *torch.rand(2, generator=generator).tolist())
        noise = draw_noise(z0, generator, self.fix_noise)
        with torch.no_grad():
            return self.weight * segment_score(self, prior, z0.detach(), noise, (t, s, e), conds)


def segment_score(
    sctd: SCTD, prior: Prior, z0: Tensor, noise: Tensor, times: tuple[float, float, float], conds: Conds
) -> Tensor:
    """Return g = w(t) * ((x_es - x_e) + (cfg + 1) * (x_e - x_et)) (B, C, h, w) for z0, noise (B, C, h, w).

    w = sigma_t and x = sqrt(abar_e) * z, as in the authors' code. times: (t, s, e).
    """
    sigma_t, sigma_s, sigma_e = (prior.sigma(time) for time in times)
    without = lambda z, sigma: eps(prior, z, sigma, [conds.inverse])[0]
    # 1. add noise up to e, then invert to t with the inversion prompt
    z_e = z0 + sigma_e * noise
    z_t = ddim(z_e, [sigma_e, sigma_s, sigma_t] if times[0] >= TWO_STRIDES else [sigma_e, sigma_t], without)
    # 2. one DDIM step down with the positive prompt, to s and to e
    e_t = guided_eps(prior, z_t, sigma_t, conds, sctd.cfg)
    z_s, z_et = z_t + (sigma_s - sigma_t) * e_t, z_t + (sigma_e - sigma_t) * e_t
    # 3. from s to e with the inversion prompt; self-consistency (z_es), cross-consistency (z_et)
    z_es = ddim(z_s, [sigma_s, sigma_e], without)
    g = (z_es - z_e) + (sctd.cfg + 1) * (z_e - z_et)
    return sigma_t * math.sqrt(1 - variance_of(sigma_e)) * g
