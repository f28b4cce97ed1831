"""ControlNets of the host in a run: its own objects, shown a hint for every batch of views in the place of one image."""

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

from ...lucid_core.views import VIEWS
from ..types import Conditioning, Control
from .families import family_of
from .patches import PatchControl, difference_of_patch, is_patch, require_hinted

log = logging.getLogger(__name__)
Conditionings = dict[str, Conditioning]  # by VIEWS, "negative" and "inverse"
Shown = list[ControlBase | PatchControl]  # the objects of a run that show one hint
CONTROLLED = (*VIEWS, "negative")  # as the host's Apply ControlNet does it: the prompts and the negative one
REMEDY = "load the ControlNet that belongs to the model"
DITS = {  # networks of ControlNets, and the models that read what they say; other packs' networks are left to the host
    ControlNetFlux: comfy.model_base.Flux,  # with Chroma
    comfy.cldm.mmdit.ControlNet: comfy.model_base.SD3,
    ControlNetEmbedder: comfy.model_base.SD3,
    QwenImageControlNetModel: comfy.model_base.QwenImage,
    QwenImageFunControlNetModel: comfy.model_base.QwenImage,
}
BORROWED = ("orig_y_embedder.", "x_embedder.")  # what those of SD 3.5 may take from the model as a run begins
LATENTS = {ControlNetFlux: comfy.latent_formats.Flux()}  # of those that encode no hint, but read the model's latents


def require_control(net: Any) -> None:
    """Raise ValueError for a CONTROL_NET or MODEL_PATCH whose hint cannot be a picture of a splat."""
    if is_patch(net):
        require_hinted(net)
    elif net.concat_mask:
        raise ValueError("control_net inpaints: it wants a mask, which no view has; use one for depth, normals or edges")


def carries_control(conds: list[Conditioning]) -> bool:
    return any("control" in options for cond in conds for _, options in cond)


def controlled(
    conds: Conditionings, controls: tuple[Control, ...], model: Any, vae: Any
) -> tuple[Conditionings, list[Shown]]:  # fmt: skip
    """`conds` with the controls on them, and the objects that show the hint of each. What is passed in stays as it is.

    A control is added to the views and the negative prompt, with one object for all of them, so that the host can ask about
    them in one batch. The prompt of the inversion goes without, as in LucidDreamer's code: what the control wants is then part
    of what ISM compares. One without a net, the first if any, takes over the chains that are there, wherever they are.
    Raises ValueError for a ControlNet that does not fit `model`.
    """
    conds, shown = _filled(conds), []
    for control in controls:
        if is_patch(control.net):
            refuse(difference_of_patch(control.net, model.model), model.model)
            shown.append([PatchControl(control, model, EachImage(vae))])
            continue
        added: dict = {}  # what makes an object another one -> the object: the host's form chains, each knows the one before
        for name in CONTROLLED if control.net else conds:
            conds = {**conds, name: [[text, _with(control, options, vae, added)] for text, options in conds[name]]}
        shown.append(list(added.values()))
    found = dict.fromkeys(each for cond in conds.values() for _, options in cond for each in chain_of(options.get("control")))
    if found:
        require_fit(model, list(found))
        warn_of_fixed_hints(list(found))
    return conds, shown


def _filled(conds: Conditionings) -> Conditionings:
    """The host's old Apply ControlNet has no output for the negative prompt: the host's sampler puts it there itself."""
    marked = [options["control"] for _, options in conds[VIEWS[0]] if options.get("control_apply_to_uncond")]
    if not marked or any("control" in options for _, options in conds["negative"]):
        return conds
    return {**conds, "negative": [[text, {**options, "control": marked[0]}] for text, options in conds["negative"]]}


def _with(control: Control, options: dict, vae: Any, added: dict) -> dict:
    """The options of a conditioning's entry with the control."""
    theirs = options.get("control")
    if control.net:
        return {**options, "control": _chained(theirs, control, vae, added)}
    return {**options, "control": _taken(theirs, added)} if theirs else options


def _chained(previous: ControlBase | None, control: Control, vae: Any, added: dict) -> ControlBase:
    """The control's object behind `previous`, as the host's Apply ControlNet makes it."""
    if previous not in added:
        net = _own(control.net).set_cond_hint(None, control.strength, (control.start, control.end), vae=EachImage(vae))
        added[previous] = net.set_previous_controlnet(previous)
    return added[previous]


def _taken(theirs: ControlBase | None, added: dict) -> ControlBase | None:
    """A copy of a chain that the host's Apply ControlNet made; equal ones become one object, since the hint is the same."""
    if theirs is None:
        return None
    previous = _taken(theirs.previous_controlnet, added)
    what = (id(weights_of(theirs)), theirs.strength, theirs.timestep_percent_range, repr(theirs.extra_args), previous)
    if what not in added:
        require_control(theirs)
        net = added[what] = _own(theirs).set_previous_controlnet(previous)
        net.cond_hint_original = None  # their image, which nobody is to see any more
    return added[what]


def _own(net: ControlBase) -> ControlBase:
    """A copy for one run."""
    net = net.copy()
    if isinstance(net, comfy.controlnet.T2IAdapter):
        _follow_batch_size(net)
    if net.vae is not None:
        net.vae = EachImage(net.vae)
    return net


