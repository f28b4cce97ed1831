"""Who the splat learns from: one model with its method and prompts, or two of them that take turns or speak together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .cameras import Views
from .checks import check_bounds, require, setting
from .hints import Hint, placed
from .prior import Listening, Prior
from .refine import Frame
from .score import Guidance, PixelGradient, average_pixels, limit_pixels
from .targets import ImageTargets
from .views import Prompts

Hints = Callable[[tuple[Hint, ...]], list[Tensor]]  # makes the pictures (B, H, W, 3) that ControlNets are shown

MODES = {
    "switch": "the first, and from a share of the run on the second: one makes the shape, the other the surface",
    "sequence": "as switch, but each has its own learning rates and schedules, from their beginning to their end",
    "alternate": "one of them in each step, drawn at random",
    "add": "both in each step, their gradients added; twice as slow",
}

IN_TURN = ("switch", "sequence")
THROUGH_ENCODER = PixelGradient()


@dataclass(frozen=True)
class Mix:
    """How much each of two teachers says, and when."""

    mode: str = "switch"
    share: float = setting(
        0.5, 0, 1, "Share of the second guidance. switch, sequence: of the run, at its end; alternate: of the steps; add: of "
        "the gradient, beside 1 - share of the first. 0 = the first alone, 1 = the second alone.",
        step=0.05, rare=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self.mode in MODES, "mode", repr(self.mode), ", ".join(MODES))
        check_bounds(self)

    def weights(self, progress: float, generator: Generator) -> tuple[float, float]:
        """Of the first and the second at `progress` of the run."""
        if self.mode == "add":
            return 1 - self.share, self.share
        drawn = progress if self.mode in IN_TURN else 1 - torch.rand((), generator=generator).item()
        second = drawn >= 1 - self.share
        return 1.0 - second, float(second)


def require_mode(mix: Mix, guidances: Sequence[Guidance | ImageTargets]) -> None:
    """Raises ValueError where image targets, which are no gradients, would have to share a step with another guidance."""
    if any(isinstance(guidance, ImageTargets) for guidance in guidances):
        require(
            mix.mode in IN_TURN, "mode", repr(mix.mode), f"{' or '.join(IN_TURN)} with image targets: they are no gradients"
        )


@dataclass(frozen=True)
class Pull:
    """What a teacher would change about B views: the gradient of `loss`, a number, at their images."""

    loss: Tensor
    wanted: Callable[[], Tensor] | None  # decodes what it made of the first view (H, W, 3); None where it was not asked


@dataclass(frozen=True)
class Phase:
    """Who is asked at a moment of the run: `progress` (0 to 1) of a part of the run, which is the share `length` of it."""

    teacher: Teacher | Teachers
    progress: float
    length: float = 1.0


@dataclass(frozen=True)
class Teacher:
    """A model, the method that asks it, and the prompts that it is asked with."""

    prior: Prior
    guidance: Guidance | ImageTargets
    prompts: Prompts

    @property
    def evaluations(self) -> int:
        return self.prior.evaluations

    def guidances(self) -> list[Guidance | ImageTargets]:
        return [self.guidance]

    def priors(self) -> list[Prior]:
        return [self.prior]

    def map(self, change: Callable[[Teacher], Teacher]) -> Teacher:
        return change(self)

    def phase(self, progress: float) -> Phase:
        return Phase(self, progress)

    def placed(self, frame: Frame | None) -> Teacher:
        """With the guides of its hints where `frame` puts the splat."""
        return replace(self, prompts=replace(self.prompts, hints=placed(self.prompts.hints, frame)))

    def pull(
        self, images: Tensor, views: Views, progress: float, generator: Generator, hints: Hints | None = None,
        pixels: PixelGradient = THROUGH_ENCODER,
    ) -> Pull:  # fmt: skip
        """`images` (B, H, W, 3) are what `views` see at `progress` of the run; randomness comes from `generator`.

        `hints` makes those of these images, where the prompts want any; `pixels` says what their gradient is like.
        """
        self._show(hints)
        average_pixels(images, pixels.average)
        limits = (pixels.limit, self.guidance.pixel_limit, self.prior.pixel_limit)
        limit_pixels(images, next((limit for limit in limits if limit < math.inf), math.inf))
        z0 = self.prior.encode(images.detach() if pixels.residual else images)
        conds = self.prompts.at(self.prior, views.azimuth_rad, views.elevation_rad)
        listening = Listening(self.prior, conds.y)
        g = self.guidance.gradient(listening, z0, conds, progress, generator)
        answer = listening.answer
        wanted = None if answer is None else lambda: self.prior.decode(answer[:1])[0].clamp(0, 1)
        if pixels.residual:
            return Pull((images * self._residual(images, z0, g)).sum(), wanted)
        return Pull((z0 * g).sum().to(images.device), wanted)

    @torch.no_grad()
    def _residual(self, images: Tensor, z0: Tensor, g: Tensor) -> Tensor:
        """The views less the pictures that the guidance pulls to, of the same norm as its gradient `g` in latents."""
        picture = self.prior.decode(z0 - g / self.guidance.weight).clamp(0, 1).to(images)
        residual = images - picture
        return residual * (g.norm().to(images) / residual.norm().clamp_min(1e-12))

    def pictures(
        self, images: Tensor, views: Views, progress: float, generator: Generator, hints: Hints | None = None
    ) -> Tensor:  # fmt: skip
        """What the views should become, of image targets; see `pull`."""
        self._show(hints)
        conds = self.prompts.at(self.prior, views.azimuth_rad, views.elevation_rad)
        return self.guidance.pictures(self.prior, images, conds, progress, generator).to(images)

    def _show(self, hints: Hints | None) -> None:
        if self.prompts.hints:
            self.prior.show(hints(self.prompts.hints))


@dataclass(frozen=True)
class Teachers:
    """Two teachers, each of which may be two again, with a model, VAE, method and prompts of its own."""

    first: Teacher | Teachers
    second: Teacher | Teachers
    mix: Mix

    def __post_init__(self) -> None:
        require_mode(self.mix, self.guidances())

    def guidances(self) -> list[Guidance | ImageTargets]:
        return [*self.first.guidances(), *self.second.guidances()]

    def priors(self) -> list[Prior]:
        """Each once."""
        return list({id(prior): prior for prior in (*self.first.priors(), *self.second.priors())}.values())

    @property
    def evaluations(self) -> int:
        return sum(prior.evaluations for prior in self.priors())

    def map(self, change: Callable[[Teacher], Teacher]) -> Teachers:
        """`change` every single teacher."""
        return Teachers(self.first.map(change), self.second.map(change), self.mix)

    def phase(self, progress: float) -> Phase:
        if self.mix.mode not in IN_TURN:
            return Phase(self, progress)
        share = self.mix.share
        is_second = progress >= 1 - share
        active = self.second if is_second else self.first
        if self.mix.mode == "switch":
            return active.phase(progress)
        length = share if is_second else 1 - share
        inner = active.phase((progress - (1 - share)) / share if is_second else progress / (1 - share))
        return Phase(inner.teacher, inner.progress, length * inner.length)

    def pull(
        self, images: Tensor, views: Views, progress: float, generator: Generator, hints: Hints | None = None,
        pixels: PixelGradient = THROUGH_ENCODER,
    ) -> Pull:  # fmt: skip
        """See Teacher. One that has nothing to say is not asked."""
        weights = self.mix.weights(progress, generator)
        pulls = [
            apart(teacher, weight, images, views, progress, generator, hints, pixels)
            for teacher, weight in zip((self.first, self.second), weights)
            if weight
        ]
        return Pull(torch.stack([pull.loss for pull in pulls]).sum(), pulls[-1].wanted)


def apart(
    teacher: Teacher | Teachers, weight: float, images: Tensor, views: Views, progress: float, generator: Generator,
    hints: Hints | None, pixels: PixelGradient,
) -> Pull:  # fmt: skip
    """The teacher's pull times `weight`, its way back to `images` already gone: before the next one speaks, its VAE's
    activations are freed, and its model may leave the memory."""
    seen = images.detach().requires_grad_(images.requires_grad)
    pull = teacher.pull(seen, views, progress, generator, hints, pixels)
    if not images.requires_grad:
        return replace(pull, loss=weight * pull.loss)
    (change,) = torch.autograd.grad(pull.loss, seen)
    linear = (images * change).sum()
    return replace(pull, loss=weight * (pull.loss.detach() + linear - linear.detach()))
