"""Editing of a picture by a text: gradient descent on its latents, where the text changes the prediction.

LucidDreamer (arXiv 2311.11284) edits pictures by ISM in the same way. The mask is DiffEdit's (Couairon et
al., ICLR 2023, arXiv 2210.11427): without it, a picture's background drifts with every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, max_pool2d, pad

from ..diffusion.prior import Conds, Prior, is_out_of_memory
from ..errors import BadInput, OutOfMemory
from ..guidance.base import gaussian
from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import GuidanceSource
from ..settings import BoundedSettings, setting
from .guards import require_finite

DRAWS, NOISE_LEVEL = 16, 0.5  # of the mask, as in DiffEdit
BRIGHTEST = 0.98  # quantile of the difference that counts as 1
GRID = 64  # pixels; the side of a padded picture is a multiple of it, as the models' latents need


@dataclass(frozen=True)
class Edit(BoundedSettings):
    """How a picture is edited. Raises BadSetting for a value out of bounds."""

    steps: int = setting(
        60,
        1,
        10_000,
        "Number of optimisation steps. More change more and cost more.",
        step=1,
        advanced=False,
    )
    rate: float = setting(
        0.05,
        1e-6,
        100,
        "Step size at the first step, without unit; it falls to 0 linearly. Higher changes more.",
        advanced=False,
    )
    threshold: float = setting(
        0.15,
        0,
        1,
        "Without a mask: smallest difference between the predictions for prompt and inversion prompt, "
        "relative to the largest, at which the picture may change. Lower changes more; 0 = everywhere.",
        advanced=False,
    )


@dataclass(frozen=True)
class Edited:
    """The state after a step, from 1. picture: returns the edited picture (H, W, 3) in [0, 1], on the CPU.

    mask (H, W): where the picture may change, 0 to 1.
    """

    step: int
    picture: Callable[[], Tensor]
    mask: Tensor


def edit_picture(
    source: GuidanceSource, picture: Tensor, config: Edit, seed: int, mask: Tensor | None = None
) -> Iterator[Edited]:
    """Change `picture` (H, W, 3) in [0, 1] towards the prompt of `source`; yields after every step.

    The prompt is that of a front view. mask (H, W), 0 to 1: where the picture may change; None = where the
    predictions for the prompt and for the inversion prompt differ (see `difference`). Pixels at 0 stay
    bit-identical. The weight of the guidance has no effect. All random numbers follow from `seed`, drawn on
    the CPU.

    Raises BadInput for a mask of another size, an empty one, or prompts that predict the same, TypeError for
    image targets, NotFinite for a gradient that is not finite, OutOfMemory if the picture does not fit.
    """
    if isinstance(source.guidance, ImageTargets):
        raise TypeError("image targets give no gradient")
    if mask is not None:
        require_mask(mask, picture)
    prior, guidance = source.prior, source.guidance
    generator = Generator().manual_seed(seed)
    front = torch.zeros(1)
    conds = source.prompts.at(prior, front, front)
    try:
        start = encode(prior, picture)
        if mask is None:
            allowed = difference(prior, start, conds, config.threshold, generator)
            pixel_mask = grow(allowed, picture)
        else:
            allowed = max_pool_to(on_grid(mask[..., None])[..., 0], start.shape[-2:]).to(start)
            pixel_mask = mask.cpu().float()
        latents = start
        for step in range(config.steps):
            progress = step / config.steps
            g = guidance.gradient(prior, latents, conds, progress, generator)
            latents = latents - config.rate * (1 - progress) * allowed * g / guidance.weight
            require_finite({"the gradient": g}, step + 1, config.steps)
            yield Edited(step + 1, partial(compose, prior, latents, picture, pixel_mask), pixel_mask)
    except RuntimeError as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"a picture of {picture.shape[1]} x {picture.shape[0]} px") from error


def require_mask(mask: Tensor, picture: Tensor) -> None:
    """Raise BadInput for a mask of another size than the picture, or one that is 0 everywhere."""
    if mask.shape != picture.shape[:2]:
        sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (mask, picture)]
        raise BadInput("mask", f"is {sizes[0]} pixels, the image {sizes[1]}; give both the same size")
    if not (mask > 0).any():
        raise BadInput("mask", "is empty, so that nothing may change; draw one, or disconnect it")


def side_of(picture: Tensor) -> int:
    """The side of the square, a multiple of GRID, into which a picture (H, W, ...) is padded."""
    return -(-max(picture.shape[:2]) // GRID) * GRID


def on_grid(picture: Tensor) -> Tensor:
    """A picture (H, W, C) padded to a square by its right and lower edge: some models know only squares."""
    height, width = picture.shape[:2]
    side = side_of(picture)
    planes = picture.movedim(-1, 0)[None]
    return pad(planes, (0, side - width, 0, side - height), mode="replicate")[0].movedim(0, -1)


@torch.no_grad()
def encode(prior: Prior, picture: Tensor) -> Tensor:
    """The latents (1, C, h, w) of the padded picture (H, W, 3)."""
    return prior.encode(on_grid(picture)[None]).detach()


@torch.no_grad()
def compose(prior: Prior, latents: Tensor, picture: Tensor, pixel_mask: Tensor) -> Tensor:
    """The decoded latents where `pixel_mask` (H, W) is 1, `picture` (H, W, 3) where it is 0; on the CPU."""
    decoded = prior.decode(latents)[0, : picture.shape[0], : picture.shape[1]].clamp(0, 1).cpu().float()
    picture, part = picture.cpu().float(), pixel_mask[..., None]
    return torch.where(part > 0, picture + part * (decoded - picture), picture)


@torch.no_grad()
def difference(prior: Prior, z0: Tensor, conds: Conds, threshold: float, generator: Generator) -> Tensor:
    """DiffEdit's mask (1, 1, h, w) of latents z0 (1, C, h, w): 0 up to `threshold`, 1 from twice that on.

    The mean over noises of the absolute difference between the predictions for the positive and the inversion
    prompt, over the channels, relative to its 98% quantile. Raises BadInput if it is 0 everywhere.
    """
    if not threshold:
        return torch.ones_like(z0[:, :1])
    sigma = prior.sigma(NOISE_LEVEL)
    total = torch.zeros_like(z0[:, :1], dtype=torch.float32)
    for _ in range(DRAWS):
        z = z0 + sigma * gaussian(z0, generator)
        positive, inversion = prior.denoise(z, sigma, [conds.y, conds.inverse])
        total += (positive - inversion).abs().mean(1, keepdim=True)
    if not total.any():
        same = "predicts the same for the prompt and the inversion prompt"
        raise BadInput("guidance", f"{same}; change one of them, or give a mask")
    share = total / total.quantile(BRIGHTEST).clamp_min(1e-12)
    return ((share - threshold) / threshold).clamp(0, 1).to(z0)


def max_pool_to(mask: Tensor, size: torch.Size) -> Tensor:
    """A mask (H, W) at the latents' size (h, w), as (1, 1, h, w): the largest value of each cell."""
    return torch.nn.functional.adaptive_max_pool2d(mask[None, None].float(), tuple(size))


def grow(allowed: Tensor, picture: Tensor) -> Tensor:
    """A mask (1, 1, h, w) of padded latents as (H, W), one latent wider: decoding spreads changes."""
    height, width = picture.shape[:2]
    side = side_of(picture)
    wider = max_pool2d(allowed.cpu().float(), 3, stride=1, padding=1)
    return interpolate(wider, (side, side), mode="bilinear")[0, 0, :height, :width]