class EachImage:
    """A VAE that encodes every hint of a batch by itself: one of video would take them for the frames of one."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def encode(self, images: Tensor) -> Tensor:
        if self._vae.latent_dim != 3:
            return self._vae.encode(images)
        return torch.cat([self._vae.encode(image[None]) for image in images])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)


def _follow_batch_size(adapter: comfy.controlnet.T2IAdapter) -> None:
    """The host's adapter keeps its features for the first batch; one of another size would silently go without them."""
    get_control = adapter.get_control

    def fresh(x_noisy, *others):
        if adapter.cond_hint is not None and len(adapter.cond_hint) not in (1, len(x_noisy)):
            adapter.control_input = None
        return get_control(x_noisy, *others)

    adapter.get_control = fresh


def show(nets: Shown, hint: Tensor) -> None:
    """Put `hint` (B, H, W, 3) in the place of the last one; the host brings it to the size, device and type of the latents."""
    for net in nets:
        if isinstance(net, PatchControl):
            net.show(hint)
            continue
        for each in (net, *net.multigpu_clones.values()):
            each.cond_hint_original, each.cond_hint, each.extra_concat = hint.movedim(-1, 1), None, None


def warn_of_fixed_hints(controls: Shown) -> None:
    """What nobody took over keeps the image of one view."""
    if any(each.cond_hint_original is not None for each in controls):
        log.warning(
            "The prompt brings a ControlNet along that shows the model the same image for every view; Lucid ControlNet with "
            "control_net left empty makes it a hint of each view"
        )


def require_fit(model: Any, controls: Shown) -> None:
    """Raise ValueError, naming both sides, for a ControlNet of another family: the host would fail in the run or ignore it."""
    names = {name: tuple(value.shape) for name, value in model.model.diffusion_model.state_dict().items()}
    for control in controls:
        difference = _difference(control, model.model, names) or _difference_of_latents(control, model.model)
        refuse(difference, model.model)


def refuse(difference: str | None, model: Any) -> None:
    if difference:
        raise ValueError(f"the ControlNet is not made for model {family_of(model)}: {difference}; {REMEDY}")


def _difference_of_latents(control: ControlBase, model: Any) -> str | None:
    theirs, own = control.latent_format or LATENTS.get(type(weights_of(control))), model.latent_format
    if theirs is None or type(theirs) is type(own):
        return None
    return f"it works on latents of {type(theirs).__name__}, the model on those of {type(own).__name__}"


def _difference(control: ControlBase, model: Any, names: dict[str, tuple]) -> str | None:
    """What of `control` does not fit a model whose network has weights of these `names`; None where nothing is known to."""
    weights, net = weights_of(control), model.diffusion_model
    if isinstance(control, comfy.controlnet.T2IAdapter):
        if not isinstance(net, UNetModel):
            return "it is a T2I-Adapter of a UNet, which the model is not"
        levels = len(net.channel_mult)
        wrong = getattr(weights, "xl", False) != (levels == 3)
        return f"it is a T2I-Adapter for another number of levels than the model's {levels}" if wrong else None
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
    return "it is none for a UNet, which the model is" if weights is not None and isinstance(net, UNetModel) else None


def _difference_of_dits(control: torch.nn.Module, model: Any) -> str | None:
    """A DiT's ControlNet reads the model's text and adds to the tokens of its blocks, of which it may have fewer."""
    family = DITS[type(control)]
    if not isinstance(model, family):
        return f"it is one for {family.__name__}"
    own = _widths(model.diffusion_model)
    for what, width in _widths(control).items():
        if own.get(what, width) != width:
            return f"its {what} width is {width}, the model's {own[what]}"
    return None


def _widths(net: torch.nn.Module) -> dict[str, int]:
    """Of a DiT's tokens and text, as far as it says them."""
    hidden = getattr(net, "hidden_size", None) or getattr(net, "inner_dim", None)
    text = getattr(net, "txt_in", None) or getattr(net, "context_embedder", None)
    if isinstance(net, QwenImageFunControlNetModel):
        hidden = net.control_img_in.out_features
    found = {"hidden": hidden, "text": getattr(text, "in_features", None)}
    return {what: width for what, width in found.items() if width}


def _difference_of_encoders(control: torch.nn.Module, names: dict[str, tuple]) -> str | None:
    """A UNet's ControlNet is a copy of its encoder: what has the same name must have the same shape, and all must be there."""
    by_telling = lambda item: "attn2.to_k" not in item[0]  # the width of the text says most about a family
    for name, value in sorted(control.state_dict().items(), key=by_telling):
        if name.split(".")[0] in ("input_blocks", "middle_block", "time_embed", "label_emb"):
            if name not in names:
                return f"its {name} has no counterpart in the model"
            if names[name] != tuple(value.shape):
                return f"its {name} is {list(value.shape)}, the model's {list(names[name])}"
    return None


def chain_of(control: ControlBase | None) -> Shown:
    """`control` and all before it."""
    return [] if control is None else [control, *chain_of(control.previous_controlnet)]


def weights_of(control: ControlBase) -> Any:
    """The network of a ControlNet or T2I-Adapter, the tensors by name of a ControlLoRA; None for kinds of other packs."""
    for name in ("control_weights", "t2i_model", "control_model"):
        if getattr(control, name, None) is not None:
            return getattr(control, name)
    return None


def parts_of(control: ControlBase) -> list:
    """All that the answers of a control and of those before it depend on, for a fingerprint."""
    parts = []
    for each in chain_of(control):
        weights = weights_of(each)
        tensors = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
        if isinstance(each, comfy.controlnet.ControlNetSD35):
            tensors = {name: value for name, value in tensors.items() if not name.startswith(BORROWED)}
        settings = (each.strength, each.timestep_percent_range, each.extra_args, each.cond_hint_original)
        parts.append([type(each).__name__, *settings, tensors])
    return parts
