"""Priors whose every answer is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


class GaussianPrior:
    """Ideal denoiser of latents ~ N(cond, variance): the conditioning is the mean. Latents are the images, channels first."""

    def __init__(self, variance: float = 0.0) -> None:
        self.variance, self.evaluations = variance, 0

    def encode(self, images: Tensor) -> Tensor:
        return images.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.movedim(1, -1)

    def denoise(self, z: Tensor, sigma: float, conds: list[Tensor]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        v = self.variance
        return [(v * z + sigma**2 * mean) / (v + sigma**2) for mean in conds]

    def sigma(self, t: float) -> float:
        """The schedule of Stable Diffusion, nearly: from 0.03 at t = 0 to 14.6 at t = 1."""
        return 0.03 * (14.6 / 0.03) ** t

    def blend(self, conds: list[Tensor], weights: Tensor) -> Tensor:
        return torch.einsum("bv,v...->b...", weights.to(conds[0]), torch.cat(conds))


class FiniteSetPrior(GaussianPrior):
    """Ideal denoiser of a finite set of images (Karras et al. 2022, EDM, appendix B.3). The conditioning picks a subset.

    members (M, C, h, w); a conditioning is a (M,) tensor of log prior weights.
    """

    def __init__(self, members: Tensor) -> None:
        super().__init__()
        self.members = members

    def denoise(self, z: Tensor, sigma: float, conds: list[Tensor]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        distance2 = (z[:, None] - self.members[None]).square().flatten(2).sum(-1)  # (B, M)
        return [torch.einsum("bm,mchw->bchw", (cond - distance2 / (2 * sigma**2)).softmax(-1), self.members) for cond in conds]
