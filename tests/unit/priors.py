"""Priors whose every answer is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_core.diffusion.prior import Prior


class GaussianPrior(Prior):
    """Ideal denoiser of latents ~ N(cond, variance): the conditioning is the mean. Latents are the images,
    channels first.
    """

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
    """Ideal denoiser of a finite set of images (Karras et al. 2022, EDM, appendix B.3). The conditioning
    picks a subset.

    members (M, C, h, w); a conditioning is a (M,) tensor of log prior weights.
    """

    def __init__(self, members: Tensor) -> None:
        super().__init__()
        self.members, self.rows = members, members.flatten(1).double()

    def distances2(self, z: Tensor) -> Tensor:
        """(B, M) squared distances; by products, which is far cheaper than by differences and exact enough in
        float64.
        """
        rows = z.flatten(1).double()
        return (rows.square().sum(1, keepdim=True) - 2 * rows @ self.rows.T + self.rows.square().sum(1)).to(z)

    def denoise(self, z: Tensor, sigma: float, conds: list[Tensor]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        distance2 = self.distances2(z)
        return [
            torch.einsum("bm,mchw->bchw", (cond - distance2 / (2 * sigma**2)).softmax(-1), self.members)
            for cond in conds
        ]


class CloudPrior(FiniteSetPrior):
    """As FiniteSetPrior, but each image stands for all that lie about it: a mixture of N(member, variance).

    A conditioning is a (M + 1,) tensor, or one such row per view: log prior weights, then the variance; 0 is
    the set itself.
    """

    def denoise(self, z: Tensor, sigma: float, conds: list[Tensor]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        distance2 = self.distances2(z)
        answers = []
        for cond in conds:
            variance = cond[..., -1:]
            shares = (cond[..., :-1] - distance2 / (2 * (variance + sigma**2))).softmax(-1)
            mean = torch.einsum("bm,mchw->bchw", shares, self.members)
            v = variance.reshape(-1, 1, 1, 1)
            answers.append((v * z + sigma**2 * mean) / (v + sigma**2))
        return answers
