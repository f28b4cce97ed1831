"""Guidance sources: one model with its method and prompts, or a mix of two sources, in turn or added."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..conditioning.control_images import RenderedBatch, move_to_frame
from ..conditioning.picture_prompt import PicturePrompt
from ..conditioning.view_prompts import Prompts
from ..diffusion.prior import Conds, Listening, Prior
from ..frames import Frame
from ..settings import check_bounds, require, setting
from .base import Guidance, PixelGradient, average_pixel_gradients, clip_pixel_gradients
from .image_targets import ImageTargets, Predict

MODES = {
    "switch": "the first guidance, then the second for the last share of the run (for example shape, then "
    "surface)",
    "sequence": "as switch, but each guidance runs through its full learning-rate and noise schedules, as "
    "image targets always do",
    "alternate": "one guidance per step, drawn at random",
    "add": "both guidances in each step, with their gradients added at twice the cost; two image targets "
    "draw each image together: above the noise level of the second, the first predicts alone",
}

IN_TURN = ("switch", "sequence")
CONSTANT = -1.0  # a share_last that equals share
THROUGH_ENCODER = PixelGradient()


@dataclass(frozen=True)
class Mix:
    """Mode and share of a mix of two guidance sources. Raises BadSetting for an unknown mode or bad share."""

    mode: str = "switch"
    share: float = setting(
        0.5,
        0,
        1,
        "Share of the second guidance: the end of the run (switch, sequence), of the steps (alternate) or of "
        "the gradient or image (add; the first has 1 - share). 0 = first only, 1 = second only.",
        step=0.05,
        advanced=False,
    )
    share_last: float = setting(
        CONSTANT,
        CONSTANT,
        1,
        "Share of the second guidance at the end of the run, for add and alternate: it changes linearly from "
        "`share`. -1 = the same as share.",
        step=0.05,
    )

    def __post_init__(self) -> None:
        require(self.mode in MODES, "mode", repr(self.mode), ", ".join(MODES))
        check_bounds(self)
        is_share = self.share_last >= 0 and self.mode not in IN_TURN
        allowed = f"{CONSTANT:g}, or with add and alternate 0 to 1"
        require(self.share_last == CONSTANT or is_share, "share_last", self.share_last, allowed)

    def share_at(self, progress: float) -> float:
        """Return the share of the second source at `progress` (0 to 1) of the run."""
        last = self.share if self.share_last == CONSTANT else self.share_last
        return self.share + progress * (last - self.share)

    def weights(self, progress: float, generator: Generator) -> tuple[float, float]:
        """Return the weights of the first and the second source in a step at `progress` (0 to 1) of the run,
        for alternate and add.
        """
        share = self.share_at(progress)
        if self.mode == "add":
            return 1 - share, share
        second = 1 - torch.rand((), generator=generator).item() >= 1 - share
        return 1.0 - second, float(second)


def require_mode(mix: Mix, guidances: Sequence[Guidance | ImageTargets]) -> None:
    """Raise BadSetting if image targets, which give no gradient, are mixed in a mode that needs one."""
    are_targets = [isinstance(guidance, ImageTargets) for guidance in guidances]
    if any(are_targets) and not (mix.mode == "add" and are_targets == [True, True]):
        require(
            mix.mode in IN_TURN,
            "mode",
            repr(mix.mode),
            f"{' or '.join(IN_TURN)} with image targets, which give no gradient, or add with two of them",
        )


@dataclass(frozen=True)
class GuidanceLoss:
    """The answer of a guidance source for B views.

    loss: a scalar whose gradient at the images is the guidance; its value has no meaning. gradient_norm: norm
    (scalar) of the gradient at the latents. x0_preview: decodes the x0 prediction of the first view (H, W, 3)
    in [0, 1]; None if the model was not evaluated with the positive prompt.
    """

    loss: Tensor
    gradient_norm: Tensor
    x0_preview: Callable[[], Tensor] | None


@dataclass(frozen=True)
class Phase:
    """The active source at a moment of the run.

    progress: of its own schedules (0 to 1), which span the share `length` of the run. start: fraction of the
    run at which the source becomes active; image targets have progress 0 there, except for a mix within a
    switch.
    """

    source: GuidanceSource | MixedSource
    progress: float
    length: float = 1.0
    start: float = 0.0

    @property
    def target_source(self) -> GuidanceSource | MixedSource | None:
        """The source if it makes image targets; None if it gives gradients."""
        return self.source if self.source.makes_targets else None


@dataclass(frozen=True)
class GuidanceSource:
    """A guidance source: a model, the guidance method and the prompts."""

    prior: Prior
    guidance: Guidance | ImageTargets
    prompts: Prompts | PicturePrompt

    @property
    def evaluations(self) -> int:
        return self.prior.evaluations

    @property
    def makes_targets(self) -> bool:
        """Whether the method makes image targets and so has no gradient."""
        return isinstance(self.guidance, ImageTargets)

    @property
    def targets(self) -> ImageTargets:
        """The image targets. Raises TypeError for a method that gives gradients."""
        if not isinstance(self.guidance, ImageTargets):
            raise TypeError(f"{type(self.guidance).__name__} makes no image targets")
        return self.guidance

    def guidances(self) -> list[Guidance | ImageTargets]:
        return [self.guidance]

    def priors(self) -> list[Prior]:
        return [self.prior]

    def map(self, change: Callable[[GuidanceSource], GuidanceSource]) -> GuidanceSource:
        return change(self)

    def phase(self, progress: float) -> Phase:
        return Phase(self, progress)

    def move_to_frame(self, frame: Frame | None) -> GuidanceSource:
        """Return the source with the guides of its hints moved into `frame`; None = unchanged."""
        return replace(self, prompts=replace(self.prompts, hints=move_to_frame(self.prompts.hints, frame)))

    def loss(
        self,
        batch: RenderedBatch,
        progress: float,
        generator: Generator,
        pixels: PixelGradient = THROUGH_ENCODER,
    ) -> GuidanceLoss:
        """Evaluate the guidance for `batch`.

        progress: finished fraction of the run. Random numbers come from `generator`. pixels: how the gradient
        at the images is computed and limited.
        """
        images, method = batch.images, self.guidance
        if isinstance(method, ImageTargets):
            raise TypeError("image targets give no gradient; use `pictures`")
        self._set_control_images(batch)
        average_pixel_gradients(images, pixels.pixel_average)
        limits = (pixels.pixel_limit or math.inf, method.pixel_limit, self.prior.pixel_limit)
        clip_pixel_gradients(images, next((limit for limit in limits if limit < math.inf), math.inf))
        z0 = self.prior.encode(images.detach() if pixels.image_residual else images)
        conds = self._conds(batch)
        listening = Listening(self.prior, conds.y)
        g = method.gradient(listening, z0, conds, progress, generator)
        answer = listening.answer
        x0_preview = None if answer is None else lambda: self.prior.decode(answer[:1])[0].clamp(0, 1)
        if pixels.image_residual:
            loss = (images * self._residual(images, z0, g, method.weight)).sum()
        else:
            loss = (z0 * g).sum().to(images.device)
        return GuidanceLoss(loss, g.norm().to(images.device), x0_preview)

    @torch.no_grad()
    def _residual(self, images: Tensor, z0: Tensor, g: Tensor, weight: float) -> Tensor:
        """Return the views minus the decoded target images (B, H, W, 3), scaled to the norm of the latent
        gradient `g` (B, C, h, w) of a guidance with this `weight`.
        """
        picture = self.prior.decode(z0 - g / weight).clamp(0, 1).to(images)
        residual = images - picture
        scale: Tensor = g.norm().to(images) / residual.norm().clamp_min(1e-12)
        return residual * scale

    def predict(self, batch: RenderedBatch, progress: float) -> Predict:
        """Return the function that predicts the noise in the views, for image targets."""
        self._set_control_images(batch)
        return self.targets.predict(self.prior, self._conds(batch), progress)

    def pictures(
        self, batch: RenderedBatch, progress: float, generator: Generator, predict: Predict | None = None
    ) -> Tensor:
        """Make the target images (B, H, W, 3) in [0, 1] of the views; see `ImageTargets.pictures`."""
        self._set_control_images(batch)
        pictures = self.targets.pictures(
            self.prior, batch.images, self._conds(batch), progress, generator, predict
        )
        return pictures.to(batch.images)

    def highest_sigma(self, progress: float) -> float:
        """Return the highest noise level of the image targets at `progress`, without its random part."""
        targets = self.targets
        return self.prior.sigma(targets.anneal(progress, targets.t, targets.t_last))

    def _conds(self, batch: RenderedBatch) -> Conds:
        return self.prompts.at(self.prior, batch.views.azimuth_rad, batch.views.elevation_rad)

    def _set_control_images(self, batch: RenderedBatch) -> None:
        if self.prompts.hints:
            self.prior.set_control_images(batch.control_images(self.prompts.hints))


@dataclass(frozen=True)
class MixedSource:
    """A mix of two guidance sources, each of which may itself be a mix, with its own model, VAE, method and
    prompts.

    Raises BadSetting if the mode does not suit image targets.
    """

    first: GuidanceSource | MixedSource
    second: GuidanceSource | MixedSource
    mix: Mix

    def __post_init__(self) -> None:
        require_mode(self.mix, self.guidances())

    @property
    def makes_targets(self) -> bool:
        """Whether both models make one set of image targets together."""
        return self.mix.mode == "add" and self.first.makes_targets and self.second.makes_targets

    @property
    def targets(self) -> ImageTargets:
        """The image targets of the first source; see GuidanceSource."""
        return self.first.targets

    def guidances(self) -> list[Guidance | ImageTargets]:
        return [*self.first.guidances(), *self.second.guidances()]

    def priors(self) -> list[Prior]:
        """Return each prior of both sources once."""
        return list({id(prior): prior for prior in (*self.first.priors(), *self.second.priors())}.values())

    @property
    def evaluations(self) -> int:
        return sum(prior.evaluations for prior in self.priors())

    def map(self, change: Callable[[GuidanceSource], GuidanceSource]) -> MixedSource:
        """Return the mix with `change` applied to every single source."""
        return MixedSource(self.first.map(change), self.second.map(change), self.mix)

    def phase(self, progress: float) -> Phase:
        if self.mix.mode not in IN_TURN:
            return Phase(self, progress)
        share = self.mix.share
        is_second = progress >= 1 - share
        active = self.second if is_second else self.first
        start = 1 - share if is_second else 0.0
        if self.mix.mode == "switch" and not active.makes_targets:
            inner = active.phase(progress)
            return replace(inner, start=max(start, inner.start))
        length = share if is_second else 1 - share
        inner = active.phase((progress - start) / length)
        return Phase(inner.source, inner.progress, length * inner.length, start + length * inner.start)

    def predict(self, batch: RenderedBatch, progress: float) -> Predict:
        """See GuidanceSource. At noise levels above the second source's own, the first predicts alone.

        Denoisers by noise level: eDiff-I (Balaji et al., arXiv 2211.01324).
        """
        first, second = (one.predict(batch, progress) for one in (self.first, self.second))
        share, top = self.mix.share_at(progress), self.second.highest_sigma(progress)

        def predict(z: Tensor, sigma: float) -> Tensor:
            weight = share if sigma <= top else 0.0
            found = [w * one(z, sigma) for one, w in ((first, 1 - weight), (second, weight)) if w]
            return torch.stack(found).sum(0)

        return predict

    def pictures(
        self, batch: RenderedBatch, progress: float, generator: Generator, predict: Predict | None = None
    ) -> Tensor:
        """See GuidanceSource."""
        return self.first.pictures(batch, progress, generator, predict or self.predict(batch, progress))

    def highest_sigma(self, progress: float) -> float:
        """See GuidanceSource."""
        return self.first.highest_sigma(progress)

    def loss(
        self,
        batch: RenderedBatch,
        progress: float,
        generator: Generator,
        pixels: PixelGradient = THROUGH_ENCODER,
    ) -> GuidanceLoss:
        """See GuidanceSource.loss. A source of weight 0 is not evaluated."""
        if self.mix.mode in IN_TURN:
            phase = self.phase(progress)
            return phase.source.loss(batch, phase.progress, generator, pixels)
        weights = self.mix.weights(progress, generator)
        losses = [
            detached_loss(source, weight, batch, progress, generator, pixels)
            for source, weight in zip((self.first, self.second), weights)
            if weight
        ]
        return GuidanceLoss(
            torch.stack([one.loss for one in losses]).sum(),
            torch.stack([one.gradient_norm for one in losses]).norm(),
            losses[-1].x0_preview,
        )


def detached_loss(
    source: GuidanceSource | MixedSource,
    weight: float,
    batch: RenderedBatch,
    progress: float,
    generator: Generator,
    pixels: PixelGradient,
) -> GuidanceLoss:
    """Evaluate the source times `weight`, and run its backward pass to the images (B, H, W, 3) at once.

    This frees the VAE activations kept for the backward pass, and lets the model be unloaded, before the next
    source is evaluated. The result's loss is linear in the images, with the same value and gradient.
    """
    seen = batch.images.detach().requires_grad_(batch.images.requires_grad)
    found = source.loss(replace(batch, images=seen), progress, generator, pixels)
    norm = weight * found.gradient_norm
    if not batch.images.requires_grad:
        return GuidanceLoss(weight * found.loss, norm, found.x0_preview)
    (change,) = torch.autograd.grad(found.loss, seen)
    linear = (batch.images * change).sum()
    loss = found.loss.detach() + linear - linear.detach()
    return GuidanceLoss(weight * loss, norm, found.x0_preview)
