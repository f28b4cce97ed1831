"""ControlNets that patch the MODEL (those of Load Model Patch): shown a hint for every batch of views, as the others are."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_base
import comfy.model_patcher
import torch
from torch import Tensor

from ..types import Control

log = logging.getLogger(__name__)
KINDS = {  # the host's networks that are shown an image: the node that makes a patch of one, the models it is for, both widths
    "ZImage_Control": (
        "ZImageFunControlnet", comfy.model_base.Lumina2, lambda net: net.control_layers[0].dim, lambda model: model.dim,
    ),
    "QwenImageBlockWiseControlNet": (
        "QwenImageDiffsynthControlnet", comfy.model_base.QwenImage, lambda net: net.img_in.out_features,
        lambda model: model.inner_dim,
    ),
    "AnimaLLLite": (
        "AnimaLLLiteApply", comfy.model_base.Anima, lambda net: net.model_dim, lambda model: model.model_channels,
    ),
}  # fmt: skip
PATCHES = ("ZImageControlPatch", "DiffSynthCnetPatch", "AnimaLLLitePatch")  # what these nodes make
Patches = dict[str, list]  # of a model, by where they act


class PatchControl:
    """A Control whose net is a MODEL_PATCH, in a run: the patches that the host's own node makes of it and of a hint."""

    def __init__(self, control: Control, model: Any, vae: Any) -> None:
        self.net, self._strength, self._vae = control.net, control.strength, vae
        self._bare = model.clone()
        self._bare.model_options["transformer_options"].pop("patches", None)
        level = model.get_model_object("model_sampling").percent_to_sigma
        self._levels = level(control.end), level(control.start)
        self.patches: Patches = {}

    def show(self, hint: Tensor) -> None:
        import nodes  # the host's: heavy, but there when a node runs

        node = nodes.NODE_CLASS_MAPPINGS[KINDS[kind_of(self.net)][0]]
        wanted = {name for inputs in node.INPUT_TYPES().values() for name in inputs}
        given = {"model": self._bare, "model_patch": self.net, "image": hint, "strength": self._strength, "vae": self._vae,
                 "start_percent": 0.0, "end_percent": 1.0}  # fmt: skip
        with torch.inference_mode():
            (patched,) = getattr(node(), node.FUNCTION)(**{name: value for name, value in given.items() if name in wanted})
            patched.model_patches_to(patched.load_device)
            patched.model_patches_to(patched.model_dtype())
        self.patches = patched.model_options["transformer_options"]["patches"]

    def holds_at(self, level: float) -> bool:
        """At the host's noise `level`, as its samplers see the range of a ControlNet."""
        least, most = self._levels
        return least <= level <= most


def is_patch(net: Any) -> bool:
    return isinstance(net, comfy.model_patcher.ModelPatcher)


def kind_of(net: Any) -> str:
    return type(net.model).__name__


def require_hinted(net: Any) -> None:
    """Raise ValueError for a MODEL_PATCH that no picture of a splat can be shown to."""
    if kind_of(net) not in KINDS:
        kinds = ", ".join(KINDS)
        raise ValueError(f"control_net is a model patch of the kind {kind_of(net)}; a hint can be shown to {kinds}")


def difference_of_patch(net: Any, model: Any) -> str | None:
    """What of a MODEL_PATCH does not fit the model; None where nothing is known to."""
    _, family, width, own_width = KINDS[kind_of(net)]
    if not isinstance(model, family):
        return f"it is one for {family.__name__}"
    theirs, own = width(net.model), own_width(model.diffusion_model)
    return f"its width is {theirs}, the model's {own}" if theirs != own else None


def added(options: dict, controls: list[PatchControl]) -> dict:
    """A model's options with the patches of `controls` after its own."""
    own = options.get("transformer_options", {})
    patches = {where: list(some) for where, some in own.get("patches", {}).items()}
    for control in controls:
        for where, some in control.patches.items():
            patches.setdefault(where, []).extend(some)
    return {**options, "transformer_options": {**own, "patches": patches}}


def warn_of_fixed_patches(model: Any) -> None:
    """What the host's nodes put on the MODEL keeps the image of one view."""
    patches = model.model_options.get("transformer_options", {}).get("patches", {})
    if any(type(patch).__name__ in PATCHES for some in patches.values() for patch in some):
        log.warning(
            "The model carries a ControlNet patch that shows it the same image for every view; connect its Load Model Patch to "
            "Lucid ControlNet in its place, and each view gets a hint of its own"
        )
