"""ControlNets that patch the MODEL (from Load Model Patch). Like other ControlNets, they get new hint images
for each batch of views.
"""

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

from ...lucid_core.errors import BadInput
from ..types import Control

log = logging.getLogger(__name__)
# Supported networks of the host -> the node that makes a patch from one; the model class and the latent
# format that it is made for; the attribute with the width of the patch network, and of the model.
KINDS = {
    "ZImage_Control": (
        "ZImageFunControlnet",
        comfy.model_base.Lumina2,
        comfy.latent_formats.Flux,
        "control_layers.0.dim",
        "dim",
    ),
    "QwenImageBlockWiseControlNet": (
        "QwenImageDiffsynthControlnet",
        comfy.model_base.QwenImage,
        comfy.latent_formats.Wan21,
        "img_in.out_features",
        "inner_dim",
    ),
    "AnimaLLLite": (
        "AnimaLLLiteApply",
        comfy.model_base.Anima,
        comfy.latent_formats.Wan21,
        "model_dim",
        "model_channels",
    ),
}
PATCHES = ("ZImageControlPatch", "DiffSynthCnetPatch", "AnimaLLLitePatch")  # the patch classes of these nodes
Patches = dict[str, list]  # name of the patched location in the model -> patches


class PatchControl:
    """A Control whose net is a MODEL_PATCH, in a run. The host's own node makes the patches from the net and
    a hint.
    """

    def __init__(self, control: Control, model: Any, vae: Any) -> None:
        self.net = control.net
        self._strength = control.strength
        self._vae = vae
        sampling = model.get_model_object("model_sampling")
        self._levels = sampling.percent_to_sigma(control.end), sampling.percent_to_sigma(control.start)
        # The node returns a clone of its model. When a clone is freed, it moves the patches off the device
        # and unpins the weights that it shares. So the node gets a patcher of an empty model on the device.
        self._bare = comfy.model_patcher.ModelPatcher(
            torch.nn.Identity(), model.load_device, model.load_device
        )
        self._bare.add_object_patch("model_sampling", sampling)
        self._dtype = model.model_dtype()
        self.patches: Patches = {}
        # (patch, encoded hints with one row per view, their size)
        self._encoded: list[tuple[Any, Tensor, tuple]] = []

    def set_hint(self, hint: Tensor) -> None:
        """Make the patches for `hint` (B, H, W, 3) in [0, 1]."""
        import nodes  # the host's module: heavy, but already loaded when a node runs

        node = nodes.NODE_CLASS_MAPPINGS[KINDS[kind_of(self.net)][0]]
        accepted = {name for inputs in node.INPUT_TYPES().values() for name in inputs}
        given = {
            "model": self._bare,
            "model_patch": self.net,
            "image": hint,
            "strength": self._strength,
            "vae": self._vae,
            "start_percent": 0.0,
            "end_percent": 1.0,
        }
        with torch.inference_mode():
            made = getattr(node(), node.FUNCTION)(
                **{name: value for name, value in given.items() if name in accepted}
            )
            # V1 nodes return a tuple, V3 nodes a NodeOutput.
            (patched,) = getattr(made, "result", made)
            patched.model_patches_to(patched.load_device)
            patched.model_patches_to(self._dtype)
        self.patches = patched.model_options["transformer_options"]["patches"]
        hinted = {
            id(patch): patch
            for some in self.patches.values()
            for patch in some
            if hasattr(patch, "encoded_image")
        }
        self._encoded = [(patch, patch.encoded_image, patch.encoded_image_size) for patch in hinted.values()]

    def repeat(self, rows: int) -> None:
        """Repeat the encoded hints for a batch of `rows`: the views, once for each conditioning."""
        for patch, encoded, size in self._encoded:
            patch.encoded_image = encoded.repeat(rows // len(encoded), *[1] * (encoded.ndim - 1))
            patch.encoded_image_size = size

    def holds_at(self, level: float) -> bool:
        """Whether the control's range includes the host's noise `level`, as in the host's samplers."""
        least, most = self._levels
        return least <= level <= most


def is_patch(net: Any) -> bool:
    """Whether `net` is a MODEL_PATCH, not a CONTROL_NET."""
    return isinstance(net, comfy.model_patcher.ModelPatcher)


def kind_of(net: Any) -> str:
    return type(net.model).__name__


def require_hinted(net: Any) -> None:
    """Raise BadInput for a MODEL_PATCH that does not take a hint image."""
    if kind_of(net) not in KINDS:
        kinds = ", ".join(KINDS)
        raise BadInput(
            "control_net", f"is a model patch of the kind {kind_of(net)}; use one of the kinds {kinds}"
        )


def difference_of_patch(net: Any, model: Any) -> str | None:
    """The first known difference between a MODEL_PATCH and the model; None if there is none."""
    _, family, latents, width, own_width = KINDS[kind_of(net)]
    if not isinstance(model, family):
        return f"it is one for {family.__name__}"
    if not isinstance(model.latent_format, latents):
        own_latents = type(model.latent_format).__name__
        return f"it works on latents of {latents.__name__}, the model on those of {own_latents}"
    theirs, own = comfy.utils.get_attr(net.model, width), getattr(model.diffusion_model, own_width, None)
    return f"its width is {theirs}, the model's {own}" if own and theirs != own else None


def add_patches(options: dict, controls: list[PatchControl]) -> dict:
    """Model options with the patches of `controls` after the model's own. At each model call, the hints are
    repeated to the rows of the batch.
    """
    own = options.get("transformer_options", {})
    patches = {where: list(some) for where, some in own.get("patches", {}).items()}
    for control in controls:
        for where, some in control.patches.items():
            patches.setdefault(where, []).extend(some)
    wrapped = options.get("model_function_wrapper")

    def call_model(apply_model: Callable, arguments: dict) -> Tensor:
        for control in controls:
            control.repeat(len(arguments["input"]))
        return (
            wrapped(apply_model, arguments)
            if wrapped
            else apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        )

    return {
        **options,
        "transformer_options": {**own, "patches": patches},
        "model_function_wrapper": call_model,
    }


def warn_of_fixed_patches(model: Any) -> None:
    """Log a warning if the host's nodes have put a ControlNet patch with a fixed image on the MODEL."""
    patches = model.model_options.get("transformer_options", {}).get("patches", {})
    if any(type(patch).__name__ in PATCHES for some in patches.values() for patch in some):
        log.warning(
            "The model carries a ControlNet patch that shows it the same image for every view; connect its "
            "Load Model Patch to Lucid ControlNet instead, and each view gets its own hint"
        )
