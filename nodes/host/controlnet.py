"""The host's ControlNets in a run: copies of its control objects, which get new hint images for each batch of
views instead of one fixed image.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.cldm.cldm
import comfy.cldm.mmdit
import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import torch
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.controlnet import ControlBase
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel, QwenImageFunControlNetModel
from torch import Tensor

from ...lucid_core.conditioning.view_prompts import VIEWS
from ...lucid_core.errors import BadInput
from ..types import Conditioning, Control
from .families import family_of
from .model_patches import PatchControl, difference_of_patch, is_patch, require_hinted

log = logging.getLogger(__name__)
Conditionings = dict[str, Conditioning]  # by VIEWS (or cameras), "negative" and "inverse"
Shown = list[ControlBase | PatchControl]  # the control objects of a run that share one hint
CONTROLLED = (*VIEWS, "negative")  # positive and negative prompts, as in the host's Apply ControlNet
REMEDY = "load the ControlNet that belongs to the model"
# ControlNet network -> the model it is made for. Networks of other packs are not checked.
DITS = {
    ControlNetFlux: comfy.model_base.Flux,  # with Chroma
    comfy.cldm.mmdit.ControlNet: comfy.model_base.SD3,
    ControlNetEmbedder: comfy.model_base.SD3,
    QwenImageControlNetModel: comfy.model_base.QwenImage,
    QwenImageFunControlNetModel: comfy.model_base.QwenImage,
}
# Weights that a ControlNet of SD 3.5 may take from the model when a run begins.
BORROWED = ("orig_y_embedder.", "x_embedder.")
# Latent formats of ControlNets that do not encode their hint but read the model's latents.
LATENTS = {ControlNetFlux: comfy.latent_formats.Flux()}


def require_control(net: Any) -> None:
    """Raise BadInput for a CONTROL_NET or MODEL_PATCH whose hint cannot be a rendered view."""
    if is_patch(net):
        require_hinted(net)
    elif net.concat_mask:
        raise BadInput(
            "control_net",
            "is for inpainting and needs a mask, which the views do not have; use one for depth, normals or "
            "edges",
        )


def carries_control(conds: list[Conditioning]) -> bool:
    """Whether any of the CONDITIONINGs has a ControlNet."""
    return any("control" in options for cond in conds for _, options in cond)


def apply_controls(
    conds: Conditionings, controls: tuple[Control, ...], model: Any, vae: Any
) -> tuple[Conditionings, list[Shown]]:
    """Returns `conds` with the controls added, and for each control the objects that take its hint. The
    arguments are not modified.

    A control is added to the view prompts and the negative prompt. They share one object, so that the host
    can evaluate them in one batch. The inversion prompt gets no control, as in LucidDreamer's code, so the
    effect of the control is part of the difference that ISM computes. A control without a net (at most one,
    the first) takes over the ControlNets that the conditionings already have, wherever they are.

    Raises BadInput for a ControlNet that does not fit `model`.
    """
    conds, shown = _filled(conds), []
    for control in controls:
        if is_patch(control.net):
            refuse(difference_of_patch(control.net, model.model), model.model)
            shown.append([PatchControl(control, model, EachImage(vae))])
            continue
        # Objects already made, by what distinguishes them. The host's controls form chains: each has a link
        # to the previous one.
        known: dict = {}
        for name in CONTROLLED if control.net else conds:
            conds = {
                **conds,
                name: [[text, _with(control, options, vae, known)] for text, options in conds[name]],
            }
        shown.append(list(known.values()))
    found = dict.fromkeys(
        each for cond in conds.values() for _, options in cond for each in chain_of(options.get("control"))
    )
    if found:
        require_fit(model, list(found))
        warn_of_fixed_hints(list(found))
    return conds, shown


def _filled(conds: Conditionings) -> Conditionings:
    """`conds` with the control of the host's old Apply ControlNet added to the negative prompt.

    That node has no output for it; the host's sampler adds it in the same way.
    """
    front = conds.get(VIEWS[0], [])  # a picture has no such prompt, and no control
    marked = [options["control"] for _, options in front if options.get("control_apply_to_uncond")]
    if not marked or any("control" in options for _, options in conds["negative"]):
        return conds
    return {
        **conds,
        "negative": [[text, {**options, "control": marked[0]}] for text, options in conds["negative"]],
    }


def _with(control: Control, options: dict, vae: Any, known: dict) -> dict:
    """The `options` of a conditioning's entry, with the control added."""
    theirs = options.get("control")
    if control.net:
        return {**options, "control": _chained(theirs, control, vae, known)}
    return {**options, "control": _taken(theirs, known)} if theirs else options


