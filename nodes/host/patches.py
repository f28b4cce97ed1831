"""ControlNets that patch the MODEL (those of Load Model Patch): shown a hint for every batch of views, as the others are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ..types import Control

log = logging.getLogger(__name__)
KINDS = {  # the host's networks that are shown an image: the node that makes a patch of one; the models it is for, by their
    # class, their latents, and how both call their width
    "ZImage_Control": (
        "ZImageFunControlnet", comfy.model_base.Lumina2, comfy.latent_formats.Flux, "control_layers.0.dim", "dim",
    ),
    "QwenImageBlockWiseControlNet": (
        "QwenImageDiffsynthControlnet", comfy.model_base.QwenImage, comfy.latent_formats.Wan21, "img_in.out_features",
        "inner_dim",
    ),
    "AnimaLLLite": ("AnimaLLLiteApply", comfy.model_base.Anima, comfy.latent_formats.Wan21, "model_dim", "model_channels"),
}  # fmt: skip
PATCHES = ("ZImageControlPatch", "DiffSynthCnetPatch", "AnimaLLLitePatch")  # what these nodes make
Patches = dict[str, list]  # of a model, by where they act


class PatchControl:
    """A Control whose net is a MODEL_PATCH, in a run: the patches that the host's own node makes of it and of a hint."""

    def __init__(self, control: Control, model: Any, vae: Any) -> None:
        self.net, self._strength, self._vae = control.net, control.strength, vae
        sampling = model.get_model_object("model_sampling")
        self._levels = sampling.percent_to_sigma(control.end), sampling.percent_to_sigma(control.start)
        # What the node makes is a clone, which as it goes moves the patches away and unpins the weights that it shares: so it
        # is one of nothing, at home on the device.
        self._bare = comfy.model_patcher.ModelPatcher(torch.nn.Identity(), model.load_device, model.load_device)
        self._bare.add_object_patch("model_sampling", sampling)
        self._dtype = model.model_dtype()
        self.patches: Patches = {}
        self._encoded: list[tuple[Any, Tensor, tuple]] = []  # what the patches hold of the hints, a row for each view

    def show(self, hint: Tensor) -> None:
        import nodes  # the host's: heavy, but there when a node runs

        node = nodes.NODE_CLASS_MAPPINGS[KINDS[kind_of(self.net)][0]]
        wanted = {name for inputs in node.INPUT_TYPES().values() for name in inputs}
        given = {"model": self._bare, "model_patch": self.net, "image": hint, "strength": self._strength, "vae": self._vae,
                 "start_percent": 0.0, "end_percent": 1.0}  # fmt: skip
        with torch.inference_mode():
            made = getattr(node(), node.FUNCTION)(**{name: value for name, value in given.items() if name in wanted})
            (patched,) = getattr(made, "result", made)  # a tuple, or a NodeOutput where the node is of the host's newer kind
            patched.model_patches_to(patched.load_device)
            patched.model_patches_to(self._dtype)
        self.patches = patched.model_options["transformer_options"]["patches"]
        hinted = {id(patch): patch for some in self.patches.values() for patch in some if hasattr(patch, "encoded_image")}
        self._encoded = [(patch, patch.encoded_image, patch.encoded_image_size) for patch in hinted.values()]

    def repeat(self, rows: int) -> None:
        """The hints for a batch in which the views come again and again, once for each conditioning that is asked about."""
        for patch, encoded, size in self._encoded:
            patch.encoded_image = encoded.repeat(rows // len(encoded), *[1] * (encoded.ndim - 1))
            patch.encoded_image_size = size

    def holds_at(self, level: float) -> bool:
        """At the host's noise `level`, as its samplers see the range of a ControlNet."""
        least, most = self._levels
        return least <= level <= most


def is_patch(net: Any) -> bool:
    """Is it a MODEL_PATCH, and no CONTROL_NET?"""
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
    _, family, latents, width, own_width = KINDS[kind_of(net)]
    if not isinstance(model, family):
        return f"it is one for {family.__name__}"
    if not isinstance(model.latent_format, latents):
        return f"it works on latents of {latents.__name__}, the model on those of {type(model.latent_format).__name__}"
    theirs, own = comfy.utils.get_attr(net.model, width), getattr(model.diffusion_model, own_width, None)
    return f"its width is {theirs}, the model's {own}" if own and theirs != own else None


def added(options: dict, controls: list[PatchControl]) -> dict:
    """A model's options with the patches of `controls` after its own, and their hints for as many rows as are asked."""
    own = options.get("transformer_options", {})
    patches = {where: list(some) for where, some in own.get("patches", {}).items()}
    for control in controls:
        for where, some in control.patches.items():
            patches.setdefault(where, []).extend(some)
    wrapped = options.get("model_function_wrapper")

    def ask(apply_model: Callable, arguments: dict) -> Tensor:
        for control in controls:
            control.repeat(len(arguments["input"]))
        return wrapped(apply_model, arguments) if wrapped else apply_model(
            arguments["input"], arguments["timestep"], **arguments["c"]
        )  # fmt: skip

    return {**options, "transformer_options": {**own, "patches": patches}, "model_function_wrapper": ask}


def warn_of_fixed_patches(model: Any) -> None:
    """What the host's nodes put on the MODEL keeps the image of one view."""
    patches = model.model_options.get("transformer_options", {}).get("patches", {})
    if any(type(patch).__name__ in PATCHES for some in patches.values() for patch in some):
        log.warning(
            "The model carries a ControlNet patch that shows it the same image for every view; connect its Load Model Patch to "
            "Lucid ControlNet in its place, and each view gets a hint of its own"
        )
