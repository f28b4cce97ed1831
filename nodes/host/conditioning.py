"""Blending and checking of the host's CONDITIONINGs.

Conditionings that differ only in their text embeddings are blended into one. All others are evaluated one by
one and their x0 predictions are averaged.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.conds
import comfy.model_base
import torch
from comfy.ldm.krea2.model import SingleStreamDiT
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from torch import Tensor

from ...lucid_core.errors import BadInput
from ..types import Conditioning
from .families import family_of, shape_of

HostCond = list[dict]  # a conditioning in the form that the host's samplers use
# Model inputs that derive from the text. Their weighted means are meaningful.
TEXT = (
    "c_crossattn",
    "y",
    "clip_text_pooled",
    "guidance",
)
# Options that must be equal for two entries to be blended.
WHERE = (
    "area",
    "mask",
    "mask_strength",
    "strength",
    "timestep_start",
    "timestep_end",
    "hooks",
    "control",
    "gligen",
    "default",
)
LONGEST_REPEAT = 4  # most repeats of a token sequence, as in the host: more would cost more than it saves


class Mixture(HostCond):
    """V conditionings that cannot be blended into one. The model is evaluated for each of them; the x0
    predictions are averaged with `weights` (B, V), one row per view.

    As a list it holds the entries of all V conditionings with those weights as strengths, for patches that
    pass the conditioning on to the host. `dimensions` is the number of latent dimensions besides B and C.
    """

    def __init__(self, conds: list[HostCond], weights: Tensor, dimensions: int) -> None:
        self.conds = conds
        self.weights = weights
        # (B, V, 1, 1, 1), or (B, V, 1, 1, 1, 1): rows[:, k] broadcasts with the host's latents
        rows = weights.float().reshape(*weights.shape, *[1] * (1 + dimensions))
        super().__init__(
            {**entry, "strength": entry.get("strength", 1.0) * rows[:, k]}
            for k, cond in enumerate(conds)
            for entry in cond
        )


def blend(conds: list[HostCond], weights: Tensor, dimensions: int) -> HostCond:
    """Weighted sum of V conditionings for each of B views; `weights` is (B, V).

    If they differ only in their text embeddings, those are summed. Otherwise (regions, schedules,
    ControlNets, LoRA hooks, texts of incompatible lengths) the result is a Mixture, which costs one model
    evaluation for each conditioning with a nonzero weight in the batch. `dimensions` is the number of latent
    dimensions besides B and C.
    """
    if _differ_in_text_alone(conds):
        return [_blend_entries(entries, weights) for entries in zip(*conds)]
    asked = weights.any(0).tolist()
    return Mixture(
        [cond for cond, has_weight in zip(conds, asked) if has_weight], weights[:, asked], dimensions
    )


def parts_of(cond: HostCond) -> list[HostCond]:
    """The conditionings that the model must be evaluated for to get the prediction for `cond`."""
    return cond.conds if isinstance(cond, Mixture) else [cond]


def mean_of(cond: HostCond, answers: list[Tensor]) -> Tensor:
    """The x0 prediction for `cond` from those for its parts, all in the host's latent shape (B, C, ...)."""
    if not isinstance(cond, Mixture):
        return answers[0].clone()
    return torch.einsum("bv,vb...->b...", cond.weights.to(answers[0]), torch.stack(answers))


def _differ_in_text_alone(conds: list[HostCond]) -> bool:
    if len({len(cond) for cond in conds}) > 1:
        return False
    return all(_same_but_text(first, entry) for first, *others in zip(*conds) for entry in others)


def _same_but_text(a: dict, b: dict) -> bool:
    if not all(comfy.conds.is_equal(a.get(name), b.get(name)) for name in WHERE):
        return False
    ours, theirs = a["model_conds"], b["model_conds"]
    return ours.keys() == theirs.keys() and all(
        _can_blend(ours[name], theirs[name])
        if name in TEXT
        else comfy.conds.is_equal(ours[name].cond, theirs[name].cond)
        for name in ours
    )


def _can_blend(a: comfy.conds.CONDRegular, b: comfy.conds.CONDRegular) -> bool:
    """Whether `a` and `b` have one row each and compatible shapes.

    Cross-attention tokens may be repeated to a common length, which does not change the attention's result.
    """
    if a.cond.shape[0] != 1 or b.cond.shape[0] != 1:
        return False
    if not isinstance(a, comfy.conds.CONDCrossAttn):
        return a.cond.shape == b.cond.shape and _padding(a.cond) == _padding(b.cond)
    long, short = sorted((a.cond.shape[1], b.cond.shape[1]), reverse=True)
    return a.cond.shape[2] == b.cond.shape[2] and math.lcm(long, short) <= LONGEST_REPEAT * short


def _padding(tokens: Tensor) -> int:
    """Number of padding tokens that the host put before the text (Flux.2).

    With different padding, the tokens of two texts are not at the same positions.
    """
    return int((tokens != 0).any(-1).any(0).int().argmax()) if tokens.ndim == 3 else 0


def _blend_entries(entries: tuple[dict, ...], weights: Tensor) -> dict:
    """The first of V entries, with the weighted sums of all text embeddings: one row per view."""
    model_conds = dict(entries[0]["model_conds"])
    for name in TEXT:
        if name in model_conds:
            values = [entry["model_conds"][name].cond for entry in entries]
            model_conds[name] = model_conds[name]._copy_with(_blend_tensors(values, weights))
    return {**entries[0], "model_conds": model_conds}


