"""Conversion between the host's noise levels and lucid_core's variance-exploding sigmas.

kind of model              host's level       host's latent      ours
noise and v prediction     sigma              z0 + sigma * eps   the same; Cosmos's flow: sigma = t / (1 - t)
flow (SD3, Flux, Z-Image)  t, with its shift  z / (1 + sigma)    z = z0 + sigma * eps, sigma = t / (1 - t)
"""

from __future__ import annotations

from typing import Any

import comfy.model_sampling as sampling
import torch
from torch import Tensor

# Fraction of a flow's schedule that is cut off at both ends, where sigma would be 0 and infinite.
EDGE = 1e-3


class NoiseLevels:
    """The noise levels of a `model_sampling` of the host, including its shift, zero SNR or step table."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.is_flow = isinstance(of, sampling.CONST)
        self.noise_scale = getattr(of, "noise_scale", 1.0)  # standard deviation of a flow's noise
        self.is_distilled = hasattr(of, "skip_steps")  # LCM: trained only at the levels of its table

    def sigma(self, t: float) -> float:
        """The variance-exploding sigma at `t`, a fraction in [0, 1] of the training schedule."""
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
        return min(
            max(float(self.of.percent_to_sigma(1 - t)), float(self.of.sigma_min)), float(self.of.sigma_max)
        )

    def to_host(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Latents z0 + sigma * eps (B, C, ...) -> the host's latents at the same noise, and its levels
        (B,).
        """
        if self.is_flow:
            clean = self.noise_scale / (self.noise_scale + sigma)  # 1 - level
            z, sigma = z * clean, 1 - clean
        return z, torch.full((len(z),), sigma, device=z.device)
