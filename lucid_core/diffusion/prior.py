"""The interface between the guidance methods and a diffusion model, and the splitting of its batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput, OutOfMemory
from .encoder import encode_in_parts

Cond = Any  # a conditioning, opaque to all but the prior that made it


@dataclass(frozen=True)
class Conds:
    """Conditionings of B views: the positive `y` (B rows), and `negative` and `inverse` (one row for all).

    others: K prompts of other views (one row each) for Perp-Neg; weights (B, K), all <= 0.
    """

    y: Cond
    negative: Cond
    inverse: Cond
    others: tuple[Cond, ...] = ()
    weights: Tensor = field(default_factory=lambda: torch.zeros(1, 0))


class Prior(ABC):
    """A diffusion model in variance-exploding form, z_sigma = z0 + sigma * eps, as in k-diffusion.

    eps = (z - z0) / sigma holds for every parameterisation, so a guidance method needs no special case for a
    v-prediction or flow model. Latents are (B, C, h, w). A conditioning has one row for all views, or one row
    per view.

    evaluations: number of latents denoised so far, counted once per conditioning; the cost measure for
    comparing methods.
    pixel_limit: see Guidance; used if the guidance method sets no limit of its own.
    """

    evaluations: int = 0
    pixel_limit: float = math.inf

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, H, W, 3) in [0, 1] -> latents (B, C, h, w); differentiable."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) -> images (B, H, W, 3) for previews and targets; no gradient."""

    @abstractmethod
    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        """Predict z0 (B, C, h, w) from `z` (B, C, h, w) at noise level `sigma`, once per conditioning.

        All predictions are made in one model call if memory allows.
        """

    @abstractmethod
    def sigma(self, t: float) -> float:
        """Return the noise level sigma at `t`, a fraction in [0, 1] of the training schedule."""

    @abstractmethod
    def blend(self, conds: list[Cond], weights: Tensor) -> Cond:
        """Weighted sum of V conditionings per view: weights (B, V) -> a conditioning of B rows."""

    def guide(self, z: Tensor, sigma: float, conds: list[Cond], e: list[Tensor], cfg: float) -> Tensor:
        """Apply classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) -> noise (B, C, h, w).

        conds: the positive and negative conditioning. e: the noise (B, C, h, w) predicted for each of them
        from `z` (B, C, h, w) at `sigma`.
        """
        e_y, e_negative = e
        return e_negative + cfg * (e_y - e_negative)

    def needs_negative(self, cfg: float) -> bool:
        """Whether `guide` at `cfg` uses the prediction with the negative conditioning: not at 1."""
        return cfg != 1

    def set_control_images(self, hints: list[Tensor]) -> None:
        """Set the ControlNet images, (B, H, W, 3) in [0, 1] for each hint, for the following `denoise` calls
        on B views. Called if the prompts have hints; raises BadInput unless a subclass takes them.
        """
        raise BadInput("hints", f"need ControlNets, and {type(self).__name__} has none; give no hints")

    def save_memory(self) -> None:  # noqa: B027  # most priors have no such mode
        """Switch to a slower mode that needs less memory, if there is one. Called when views are evaluated
        one at a time because of low memory.
        """


OOM_MESSAGES = (  # out-of-memory messages without an error class: CPU, MPS, DirectML, CUDA libraries
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "not enough GPU video memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means out of memory, by its class or, where torch has no class, its message."""
    if isinstance(error, (OutOfMemory, torch.OutOfMemoryError)):
        return True
    # a failed allocation by CUDA itself
    on_the_device = isinstance(error, getattr(torch, "AcceleratorError", ()))
    return any(words in str(error) for words in OOM_MESSAGES) or (
        on_the_device and "out of memory" in str(error)
    )


@dataclass(frozen=True)
class Parts:
    """A conditioning of many views, split into parts like the views of SplitPrior."""

    conds: tuple[Cond, ...]


class WrappedPrior(Prior):
    """A prior that passes every call on to another one; base of those that change some of the calls."""

    def __init__(self, prior: Prior) -> None:
        self.prior, self.pixel_limit = prior, prior.pixel_limit

    @property
    def evaluations(self) -> int:  # type: ignore[override]  # read only: the other prior counts
        return self.prior.evaluations

    def encode(self, images: Tensor) -> Tensor:
        return self.prior.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.prior.decode(latents)

    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        return self.prior.denoise(z, sigma, conds)

    def sigma(self, t: float) -> float:
        return self.prior.sigma(t)

    def blend(self, conds: list[Cond], weights: Tensor) -> Cond:
        return self.prior.blend(conds, weights)

    def guide(self, z: Tensor, sigma: float, conds: list[Cond], e: list[Tensor], cfg: float) -> Tensor:
        return self.prior.guide(z, sigma, conds, e, cfg)

    def needs_negative(self, cfg: float) -> bool:
        return self.prior.needs_negative(cfg)

    def set_control_images(self, hints: list[Tensor]) -> None:
        self.prior.set_control_images(hints)

    def save_memory(self) -> None:
        self.prior.save_memory()


class Listening(WrappedPrior):
    """Keeps the last x0 prediction for the conditioning `cond` in `answer` (B, C, h, w); None at first."""

    def __init__(self, prior: Prior, cond: Cond) -> None:
        super().__init__(prior)
        self.cond = cond
        self.answer: Tensor | None = None

    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        answers = self.prior.denoise(z, sigma, conds)
        for cond, answer in zip(conds, answers):
            if cond is self.cond:
                self.answer = answer
        return answers


class SplitPrior(WrappedPrior):
    """Evaluates another prior on at most `size` views at a time.

    Predictions and gradients are the same; it needs less memory.
    """

    def __init__(self, prior: Prior, size: int) -> None:
        super().__init__(prior)
        self.size = size
        self._hints: list[Tensor] = []
        if size == 1:
            prior.save_memory()

    def encode(self, images: Tensor) -> Tensor:
        return encode_in_parts(self.prior.encode, images, self.size)

    def set_control_images(self, hints: list[Tensor]) -> None:
        self._hints = hints

    def _to(self, i: int) -> Prior:
        """Return the inner prior, with the ControlNet images of part `i`."""
        if self._hints:
            self.prior.set_control_images([hint.split(self.size)[i] for hint in self._hints])
        return self.prior

    def denoise(self, z: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        answers = [
            self._to(i).denoise(part, sigma, of_part(i, conds)) for i, part in enumerate(z.split(self.size))
        ]
        return [torch.cat(rows) for rows in zip(*answers)]

    def guide(self, z: Tensor, sigma: float, conds: list[Cond], e: list[Tensor], cfg: float) -> Tensor:
        parts = zip(*(x.split(self.size) for x in (z, *e)))
        apply_cfg = [
            self._to(i).guide(part, sigma, of_part(i, conds), es, cfg) for i, (part, *es) in enumerate(parts)
        ]
        return torch.cat(apply_cfg)

    def blend(self, conds: list[Cond], weights: Tensor) -> Parts:
        return Parts(tuple(self.prior.blend(conds, rows) for rows in weights.split(self.size)))


def of_part(i: int, conds: list[Cond]) -> list[Cond]:
    """Return the conditionings of part `i`; those with one row for all views are unchanged."""
    return [cond.conds[i] if isinstance(cond, Parts) else cond for cond in conds]
