"""Small ControlNets of DiT families, random weights of a seed, in the files that they are published as, for the host's loader.

Names and shapes are those of the host's own classes on the meta device, sizes those of the model that they are made for.
"""

import contextlib
import os
from pathlib import Path
from unittest import mock

import comfy.controlnet
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.cldm.mmdit import ControlNet
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel, QwenImageFunControlNetModel
from comfy_api.latest import IO
from safetensors.torch import save_file

import nodes

HEADS = ("controlnet_blocks.", "controlnet_single_blocks.", ".after_proj.")  # zero before training, here only small
UNDETECTED = ("num_attention_heads", "joint_attention_dim")  # of Qwen-Image the host's loader knows none but the full width
QWEN_HEAD = 128  # channels, the host's default


def as_diffusers(state, keys):
    """`keys` is the host's map of their names: to one of its own, or to (name, (axis, start, length) of it or None, ...)."""
    out, taken = {}, dict.fromkeys(state, 0)
    for name, to in keys.items():
        own, place = (to, None) if isinstance(to, str) else to[:2]
        if own in state and taken[own] < state[own].numel():  # some have two names
            out[name] = (state[own].narrow(*place) if place else state[own]).contiguous()
            taken[own] += out[name].numel()
    return out | {name: value for name, value in state.items() if not taken[name]}


def as_xlabs(state, config):
    return {name.replace("_norm.weight", "_norm.scale"): value for name, value in state.items()}


def as_mistoline(state, config):
    return {name.replace("controlnet_single", "single_controlnet"): value for name, value in as_xlabs(state, config).items()}


def as_sd35(state, config):
    theirs = {own: name for own, name, *_ in comfy.utils.MMDIT_MAP_BASIC}
    own = {theirs.get(name, name): value for name, value in state.items() if not name.startswith("orig_")}  # the model's
    return own | {"control_type": torch.tensor(2.0)}  # depth, which is shown the other way round


FLUX = {"depth": 2, "depth_single_blocks": 1}
XLABS = {"depth": 2, "depth_single_blocks": 0}
KINDS = {  # the host's class; its arguments beside the model's configuration, or all by that; the published form by both
    "flux_xlabs": (ControlNetFlux, XLABS, as_xlabs),
    "flux_wide": (ControlNetFlux, lambda config: {
        **config, **XLABS, "hidden_size": 2 * config["hidden_size"], "num_heads": 2 * config["num_heads"],
    }, as_xlabs),
    "flux_mistoline": (ControlNetFlux, {**FLUX, "mistoline": True}, as_mistoline),
    "flux_union": (ControlNetFlux, {**FLUX, "latent_input": True, "num_union_modes": 8, "control_latent_channels": 16},
                   lambda state, config: as_diffusers(state, comfy.utils.flux_to_diffusers(config))),
    "sd3": (ControlNet, {"num_blocks": 2, "control_latent_channels": 16},
            lambda state, config: as_diffusers(state, comfy.utils.mmdit_to_diffusers(config))),
    "sd35": (ControlNetEmbedder, lambda config: {
        "img_size": None, "patch_size": 2, "in_chans": 16, "attention_head_dim": 64, "num_attention_heads": config["depth"],
        "adm_in_channels": config["adm_in_channels"], "num_layers": 2, "main_model_double": config["depth"],
        "double_y_emb": True,
    }, as_sd35),
    "qwen": (QwenImageControlNetModel, {"num_layers": 2}, None),
    "qwen_fun": (QwenImageFunControlNetModel, lambda config: {
        "inner_dim": QWEN_HEAD * config["num_attention_heads"], "attention_head_dim": QWEN_HEAD,
        "num_attention_heads": config["num_attention_heads"],
    }, None),
}  # fmt: skip


def random_weights(network, seed):
    """Variance-keeping, norms near 1."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, value in sorted(network.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            noise = noise / value[0].numel() ** 0.5 * (1.7 if value.ndim == 4 else 1)  # SiLU takes most of a hint away
        else:
            noise = 0.1 * noise + float("norm" in name and name.endswith("weight"))
        state[name] = (0.2 * noise if any(head in name for head in HEADS) else noise).half()
    return state


@contextlib.contextmanager
def detected(config):
    """The host's detection, told what it takes for granted."""
    detect = comfy.controlnet.controlnet_config

    def told(*args, **kwargs):
        model_config, *others = detect(*args, **kwargs)
        model_config.unet_config |= {name: config[name] for name in UNDETECTED if name in config}
        return model_config, *others

    with mock.patch.object(comfy.controlnet, "controlnet_config", told):
        yield


class LucidTestNet(IO.ComfyNode):
    """A ControlNet for `model`, by way of a file and the host's stock loader."""

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Combo.Input("kind", options=list(KINDS))]
        return IO.Schema(node_id="LucidTestNet", inputs=inputs, outputs=[IO.ControlNet.Output()])

    @classmethod
    def execute(cls, model, kind):
        network, more, published = KINDS[kind]
        own = model.model.model_config.unet_config
        config = more(own) if callable(more) else {**own, **more}
        with torch.device("meta"):
            place = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "meta"}
            empty = network(**(config | place))
        state = random_weights(empty, seed=len(kind))
        path = Path(folder_paths.get_folder_paths("controlnet")[0]) / f"test_{kind}.safetensors"
        save_file(published(state, config) if published else state, f"{path}.new")
        os.replace(f"{path}.new", path)  # the host may still read an older one
        with detected(own):
            return IO.NodeOutput(*nodes.ControlNetLoader().load_controlnet(path.name))


NODES = [LucidTestNet]
