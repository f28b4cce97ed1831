"""Runs guidance sources inside the host's own sampling calls, which load and patch the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import comfy.samplers
import torch

from ...lucid_core.guidance.mixing import GuidanceSource, MixedSource
from ...lucid_core.settings import require
from ..types import LucidGuidanceData, LucidJudgeData, LucidMixData
from . import controlnet
from .families import shape_of
from .model_patches import warn_of_fixed_patches
from .prior import HostPrior

T = TypeVar("T")


def with_source(
    guidance: LucidGuidanceData | LucidMixData,
    views: int,
    resolution: int,
    body: Callable[[GuidanceSource | MixedSource], T],
) -> T:
    """Run `body` with the source of `guidance` inside a sampling call of the host for its model; for a mix,
    inside nested calls for all its models.

    The host decides which models are in GPU memory; a model that was unloaded is loaded again when it is
    evaluated. `views` is the batch size, `resolution` the side of the views in pixels.
    """
    if isinstance(guidance, LucidMixData) and are_of_one_model(guidance.first, guidance.second):
        first, second = guidance.first, guidance.second
        sources = lambda prior, prompts: (
            GuidanceSource(prior, one.method, prompts) for one in (first, second)
        )
        views = max(views_of(first, views), views_of(second, views))
        return with_prior(
            first, views, resolution, lambda *asked: body(MixedSource(*sources(*asked), guidance.mix))
        )
    if isinstance(guidance, LucidMixData):
        both = lambda first, second: body(MixedSource(first, second, guidance.mix))
        within = lambda first: with_source(
            guidance.second, views, resolution, lambda second: both(first, second)
        )
        return with_source(guidance.first, views, resolution, within)
    views = views_of(guidance, views)
    return with_prior(
        guidance,
        views,
        resolution,
        lambda prior, prompts: body(GuidanceSource(prior, guidance.method, prompts)),
    )


def are_of_one_model(
    first: LucidGuidanceData | LucidMixData, second: LucidGuidanceData | LucidMixData
) -> bool:
    """Whether two guidances have the same model, VAE and prompt. Then one HostPrior, with one copy of the
    VAE, serves both.
    """
    if not (isinstance(first, LucidGuidanceData) and isinstance(second, LucidGuidanceData)):
        return False
    return first.model is second.model and first.vae is second.vae and first.prompt is second.prompt


def views_of(guidance: LucidGuidanceData, views: int) -> int:
    """Batch size of the guidance's model evaluations: its method's own `views`, or the given default."""
    return getattr(guidance.method, "views", views)


def with_prior(
    guidance: LucidGuidanceData | LucidJudgeData,
    views: int,
    resolution: int,
    body: Callable[[HostPrior, Any], T],
) -> T:
    """Run `body` with a HostPrior of the guidance's model and with its encoded prompts (what `prompts` of its
    prompt returns), and return its result.

    `body` runs inside the host's sampling call, so the host handles patches, hooks, memory and clean-up of
    the model. Raises BadSetting if `resolution` (pixels) is not a multiple of the latents' downscale ratio,
    and BadInput if a ControlNet does not fit the model.
    """
    latents = guidance.model.model.latent_format
    ratio = latents.spacial_downscale_ratio
    require(resolution % ratio == 0, "resolution", resolution, f"a multiple of {ratio} with this model")
    noise = torch.zeros(shape_of(latents, views, resolution))
    guider = comfy.samplers.CFGGuider(guidance.model)
    prompt = guidance.prompt
    warn_of_fixed_patches(guidance.model)
    conds, shown = controlnet.apply_controls(
        prompt.conditionings(), prompt.controls, guidance.model, guidance.vae
    )
    guider.inner_set_conds(conds)

    def inside(guider: comfy.samplers.CFGGuider, model_options: dict) -> T:
        prompts = prompt.prompts(guider.conds)
        with torch.inference_mode(False), torch.enable_grad():
            prior = HostPrior(guider, model_options, guidance.vae, views, resolution, shown)
            try:
                return body(prior, prompts)
            finally:
                prior.release()

    sampler = _Inside(inside)
    with torch.inference_mode():  # as in the host's nodes; not set when nested in another guidance's call
        guider.sample(noise, noise, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return sampler.result


class _Inside(comfy.samplers.Sampler):
    """A sampler for the host that calls `body` instead of sampling. The host sets up and cleans up around it
    as for its KSampler.
    """

    def __init__(self, body: Callable[[comfy.samplers.CFGGuider, dict], T]) -> None:
        self.body = body

    def sample(
        self,
        guider,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        self.result = self.body(guider, extra_args["model_options"])
        return noise
