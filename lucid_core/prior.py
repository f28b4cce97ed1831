"""The one view that the method has of a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Cond = Any  # a conditioning; only the prior that made it looks inside


@dataclass(frozen=True)
class Conds:
    """What the model is asked about B views: `y` (B rows), `negative` and `inverse` (one row for all).

    `others` are K prompts of other views (one row each) that Perp-Neg pushes away from, by `weights` (B, K), none above 0.
    """

    y: Cond
    negative: Cond
    inverse: Cond
    others: tuple[Cond, ...] = ()
    weights: Tensor | None = None


class Prior(Protocol):
    """A diffusion model in variance-exploding form, z_sigma = z0 + sigma * eps, as in k-diffusion.

    Then eps = (z - z0) / sigma for every parameterisation: a v-prediction or a flow model needs no branch in a guidance.
    Latents are (B, C, h, w). A conditioning has one row for all views, or one row per view.
    """

    evaluations: int  # latents denoised so far, counting every conditioning: the budget that methods are compared at

    def encode(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> latents; differentiable."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, H, W, 3); for previews, not differentiable."""

    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        """Predict z0 from `z` at noise level `sigma`, once per conditioning; all in one model call where memory allows."""

    def sigma(self, t: float) -> float:
        """Noise level at `t`, a fraction in [0, 1] of the training schedule."""

    def blend(self, conds: list[Cond], weights: Tensor) -> Cond:
        """Weighted sum of V conditionings for each of B views; weights (B, V) -> a conditioning of B rows."""