def _chained(previous: ControlBase | None, control: Control, vae: Any, known: dict) -> ControlBase:
    """The object of `control`, chained to `previous` as the host's Apply ControlNet does."""
    if previous not in known:
        net = _own(control.net).set_cond_hint(
            None, control.strength, (control.start, control.end), vae=EachImage(vae)
        )
        known[previous] = net.set_previous_controlnet(previous)
    return known[previous]


def _taken(theirs: ControlBase | None, known: dict) -> ControlBase | None:
    """A copy of a chain that the host's Apply ControlNet made. Equal controls become one object, because they
    get the same hint.
    """
    if theirs is None:
        return None
    previous = _taken(theirs.previous_controlnet, known)
    what = (
        id(weights_of(theirs)),
        theirs.strength,
        theirs.timestep_percent_range,
        repr(theirs.extra_args),
        previous,
    )
    if what not in known:
        require_control(theirs)
        net = known[what] = _own(theirs).set_previous_controlnet(previous)
        net.cond_hint_original = None  # the fixed image, which the hints replace
    return known[what]


def _own(net: ControlBase) -> ControlBase:
    """A copy for one run."""
    net = net.copy()
    if isinstance(net, comfy.controlnet.T2IAdapter):
        _follow_batch_size(net)
    if net.vae is not None:
        net.vae = EachImage(net.vae)
    return net


class EachImage:
    """A VAE wrapper that encodes the hints of a batch one by one if the VAE is a video VAE, which would take
    the batch for the frames of one video.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def encode(self, images: Tensor) -> Tensor:
        if self._vae.latent_dim != 3:
            return self._vae.encode(images)
        return torch.cat([self._vae.encode(image[None]) for image in images])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)


def _follow_batch_size(adapter: comfy.controlnet.T2IAdapter) -> None:
    """Make `adapter` recompute its features when the batch size changes.

    The host's adapter caches the features of the first batch and silently ignores them for other sizes.
    """
    get_control = adapter.get_control

    def fresh(x_noisy, *others):
        if adapter.cond_hint is not None and len(adapter.cond_hint) not in (1, len(x_noisy)):
            adapter.control_input = None
        return get_control(x_noisy, *others)

    adapter.get_control = fresh


def set_hint(nets: Shown, hint: Tensor) -> None:
    """Replace the hint of `nets` by `hint` (B, H, W, 3) in [0, 1].

    The host converts it to the size, device and dtype of the latents.
    """
    for net in nets:
        if isinstance(net, PatchControl):
            net.set_hint(hint)
            continue
        for each in (net, *net.multigpu_clones.values()):
            each.cond_hint_original, each.cond_hint, each.extra_concat = hint.movedim(-1, 1), None, None


def warn_of_fixed_hints(controls: Shown) -> None:
    """Log a warning if a ControlNet that no Lucid ControlNet took over keeps its fixed image."""
    if any(each.cond_hint_original is not None for each in controls):
        log.warning(
            "The prompt has a ControlNet that shows the model the same image for every view; add a Lucid "
            "ControlNet with control_net left empty, and it gets a hint of each view"
        )


def require_fit(model: Any, controls: Shown) -> None:
    """Raise BadInput for a ControlNet made for another model family; the message names both.

    The host itself would fail during the run, or ignore the ControlNet.
    """
    names = {name: tuple(value.shape) for name, value in model.model.diffusion_model.state_dict().items()}
    for control in controls:
        difference = _difference(control, model.model, names) or _difference_of_latents(control, model.model)
        refuse(difference, model.model)


def refuse(difference: str | None, model: Any) -> None:
    """Raise BadInput if there is a `difference` between a ControlNet and `model`."""
    if difference:
        raise BadInput("control_net", f"is not made for model {family_of(model)}: {difference}; {REMEDY}")


def _difference_of_latents(control: ControlBase, model: Any) -> str | None:
    theirs, own = control.latent_format or LATENTS.get(type(weights_of(control))), model.latent_format
    if theirs is None or type(theirs) is type(own):
        return None
    return f"it works on latents of {type(theirs).__name__}, the model on those of {type(own).__name__}"


def _difference(control: ControlBase, model: Any, names: dict[str, tuple]) -> str | None:
    """The first known difference between `control` and the model; None if there is none. `names` maps the
    model's weights to their shapes.
    """
    weights, net = weights_of(control), model.diffusion_model
    if isinstance(control, comfy.controlnet.T2IAdapter):
        if not isinstance(net, UNetModel):
            return "it is a T2I-Adapter of a UNet, which the model is not"
        levels = len(net.channel_mult)
        wrong = getattr(weights, "xl", False) != (levels == 3)
        return (
            f"it is a T2I-Adapter for another number of levels than the model's {levels}" if wrong else None
        )
    if isinstance(control, comfy.controlnet.ControlLora):
        inputs = lambda name: weights[name].flatten(1).shape[1]
        for name in (name for name in weights if name.endswith(".down")):
            own = names.get(f"{name.removesuffix('.down')}.weight", (0,))
            if torch.Size(own[1:]).numel() != inputs(name):
                return f"{name} takes {inputs(name)} inputs, the model's layer {list(own)}"
        return None
    if isinstance(weights, comfy.cldm.cldm.ControlNet):
        return _difference_of_encoders(weights, names)
    if type(weights) in DITS:
        return _difference_of_dits(weights, model)
    return (
        "it is not made for a UNet, which the model is"
        if weights is not None and isinstance(net, UNetModel)
        else None
    )


def _difference_of_dits(control: torch.nn.Module, model: Any) -> str | None:
    """Compares model class and widths: a DiT's ControlNet reads the model's text embedding and adds to the
    tokens of its blocks. It may have fewer blocks than the model.
    """
    family = DITS[type(control)]
    if not isinstance(model, family):
        return f"it is one for {family.__name__}"
    own = _widths(model.diffusion_model)
    for what, width in _widths(control).items():
        if own.get(what, width) != width:
            return f"its {what} width is {width}, the model's {own[what]}"
    return None


def _widths(net: torch.nn.Module) -> dict[str, int]:
    """Widths of a DiT's tokens ("hidden") and text embedding ("text"), as far as its attributes tell them."""
    hidden = getattr(net, "hidden_size", None) or getattr(net, "inner_dim", None)
    text = getattr(net, "txt_in", None) or getattr(net, "context_embedder", None)
    if isinstance(net, QwenImageFunControlNetModel):
        hidden = net.control_img_in.out_features
    found = {"hidden": hidden, "text": getattr(text, "in_features", None)}
    return {what: width for what, width in found.items() if width}


