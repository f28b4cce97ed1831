"""Checks which MODELs can guide a splat, which of their patches are not supported, and what families need."""

from __future__ import annotations

import logging
import math
from typing import Any

import comfy.model_base
import comfy.model_sampling as sampling
from comfy.patcher_extension import WrappersMP
from comfy.taesd.taesd import TAESD

from ...lucid_core.errors import BadInput
from .noise import NoiseLevels

log = logging.getLogger(__name__)
INSTEAD = "use a text-to-image model such as SD 1.5, SD 2.1, SDXL, SD3, Flux, Qwen-Image or Z-Image"
# Image models with a video VAE: an image is a video of one frame.
ONE_FRAME = (
    "QwenImage",
    "Krea2",
    "Anima",
    "CosmosT2IPredict2",
)
# Unsuitable models that the checks of latents, channels and sampling do not detect.
NOT_FOR_VIEWS = {
    "SDXLRefiner": "is trained on the lowest fifth of the noise levels only; use SDXL itself",
    "Stable_Cascade_C": f"makes latents for a second model and no image; {INSTEAD}",
    "Stable_Cascade_B": f"decodes the output of a first model; {INSTEAD}",
    "TripoSplat": "makes splats and no images; start from its splat (into Lucid Dream) and guide it with an "
    "image model",
    "Trellis2": "makes shapes and no images; start from its mesh (Lucid Points from Mesh) and guide it with "
    "an image model",
    "ACEStep": f"makes sound; {INSTEAD}",
    "PiD": f"enlarges an image; {INSTEAD}",
    "SAM3": f"detects objects and makes no image; {INSTEAD}",
    "SAM31": f"detects objects and makes no image; {INSTEAD}",
    "RT_DETR_v4": f"detects objects and makes no image; {INSTEAD}",
    "DepthAnything3": f"estimates depth and makes no image; {INSTEAD}",
}
# From Dreamer XL (arXiv 2405.11252), which found gradients of SDXL unstable without a limit.
SDXL_PIXEL_LIMIT = 0.05


def require_image_model(model: Any, vae: Any) -> None:
    """Raise BadInput unless `model` denoises images, `vae` makes its latents, and none of its patches needs
    the host's sampler.
    """
    if vae is None:
        raise BadInput("vae", "is missing: this checkpoint has none; load the model's VAE with Load VAE")
    name, latents = family_of(model.model), model.model.latent_format
    if name in NOT_FOR_VIEWS:
        raise BadInput("model", f"{name} {NOT_FOR_VIEWS[name]}")
    if latents.latent_dimensions != 2 + (name in ONE_FRAME):
        raise BadInput(
            "model",
            f"{name} does not make images one by one: it is for video, sound or 3D "
            f"({latents.latent_dimensions} latent dimensions); {INSTEAD}",
        )
    if not predicts_clean_images(model.get_model_object("model_sampling")):
        raise BadInput(
            "model", f"{name} turns one image into another, or has a sampling method of its own; {INSTEAD}"
        )
    if model.model.model_config.unet_config.get("use_additional_t_cond"):
        raise BadInput("model", f"{name} makes layers of an image; use Qwen-Image itself")
    _require_vae(name, latents, vae)
    _require_patches(model)


def _require_vae(name: str, latents: Any, vae: Any) -> None:
    """Raise BadInput unless `vae` makes RGB images and the `latents` format of the model `name`."""
    has_alpha = vae.output_channels == 4 and isinstance(vae.pad_channel_value, (int, float))
    if vae.output_channels != 3 and not has_alpha:
        raise BadInput("vae", f"makes images of {vae.output_channels} channels; use one for RGB images")
    facts = (  # what, of the model, of the VAE
        ("dimensions (3 are for video and Qwen-Image)", latents.latent_dimensions, vae.latent_dim),
        ("channels", latents.latent_channels, vae.latent_channels),
        ("times smaller sides", latents.spacial_downscale_ratio, _downscale_ratio_of(vae)),
    )
    remedy = "use the VAE that belongs to the model"
    for what, wanted, found in facts:
        if wanted != found:
            raise BadInput("vae", f"makes latents of {found} {what}, model {name} needs {wanted}; {remedy}")
    made_for = getattr(vae.first_stage_model, "latent_format", None)  # tiny video VAEs (TAEHV) have it
    if made_for and not isinstance(latents, made_for):
        found, wanted = made_for.__name__, type(latents).__name__
        raise BadInput("vae", f"makes latents of {found}, model {name} needs those of {wanted}; {remedy}")


def require_same_latents(first: Any, second: Any) -> None:
    """Raise BadInput unless both MODELs denoise the same latents, so that their predictions can be added."""
    one, other = (type(model.model.latent_format).__name__ for model in (first, second))
    if one != other:
        raise BadInput(
            "second",
            f"has a model with latents of {other}, the first one's are of {one}; mode add with two Lucid "
            "Image Targets needs models of the same latents, such as Stable Zero123 and SD 1.5",
        )


