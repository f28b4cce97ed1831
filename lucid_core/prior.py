"""The one view that the method has of a diffusion model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .encoder import encode_in_parts

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
    Latents are (B, C, h, w). A conditioning has one row for all views, or one row per view. `guide` and `pixel_limit` are
    those of a plain model: priors that inherit from this class have them.
    """

    evaluations: int  # latents denoised so far, counting every conditioning: the budget that methods are compared at
    pixel_limit = math.inf  # see Guidance; the need of the model, for guidances without a limit of their own

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

    def guide(self, z: Tensor, sigma: float, conds: list[Cond], e: list[Tensor], cfg: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): the noise that follows from that under the prompt
        and that under the negative one; `conds` and `e` hold these two, both predicted from `z` at `sigma`."""
        e_y, e_negative = e
        return e_negative + cfg * (e_y - e_negative)

    def save_memory(self) -> None:
        """Take a slower way that needs less memory, if there is one: it is asked about one view at a time for want of it."""


class ControlledPrior(Prior, Protocol):
    """A prior with ControlNets, on some of its conditionings, that want to see the views."""

    def show(self, hints: list[Tensor]) -> None:
        """The pictures (B, H, W, 3) in [0, 1] for the B views that `denoise` is asked about from now on, one for each hint."""


class Listening:
    """A prior that remembers what it last said to the conditioning `cond`: what the model wants to see."""

    def __init__(self, prior: Prior, cond: Cond) -> None:
        self.prior, self.cond, self.answer = prior, cond, None

    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        answers = self.prior.denoise(z, sigma, conds)
        for cond, answer in zip(conds, answers):
            if cond is self.cond:
                self.answer = answer
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)


class OutOfMemory(RuntimeError):
    """The model or its VAE has no memory for so many views at a time."""


IN_WORDS_ALONE = (  # of a full memory: the machine's own, Apple's GPU, DirectML's, and CUDA's libraries
    "DefaultCPUAllocator", "MPS backend out of memory", "not enough GPU video memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Is it a GPU that is full, a prior that says so, or a memory of which torch tells in words alone?"""
    if isinstance(error, (OutOfMemory, torch.OutOfMemoryError)):
        return True
    on_the_device = isinstance(error, getattr(torch, "AcceleratorError", ()))  # what CUDA itself could not allocate
    return any(words in str(error) for words in IN_WORDS_ALONE) or (on_the_device and "out of memory" in str(error))


@dataclass(frozen=True)
class Parts:
    """A conditioning of many views, cut as SplitPrior cuts the views."""

    conds: tuple[Cond, ...]


class SplitPrior(Prior):
    """A prior that asks another one about at most `size` views at a time: the same answers and gradients in less memory."""

    def __init__(self, prior: Prior, size: int) -> None:
        self.prior, self.size = prior, size
        self.decode, self.sigma, self.pixel_limit = prior.decode, prior.sigma, prior.pixel_limit
        self._hints: list[Tensor] = []
        if size == 1:
            prior.save_memory()

    @property
    def evaluations(self) -> int:
        return self.prior.evaluations

    def encode(self, images: Tensor) -> Tensor:
        return encode_in_parts(self.prior.encode, images, self.size)

    def show(self, hints: list[Tensor]) -> None:
        self._hints = hints

    def _to(self, i: int) -> Prior:
        """The other one, shown the hints of the part `i`."""
        if self._hints:
            self.prior.show([hint.split(self.size)[i] for hint in self._hints])
        return self.prior

    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        answers = [self._to(i).denoise(part, sigma, of_part(i, conds)) for i, part in enumerate(z.split(self.size))]
        return [torch.cat(rows) for rows in zip(*answers)]

    def guide(self, z: Tensor, sigma: float, conds: list[Cond], e: list[Tensor], cfg: float) -> Tensor:
        parts = zip(*(x.split(self.size) for x in (z, *e)))
        guided = [self._to(i).guide(part, sigma, of_part(i, conds), es, cfg) for i, (part, *es) in enumerate(parts)]
        return torch.cat(guided)

    def blend(self, conds: list[Cond], weights: Tensor) -> Parts:
        return Parts(tuple(self.prior.blend(conds, rows) for rows in weights.split(self.size)))


def of_part(i: int, conds: list[Cond]) -> list[Cond]:
    return [cond.conds[i] if isinstance(cond, Parts) else cond for cond in conds]