def _blend_tensors(values: list[Tensor], weights: Tensor) -> Tensor:
    """V tensors (1, ...) and weights (B, V) -> (B, ...)."""
    if values[0].ndim == 3:
        length = math.lcm(*(value.shape[1] for value in values))
        values = [value.repeat(1, length // value.shape[1], 1) for value in values]
    stacked = torch.cat(values)  # (V, ...)
    return torch.einsum("bv,v...->b...", weights.to(stacked), stacked)


def zero_out(conditioning: list) -> list:
    """The CONDITIONING with all embeddings set to zero, as the host's Conditioning Zero Out does."""
    zero = lambda name, value: (
        torch.zeros_like(value) if name == "pooled_output" and value is not None else value
    )
    return [
        [torch.zeros_like(text), {name: zero(name, value) for name, value in options.items()}]
        for text, options in conditioning
    ]


def require_text_of(model: Any, conditionings: dict[str, list]) -> None:
    """Raise BadInput unless `model` accepts all `conditionings` (name -> CONDITIONING).

    Calls the model's own `extra_conds` for each entry, as the host does before sampling.
    """
    for name, conditioning in conditionings.items():
        if not conditioning:
            raise BadInput(f"conditioning {name}", "is empty; connect the output of a CLIP Text Encode")
        for text, options in conditioning:
            _require_views(name, options)
            made = _made_of(model.model, name, text, options)
            _require_image(model.model, name, made, options)
            _require_width(model.model, name, text, made)


def _require_views(name: str, options: dict) -> None:
    """Raise BadInput for options that are tied to one image or to the steps of a sampler.

    They have no meaning for views at random noise levels.
    """
    if "gligen" in options:
        raise BadInput(
            f"conditioning {name}", "holds GLIGEN boxes, which belong to one image; use one without them"
        )
    hooks = options.get("hooks")
    if hooks and any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks.hooks):
        raise BadInput(
            f"conditioning {name}",
            "schedules a LoRA by sampling steps; use a hook with a constant strength",
        )


def _made_of(model: Any, name: str, text: Tensor, options: dict) -> dict:
    """The model inputs (`extra_conds`) for one entry. Raises BadInput if it lacks something they need."""
    latents = model.latent_format
    side = 8 * latents.spacial_downscale_ratio
    noise = torch.zeros(shape_of(latents, 1, side))
    size = {"width": side, "height": side, "prompt_type": name}
    given = {
        **size,
        "seed": 0,
        **options,
        "cross_attn": text,
        "noise": noise,
        "latent_image": noise,
        "device": text.device,
    }
    try:
        # Off for Anima: in inference mode it applies weights that may be on another device than the text.
        with torch.inference_mode(not isinstance(model, comfy.model_base.Anima)), torch.no_grad():
            return model.extra_conds(**given)
    except KeyError as error:
        raise BadInput(
            f"conditioning {name}",
            f"lacks {error.args[0]}, which model {family_of(model)} needs; encode it with the text encoder "
            "of that model",
        ) from error


def _require_image(model: Any, name: str, made: dict, options: dict) -> None:
    """Raise BadInput if the model needs an image that the conditioning does not hold."""
    if "c_concat" in made and options.get("concat_latent_image") is None:
        raise BadInput(
            "model",
            f"{family_of(model)} needs an image besides the noise (it is an inpainting, edit or upscaling "
            f"model), but the conditioning {name} holds none; use the text-to-image model of that family",
        )


def _require_width(model: Any, name: str, text: Tensor, made: dict) -> None:
    """Raise BadInput if the embedding widths differ from the model's own."""
    family, config = family_of(model), model.model_config.unet_config
    embedder = config.get("context_embedder_config") or {"params": {}}
    wanted = {
        "text": (
            text.shape[-1],
            config.get("context_dim")
            or config.get("context_in_dim")
            or config.get("cap_feat_dim")
            or embedder["params"].get("in_features")
            or config.get("crossattn_emb_channels")
            or _own_width_of(model),
        ),
        "pooled text": (
            made["y"].cond.shape[-1] if "y" in made else None,
            config.get("adm_in_channels") or config.get("vec_in_dim"),
        ),
    }
    for what, (width, expected) in wanted.items():
        if width and expected and width != expected:
            raise BadInput(
                f"conditioning {name}",
                f"has {what} of width {width}, but model {family} reads a width of {expected}; encode it "
                "with the text encoder of that model",
            )


def _own_width_of(model: Any) -> int | None:
    """Text embedding width of networks whose detected config does not contain it; None if unknown."""
    net = model.diffusion_model
    if isinstance(net, QwenImageTransformer2DModel):
        return net.txt_in.in_features
    return net.txtlayers * net.txtdim if isinstance(net, SingleStreamDiT) else None


def require_clip(clip: Any) -> None:
    """Raise BadInput if `clip` is None."""
    if clip is None:
        raise BadInput("clip", "is missing: this checkpoint holds no text encoder; load one with CLIP Loader")


def encode_text(clip: Any, text: str) -> Conditioning:
    """Encode `text` as the host's CLIP Text Encode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def embed_images(clip_vision: Any, images: Tensor) -> Tensor:
    """The embeddings (V, D) of images (V, H, W, 3) by a CLIP_VISION. Raises BadInput if it makes none."""
    embeddings = clip_vision.encode_image(images).image_embeds
    if not isinstance(embeddings, Tensor) or len(embeddings) != len(images):
        raise BadInput("clip_vision", "makes no embedding of a whole image; use a CLIP vision model")
    return embeddings.reshape(len(images), -1).float().cpu()
