"""Small models of every family, random weights of a seed, as files that the host's stock loaders detect and
accept.

    python tests/host/families.py COMFYUI_DIR FOLDER

writes them to FOLDER/diffusion_models (Load Diffusion Model), FOLDER/vae and FOLDER/vae_approx (Load VAE),
and for `sd15` what rides on it: LoRAs in FOLDER/loras and a textual inversion in FOLDER/embeddings. Names and
shapes of weights are those of the host's own classes, built without memory on the meta device; what its
detection leaves free is as small as it goes.

Text: the host's loaders take no small text encoder for SD 2, SDXL, SD3 or Flux (CLIP-H, CLIP-G and T5 have
fixed sizes). What they take is free for transformers: `sd3` and `flux*` here read CLIP-L's own 768 wide text,
as CLIP Text Encode gives it with the demo's checkpoint. For `sd2*` and `sdxl*` the tests' node LucidTestWiden
makes CLIP-L's text as wide as theirs.

A small Z-Image, Qwen-Image, Anima or Cosmos cannot be a file (their detection wants the full width): the
tests' node LucidTestBuilt builds one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# what the detection of SD 1, SD 2 and SDXL leaves free: one level, one block, no attention on the way up
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -1,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
SD1 = {  # with attention in the middle, where PAG works
    **UNET,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "transformer_depth_middle": 1,
}
SD2 = {
    **UNET,
    "context_dim": 1024,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
}
SDXL = {  # that of KOALA-700M, the smallest that is told by its depths
    **SD2,
    "context_dim": 2048,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_output": [0] * 6,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 5,
    "input_size": None,
    "adm_in_channels": 768,
    "num_patches": 1024,
    "pos_embed_max_size": 32,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 768, "out_features": 320},
    },
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 768,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 8,
    "depth_single_blocks": 8,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FLUX2 = {
    **FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "depth": 3,
    "depth_single_blocks": 3,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
KREA2 = {"features": 128, "heads": 1, "kvheads": 1, "txtdim": 320, "txtlayers": 3, "layers": 1}
WAN = {
    "dim": 128,
    "ffn_dim": 256,
    "num_heads": 1,
    "num_layers": 1,
    "in_dim": 16,
    "out_dim": 16,
    "model_type": "t2v",
}

V_PREDICTION = {
    "output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])
}  # how SD 2.1-v is told
CLASSES = {
    "SD": "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "SD3": "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT",
    "FLUX": "comfy.ldm.flux.model.Flux",
    "KREA2": "comfy.ldm.krea2.model.SingleStreamDiT",
    "WAN": "comfy.ldm.wan.model.WanModel",
}
MODELS = {  # name of the file: the host's class, its configuration, weights that are only there to be seen
    "sd15": ("SD", SD1, {}),
    "sd15_inpaint": ("SD", {**SD1, "in_channels": 9}, {}),
    "sd15_edit": ("SD", {**SD1, "in_channels": 8}, {}),
    "sd2": ("SD", SD2, {}),
    "sd2_v": ("SD", SD2, V_PREDICTION),
    "sdxl": ("SD", SDXL, {}),
    "sdxl_v_ztsnr": ("SD", SDXL, {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}),
    "sd3": ("SD3", SD3, {}),
    "flux": ("FLUX", FLUX, {}),
    "flux_schnell": ("FLUX", {**FLUX, "guidance_embed": False}, {}),
    "flux2": ("FLUX", FLUX2, {}),
    "flux_fill": ("FLUX", {**FLUX, "in_channels": 96}, {}),
    "krea2": ("KREA2", KREA2, {}),
    "wan": ("WAN", WAN, {}),
}
TEXT = {  # widths of tokens and of the pooled text; of others 768, 768
    **dict.fromkeys(("sd2", "sd2_v"), (1024, 1024)),
    **dict.fromkeys(("sdxl", "sdxl_v_ztsnr"), (2048, 1280)),
    "krea2": (960, 768),
    "anima": (1024, 768),
}
VAE_TYPES = {"taew": torch.float32}  # by which the host tells Wan's from HunyuanVideo's
LORAS = ("lora_a", "lora_b")  # of `sd15`
TEXT_LORA = "lora_text"  # of the last layers of CLIP-L, which do nothing in the demo's checkpoint
WORD = "word"  # a textual inversion for CLIP-L: embedding:lucid_test_word
TAEF2 = "taef2"  # what the host calls the tiny VAE of Flux.2
VAES = {  # the demo's checkpoint holds one of 4 channels
    "taesd_16_channels": ("comfy.taesd.taesd.TAESD", {"latent_channels": 16}),
    "taew": ("comfy.taesd.taehv.TAEHV", {"latent_channels": 16}),
    "taehv": ("comfy.taesd.taehv.TAEHV", {"latent_channels": 16}),
    "wan_vae": (
        "comfy.ldm.wan.vae.WanVAE",
        {
            "dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "temperal_downsample": [False, True, True],
        },
    ),
    "rgba_vae": (
        "comfy.ldm.wan.vae.WanVAE",
        {
            "dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "temperal_downsample": [False, True, True],
            "image_channels": 4,
            "conv_out_channels": 4,
        },
    ),
}


def file_of(family: str) -> str:
    """What the loaders call it."""
    return f"lucid_test_{family}.safetensors"


def write(folder: Path) -> None:
    """Write all files that are missing in `folder` or older than this one. Runs where `import comfy`
    works.
    """
    from safetensors.torch import save_file

    for family, (kind, config, extra) in MODELS.items():
        path = folder / "diffusion_models" / file_of(family)
        if is_due(path):
            module, name = CLASSES[kind].rsplit(".", 1)
            save_file(random_weights(build(module, name, config), family) | extra, path)
    for name, (kind, config) in VAES.items():
        path = folder / "vae" / file_of(name)
        if is_due(path):
            module, of = kind.rsplit(".", 1)
            weights = random_weights(build(module, of, config), name)
            save_file(
                {key: value.to(VAE_TYPES.get(name, value.dtype)) for key, value in weights.items()}, path
            )
    tiny = build("comfy.taesd.taesd", "TAESD", {"latent_channels": 128})
    for part in ("encoder", "decoder"):  # one of Flux.2 has two files
        path = folder / "vae_approx" / f"{TAEF2}_{part}.safetensors"
        if is_due(path):
            save_file(random_weights(getattr(tiny, f"taesd_{part}"), part), path)
    for name in LORAS:
        path = folder / "loras" / file_of(name)
        if is_due(path):
            save_file(lora(name), path)
    path = folder / "loras" / file_of(TEXT_LORA)
    if is_due(path):
        save_file(text_lora(), path)
    path = folder / "embeddings" / file_of(WORD)
    if is_due(path):
        save_file(
            {"emb_params": 0.05 * torch.randn(2, 768, generator=torch.Generator().manual_seed(2))}, path
        )


def lora(name: str, rank: int = 4) -> dict[str, torch.Tensor]:
    """For the attention of `sd15`, in the naming that the host's loader takes for every model."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_"
    state = {}
    for part, width in (("q", 320), ("v", 768)):
        state[f"{layer}{part}.lora_down.weight"] = torch.randn(rank, width, generator=generator) / width**0.5
        state[f"{layer}{part}.lora_up.weight"] = torch.randn(320, rank, generator=generator)
    return state


