"""Small ControlNets of DiT families, random weights of a seed, in the files that they are published as, for
the host's loader.

Names and shapes are those of the host's own classes on the meta device, sizes those of the model that they
are made for.
"""

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.cldm.mmdit import ControlNet
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.lumina.controlnet import ZImage_Control
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel, QwenImageFunControlNetModel
from comfy_api.latest import IO
from safetensors.torch import save_file

import nodes

HEADS = (
    "controlnet_blocks.",
    "controlnet_single_blocks.",
    ".after_proj.",
)  # zero before training, here only small
UNDETECTED = (
    "num_attention_heads",
    "joint_attention_dim",
)  # of Qwen-Image the host's loader knows none but the full width
QWEN_HEAD = 128  # channels, the host's default


def as_diffusers(state, keys):
    """`keys` is the host's map of their names: to one of its own, or to (name, (axis, start, length) of it or
    None, ...).
    """
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
    return {
        name.replace("controlnet_single", "single_controlnet"): value
        for name, value in as_xlabs(state, config).items()
    }


def as_sd35(state, config):
    theirs = {own: name for own, name, *_ in comfy.utils.MMDIT_MAP_BASIC}
    own = {
        theirs.get(name, name): value for name, value in state.items() if not name.startswith("orig_")
    }  # the model's
    return own | {"control_type": torch.tensor(2.0)}  # depth, which is shown the other way round


FLUX = {"depth": 2, "depth_single_blocks": 1}
XLABS = {"depth": 2, "depth_single_blocks": 0}
# the host's class; its arguments beside the model's configuration, or all by that; the published form by both
KINDS = {
    "flux_xlabs": (ControlNetFlux, XLABS, as_xlabs),
    "flux_wide": (
        ControlNetFlux,
        lambda config: {
            **config,
            **XLABS,
            "hidden_size": 2 * config["hidden_size"],
            "num_heads": 2 * config["num_heads"],
        },
        as_xlabs,
    ),
    "flux_mistoline": (ControlNetFlux, {**FLUX, "mistoline": True}, as_mistoline),
    "flux_union": (
        ControlNetFlux,
        {**FLUX, "latent_input": True, "num_union_modes": 8, "control_latent_channels": 16},
        lambda state, config: as_diffusers(state, comfy.utils.flux_to_diffusers(config)),
    ),
    "sd3": (
        ControlNet,
        {"num_blocks": 2, "control_latent_channels": 16},
        lambda state, config: as_diffusers(state, comfy.utils.mmdit_to_diffusers(config)),
    ),
    "sd35": (
        ControlNetEmbedder,
        lambda config: {
            "img_size": None,
            "patch_size": 2,
            "in_chans": 16,
            "attention_head_dim": 64,
            "num_attention_heads": config["depth"],
            "adm_in_channels": config["adm_in_channels"],
            "num_layers": 2,
            "main_model_double": config["depth"],
            "double_y_emb": True,
        },
        as_sd35,
    ),
    "qwen": (QwenImageControlNetModel, {"num_layers": 2}, None),
    "qwen_fun": (
        QwenImageFunControlNetModel,
        lambda config: {
            "inner_dim": QWEN_HEAD * config["num_attention_heads"],
            "attention_head_dim": QWEN_HEAD,
            "num_attention_heads": config["num_attention_heads"],
        },
        None,
    ),
}


