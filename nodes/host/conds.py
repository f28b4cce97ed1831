"""CONDITIONINGs of views: blended where they differ in their text alone, asked one by one where they differ in more."""

from __future__ import annotations

import math
from typing import Any

import comfy.conds
import comfy.model_base
import torch
from comfy.ldm.krea2.model import SingleStreamDiT
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from torch import Tensor

from .families import family_of, shape_of

HostCond = list[dict]  # a conditioning as the host's samplers hold it
TEXT = ("c_crossattn", "y", "clip_text_pooled", "guidance")  # what the models read of a text: means of these mean something
WHERE = ("area", "mask", "mask_strength", "strength", "timestep_start", "timestep_end", "hooks", "control", "gligen", "default")
LONGEST_REPEAT = 4  # as the host: more would cost more than it saves


class Mixture(HostCond):
    """V conditionings that no single one can stand for: the model is asked about each, the answers are averaged by `weights`
    (B, V), a row per view.

    As a list it holds the entries of all with those weights as strengths, for patches that hand it to the host again.
    """

    def __init__(self, conds: list[HostCond], weights: Tensor, dimensions: int) -> None:
        self.conds, self.weights = conds, weights
        rows = weights.float().reshape(*weights.shape, *[1] * (1 + dimensions))  # (B, V, 1, 1, 1), as the host's latents
        super().__init__(
            {**entry, "strength": entry.get("strength", 1.0) * rows[:, k]} for k, cond in enumerate(conds) for entry in cond
        )


def blend(conds: list[HostCond], weights: Tensor, dimensions: int) -> HostCond:
    """Weighted sum of V conditionings for each of B views, weights (B, V): of the texts where those are all they differ in.

    Otherwise (regions, schedules, controls, LoRA hooks, texts of other lengths) of the model's answers, which costs an
    evaluation for each conditioning that has weight in the batch. The host's latents have `dimensions` beside B and C.
    """
    if _differ_in_text_alone(conds):
        return [_blend_entries(entries, weights) for entries in zip(*conds)]
    asked = weights.any(0).tolist()
    return Mixture([cond for cond, has_weight in zip(conds, asked) if has_weight], weights[:, asked], dimensions)


def parts_of(cond: HostCond) -> list[HostCond]:
    """What the model must be asked about for `cond`."""
    return cond.conds if isinstance(cond, Mixture) else [cond]


def mean_of(cond: HostCond, answers: list[Tensor]) -> Tensor:
    """The answer to `cond` from those to its parts, each (B, C, h, w)."""
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
        _can_blend(ours[name], theirs[name]) if name in TEXT else comfy.conds.is_equal(ours[name].cond, theirs[name].cond)
        for name in ours
    )


def _can_blend(a: comfy.conds.CONDRegular, b: comfy.conds.CONDRegular) -> bool:
    """One row each, of one size; tokens of cross-attention may be repeated to a common length, which changes nothing there."""
    if a.cond.shape[0] != 1 or b.cond.shape[0] != 1:
        return False
    if not isinstance(a, comfy.conds.CONDCrossAttn):
        return a.cond.shape == b.cond.shape and _padding(a.cond) == _padding(b.cond)
    long, short = sorted((a.cond.shape[1], b.cond.shape[1]), reverse=True)
    return a.cond.shape[2] == b.cond.shape[2] and math.lcm(long, short) <= LONGEST_REPEAT * short


def _padding(tokens: Tensor) -> int:
    """How many empty tokens the host put before a text (Flux.2): with others the texts' own are not at the same places."""
    return int((tokens != 0).any(-1).any(0).int().argmax()) if tokens.ndim == 3 else 0


def _blend_entries(entries: tuple[dict, ...], weights: Tensor) -> dict:
    """The first entry with the weighted sums of all texts, a row per view."""
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


def zeroed(conditioning: list) -> list:
    """The host's CONDITIONING with nothing in it, as its Conditioning Zero Out makes it."""
    zero = lambda name, value: torch.zeros_like(value) if name == "pooled_output" and value is not None else value
    return [
        [torch.zeros_like(text), {name: zero(name, value) for name, value in options.items()}] for text, options in conditioning
    ]


def require_text_of(model: Any, conditionings: dict[str, list]) -> None:
    """Raise ValueError unless `model` can read the host's CONDITIONINGs (by their names), without an image beside them.

    It asks the model itself what it would make of each, as the host does before it samples.
    """
    for name, conditioning in conditionings.items():
        if not conditioning:
            raise ValueError(f"the conditioning {name} is empty; connect one that a CLIP Text Encode made")
        for text, options in conditioning:
            _require_views(name, options)
            _require_fit(model.model, name, text, _made_of(model.model, name, text, options))


def _require_views(name: str, options: dict) -> None:
    """What belongs to one picture, or to the steps of a sampler, has no meaning for views at random noise levels."""
    if "gligen" in options:
        raise ValueError(f"the conditioning {name} holds GLIGEN boxes, which belong to one picture; use one without")
    hooks = options.get("hooks")
    if hooks and any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks.hooks):
        raise ValueError(f"the conditioning {name} schedules a LoRA by sampling steps; give its hook one strength for all")


def _made_of(model: Any, name: str, text: Tensor, options: dict) -> dict:
    latents = model.latent_format
    side = 8 * latents.spacial_downscale_ratio
    noise = torch.zeros(shape_of(latents, 1, side))
    size = {"width": side, "height": side, "prompt_type": name}
    given = {**size, "seed": 0, **options, "cross_attn": text, "noise": noise, "latent_image": noise, "device": text.device}
    try:
        # Outside inference mode Anima leaves its weights alone, which may be on another device than the text.
        with torch.inference_mode(not isinstance(model, comfy.model_base.Anima)), torch.no_grad():
            return model.extra_conds(**given)
    except KeyError as error:
        raise ValueError(
            f"model {family_of(model)} needs {error.args[0]}, which the conditioning {name} does not hold; encode it with "
            "the text encoder of that model"
        ) from error


def _require_fit(model: Any, name: str, text: Tensor, made: dict) -> None:
    family, config = family_of(model), model.model_config.unet_config
    if "c_concat" in made:
        raise ValueError(
            f"model {family} wants an image beside the noise (an inpainting, edit or upscaling model, or a conditioning that "
            f"holds an image), but a view has none; use the plain text-to-image model of that family"
        )
    embedder = config.get("context_embedder_config") or {"params": {}}
    wanted = {
        "text": (text.shape[-1], config.get("context_dim") or config.get("context_in_dim") or config.get("cap_feat_dim")
                 or embedder["params"].get("in_features") or config.get("crossattn_emb_channels") or _own_width_of(model)),
        "pooled text": (made["y"].cond.shape[-1] if "y" in made else None,
                        config.get("adm_in_channels") or config.get("vec_in_dim")),
    }  # fmt: skip
    for what, (width, expected) in wanted.items():
        if width and expected and width != expected:
            raise ValueError(
                f"model {family} reads {what} of width {expected}, but the conditioning {name} is {width} wide; encode it "
                "with the text encoder of that model"
            )


def _own_width_of(model: Any) -> int | None:
    """The width of the text that a network reads whose detection does not say it."""
    net = model.diffusion_model
    if isinstance(net, QwenImageTransformer2DModel):
        return net.txt_in.in_features
    return net.txtlayers * net.txtdim if isinstance(net, SingleStreamDiT) else None