def _difference_of_encoders(control: torch.nn.Module, names: dict[str, tuple]) -> str | None:
    """Compares weights: a UNet's ControlNet is a copy of its encoder, so each of these weights must exist in
    the model with the same shape. `names` maps the model's weights to their shapes.
    """
    by_telling = lambda item: "attn2.to_k" not in item[0]  # first: the text width tells families apart best
    for name, value in sorted(control.state_dict().items(), key=by_telling):
        if name.split(".")[0] in ("input_blocks", "middle_block", "time_embed", "label_emb"):
            if name not in names:
                return f"its {name} has no counterpart in the model"
            if names[name] != tuple(value.shape):
                return f"its {name} is {list(value.shape)}, the model's {list(names[name])}"
    return None


def chain_of(control: ControlBase | None) -> Shown:
    """`control` and all previous controls in its chain."""
    return [] if control is None else [control, *chain_of(control.previous_controlnet)]


def weights_of(control: ControlBase) -> Any:
    """The network of a ControlNet or T2I-Adapter, or a ControlLoRA's dict of tensors; None for the control
    types of other packs.
    """
    for name in ("control_weights", "t2i_model", "control_model"):
        if getattr(control, name, None) is not None:
            return getattr(control, name)
    return None


def parts_of(control: ControlBase) -> list:
    """For a fingerprint: everything that the output of `control` and its previous controls depends on."""
    parts = []
    for each in chain_of(control):
        weights = weights_of(each)
        tensors = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
        if isinstance(each, comfy.controlnet.ControlNetSD35):
            tensors = {name: value for name, value in tensors.items() if not name.startswith(BORROWED)}
        settings = (each.strength, each.timestep_percent_range, each.extra_args, each.cond_hint_original)
        parts.append([type(each).__name__, *settings, tensors])
    return parts