def random_weights(empty, seed):
    """Variance-keeping, norms near 1."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, value in sorted(empty.items()):
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            noise = (
                noise / value[0].numel() ** 0.5 * (1.7 if value.ndim == 4 else 1)
            )  # SiLU takes most of a hint away
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
        state = random_weights(empty.state_dict(), seed=len(kind))
        path = Path(folder_paths.get_folder_paths("controlnet")[0]) / f"test_{kind}.safetensors"
        save_file(published(state, config) if published else state, f"{path}.new")
        os.replace(f"{path}.new", path)  # the host may still read an older one
        with detected(own):
            return IO.NodeOutput(*nodes.ControlNetLoader().load_controlnet(path.name))


PATCH_NODES = {
    "z_image": "ZImageFunControlnet",
    "z_image_wide": "ZImageFunControlnet",
    "qwen": "QwenImageDiffsynthControlnet",
    "anima": "AnimaLLLiteApply",
}
LLLITE = {  # names and shapes of the smallest file, for models of a width of 128 whose first block is patched
    "conv1.weight": (16, 3, 4, 4),
    "conv1.bias": (16,),
    "conv2.weight": (16, 16, 3, 3),
    "conv2.bias": (16,),
    "conv3.weight": (32, 16, 4, 4),
    "conv3.bias": (32,),
    "proj.weight": (16, 32, 1, 1),
    "proj.bias": (16,),
    **{
        f"{norm}.{part}": (n,)
        for norm, n in (("norm1", 16), ("norm2", 16), ("norm3", 32), ("out_norm", 16))
        for part in ("weight", "bias")
    },
}
LLLITE_BLOCK = {
    "down.weight": (8, 128),
    "down.bias": (8,),
    "mid.weight": (8, 24),
    "mid.bias": (8,),
    "up.weight": (128, 8),
    "up.bias": (128,),
    "cond_to_film.weight": (16, 16),
    "cond_to_film.bias": (16,),
    "depth_embed": (16,),
}


class LucidTestPatch(IO.ComfyNode):
    """A MODEL_PATCH for `model`: Anima's from a file by the stock loader, which takes others at their full
    width alone.
    """

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Combo.Input("kind", options=[*PATCH_NODES, "style"])]
        return IO.Schema(node_id="LucidTestPatch", inputs=inputs, outputs=[IO.ModelPatch.Output()])

    @classmethod
    def execute(cls, model, kind):
        loader = nodes.NODE_CLASS_MAPPINGS["ModelPatchLoader"]
        if kind == "anima":
            return IO.NodeOutput(*loader().load_model_patch(lllite()))
        own, place = (
            model.model.diffusion_model,
            {"operations": comfy.ops.manual_cast, "dtype": torch.float32, "device": "cpu"},
        )
        if kind == "qwen":
            blocks = sys.modules[loader.__module__].QwenImageBlockWiseControlNet
            net = blocks(num_layers=len(own.transformer_blocks), dim=own.inner_dim, **place)
        elif kind == "style":  # shown no image that a view could give
            net = torch.nn.Linear(1, 1)
        else:  # the union of version 2.1
            dim = own.dim * (2 if kind == "z_image_wide" else 1)
            net = ZImage_Control(
                dim=dim,
                n_heads=8,
                n_kv_heads=8,
                n_control_layers=15,
                additional_in_dim=17,
                refiner_control=True,
                **place,
            )
        net.load_state_dict(
            {name: value.float() for name, value in random_weights(net.state_dict(), seed=len(kind)).items()}
        )
        devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        return IO.NodeOutput(comfy.model_patcher.CoreModelPatcher(net, *devices))


def lllite():
    """The name of a file of Anima's LLLite."""
    shapes = {f"lllite_conditioning1.{name}": shape for name, shape in LLLITE.items()}
    for target in ("self_attn_q_proj", "self_attn_v_proj", "cross_attn_q_proj", "mlp_layer1"):
        shapes |= {f"lllite_dit_blocks_0_{target}.{name}": shape for name, shape in LLLITE_BLOCK.items()}
    path = Path(folder_paths.get_folder_paths("model_patches")[0]) / "test_anima.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(
        random_weights({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, seed=5),
        f"{path}.new",
    )
    os.replace(f"{path}.new", path)
    return path.name


def patched(model, net, vae, hint, strength):
    """`model` as the host's own node patches it."""
    kind = {"ZImage_Control": "z_image", "AnimaLLLite": "anima"}.get(type(net.model).__name__, "qwen")
    node = nodes.NODE_CLASS_MAPPINGS[PATCH_NODES[kind]]
    more = {"start_percent": 0.0, "end_percent": 1.0} if kind == "anima" else {"vae": vae}
    return getattr(node(), node.FUNCTION)(
        model=model, model_patch=net, image=hint, strength=strength, **more
    )[0]


NODES = [LucidTestNet, LucidTestPatch]