def text_lora(rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for layer in (10, 11):
        for part, n_in, n_out in (("fc1", 768, 3072), ("fc2", 3072, 768)):
            name = f"lora_te_text_model_encoder_layers_{layer}_mlp_{part}"
            state[f"{name}.lora_down.weight"] = torch.randn(rank, n_in, generator=generator) / n_in**0.5
            state[f"{name}.lora_up.weight"] = torch.randn(n_out, rank, generator=generator)
    return state


def is_due(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    return not path.exists() or path.stat().st_mtime < Path(__file__).stat().st_mtime


def build(module: str, name: str, config: dict) -> torch.nn.Module:
    import importlib

    import comfy.ops

    place = {"operations": comfy.ops.disable_weight_init, "device": "meta", "dtype": torch.float32}
    operations = {} if name in ("TAESD", "TAEHV", "WanVAE") else place
    with torch.device("meta"):
        return getattr(importlib.import_module(module), name)(**config, **operations)


def random_weights(model: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Variance-keeping weights, norms near 1: every prediction depends on the latents, the time, and the
    text.
    """
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    state = {}
    for key, value in sorted(model.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            noise = noise / max(value[0].numel(), 1) ** 0.5
        elif not key.endswith("bias"):  # of norms, and the VAE's scale
            noise = 1 + 0.1 * noise
        else:
            noise = 0.1 * noise
        state[key] = noise.half()
    return state


def become_the_host(comfyui: Path) -> None:
    """Let this script import the host's own modules, on the CPU."""
    sys.path[0] = str(ROOT)
    from devtools.launch import needs_repair, repair_cpu_torch

    sys.path[0] = str(comfyui)  # in place of the root, whose nodes/ would hide the host's
    if needs_repair():
        repair_cpu_torch()
    from comfy.cli_args import args

    args.cpu = True


def main() -> None:
    become_the_host(Path(sys.argv[1]).resolve())
    write(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