def _downscale_ratio_of(vae: Any) -> int:
    if isinstance(vae.first_stage_model, TAESD) and vae.latent_channels == 128:
        return 16  # the TAESD of Flux.2, for which the host reports 8
    return vae.spacial_compression_encode()


def family_of(model: Any) -> str:
    """The model family that the host detected: SD15, SDXL, FluxSchnell, ..."""
    return type(model.model_config).__name__


def shape_of(latents: Any, views: int, resolution: int) -> tuple[int, ...]:
    """The shape of a batch of views in the host's `latents` format: (B, C, h, w), or (B, C, 1, h, w) for
    ONE_FRAME models. `resolution` is the side of the views in pixels.
    """
    side = resolution // latents.spacial_downscale_ratio
    return views, latents.latent_channels, *[1] * (latents.latent_dimensions - 2), side, side


def predicts_clean_images(of: Any) -> bool:
    """Whether a `model_sampling` predicts z0 from z0 plus noise, by noise, v, EDM or x0 prediction or by
    flow.
    """
    from_images = (
        sampling.IMG_TO_IMG,
        sampling.IMG_TO_IMG_FLOW,
        getattr(sampling, "IMG_TO_IMG_VELOCITY", ()),  # since ComfyUI 0.35
    )
    if any(isinstance(of, kind) for kind in from_images):
        return False
    return isinstance(of, (sampling.EPS, sampling.CONST, sampling.COSMOS_RFLOW))


def require_invertible(model: Any) -> None:
    """Raise BadInput for a MODEL with too few noise levels for image targets."""
    if NoiseLevels(model.get_model_object("model_sampling")).is_distilled:
        raise BadInput(
            "model",
            "is sampled as LCM, which has too few noise levels for image targets; use Lucid ISM with a "
            "surface_share of 0 for it",
        )


def require_levels(model: Any) -> None:
    """Raise BadInput for a MODEL that knows too few noise levels to judge views."""
    if NoiseLevels(model.get_model_object("model_sampling")).is_distilled:
        raise BadInput(
            "model",
            "is sampled as LCM, which can be asked at few noise levels of its own only; connect the model "
            "without LCM to judge the splat",
        )


def _require_patches(model: Any) -> None:
    """Raise BadInput for patches that need the host's sampler, or reuse predictions of its previous step.

    No sampler runs here.
    """
    carried = {
        "a patch that evaluates both prompts itself (such as "
        "SkipLayerGuidanceDiTSimple)": "sampler_calc_cond_batch_function" in model.model_options,
        "a patch of the sampler's prediction (such as CFG Override or LazyCache)": model.get_all_wrappers(
            WrappersMP.PREDICT_NOISE
        ),
        "EasyCache": model.get_wrappers(WrappersMP.CALC_COND_BATCH, "easycache"),
    }
    for what, found in carried.items():
        if found:
            raise BadInput("model", f"carries {what}, which works only inside a sampler; remove it")


def pixel_limit_of(model: Any) -> float:
    """The limit of pixel gradients (see lucid_core.guidance.base.clip_pixel_gradients) for this model if the
    method sets none; math.inf = no limit.
    """
    return SDXL_PIXEL_LIMIT if isinstance(model, comfy.model_base.SDXL) else math.inf


def log_needs(model: Any, own_limit: float) -> None:
    """Log what is set for the model's family, and which cfg suits it. `own_limit` is the method's
    pixel_limit.
    """
    name, inner = family_of(model.model), model.model
    limit = pixel_limit_of(inner)
    if limit < own_limit == math.inf:
        log.info(
            "Lucid: model %s: pixel gradients are limited to %g (the method sets no limit of its own)",
            name,
            limit,
        )
    of = model.get_model_object("model_sampling")
    if NoiseLevels(of).is_distilled:
        log.info(
            "Lucid: model %s is sampled as LCM: evaluated only at its %d noise levels; use a cfg of 1 to 2",
            name,
            len(of.sigmas),
        )
    if name == "FluxSchnell":
        log.info(
            "Lucid: model %s learned to sample in few steps (schnell): use a cfg of 1; its predictions at "
            "low noise are rough",
            name,
        )
    elif isinstance(inner, comfy.model_base.Stable_Zero123):
        log.info(
            "Lucid: model %s learned views of 256 px on white, all from one distance: use a resolution of "
            "256 (Lucid Dream), a fixed distance and field of view (Lucid Cameras) and a cfg of 3",
            name,
        )
    elif inner.model_config.unet_config.get("guidance_embed"):
        log.info("Lucid: model %s is guided by Flux Guidance in its conditioning; use a cfg of 1 to 4", name)
