"""The host's noise levels and ours: variance-exploding sigmas of fractions of a MODEL's training schedule.

kind of model               host's level         host's latent        ours
noise and v prediction      sigma                z0 + sigma * eps     the same; of a flow too, if Cosmos's: sigma = t / (1 - t)
flow (SD3, Flux, Z-Image)   t, with its shift    z / (1 + sigma)      z = z0 + sigma * eps, sigma = t / (1 - t)
"""

from __future__ import annotations

from typing import Any

import comfy.model_sampling as sampling
import torch
from torch import Tensor

EDGE = 1e-3  # of the schedule: as near as a flow goes to its ends, where sigma is 0 and infinite


class NoiseLevels:
    """Of a `model_sampling` of the host, with the shift, the zero SNR or the steps that it has."""

    def __init__(self, of: Any) -> None:
        self.of, self.is_flow = of, isinstance(of, sampling.CONST)
        self.noise_scale = getattr(of, "noise_scale", 1.0)  # of flows: their noise has this deviation
        self.is_distilled = hasattr(of, "skip_steps")  # LCM: only the levels of its table have been trained

    def sigma(self, t: float) -> float:
        """At `t`, a fraction in [0, 1] of the training schedule."""
        if self.is_flow:
            level = self.of.percent_to_sigma(1 - min(max(t, EDGE), 1 - EDGE))
            return float(self.noise_scale * level / (1 - level))
        if isinstance(self.of, sampling.COSMOS_RFLOW):
            return float(min(max(self.of.sigma(t), self.of.sigma_min), self.of.sigma_max))
        last = len(self.of.sigmas) - 1
        if self.is_distilled:
            return float(self.of.sigmas[round(t * last)])
        if isinstance(self.of, sampling.ModelSamplingDiscrete):
            return float(self.of.sigma(torch.tensor(t * last)))
        return min(max(float(self.of.percent_to_sigma(1 - t)), float(self.of.sigma_min)), float(self.of.sigma_max))

    def to_host(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Our latents (B, C, h, w) at `sigma` -> the host's latents and level (B,) of the same noise."""
        if self.is_flow:
            clean = self.noise_scale / (self.noise_scale + sigma)  # 1 - level
            z, sigma = z * clean, 1 - clean
        return z, torch.full((len(z),), sigma, device=z.device)
