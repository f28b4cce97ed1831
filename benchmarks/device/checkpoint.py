"""Writes a float16 checkpoint of Stable Diffusion 1.5's size with random weights. Time and memory do not
depend on the weights.

    python benchmarks/device/checkpoint.py COMFYUI_DIR FILE

Names and shapes come from the host's own classes. Its Load Checkpoint detects SD 1.5 with VAE and CLIP-L.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def main() -> None:
    comfyui, file = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    sys.path.append(str(ROOT / "tests" / "host"))
    from families import become_the_host, random_weights

    become_the_host(comfyui)
    import comfy.clip_model
    import comfy.ops
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors.torch import save_file

    clip = json.loads((comfyui / "comfy" / "sd1_clip_config.json").read_text())
    operations, dtype = comfy.ops.disable_weight_init, torch.float32
    with torch.device("meta"):
        networks = {
            "model.diffusion_model.": UNetModel(**UNET, operations=operations, device="meta", dtype=dtype),
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
            "cond_stage_model.transformer.": comfy.clip_model.CLIPTextModel(clip, dtype, "meta", operations),
        }
    weights = {
        prefix + name: value
        for prefix, network in networks.items()
        for name, value in random_weights(network, prefix).items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file)
    print(
        json.dumps(
            {"bytes": file.stat().st_size, "parameters": sum(value.numel() for value in weights.values())}
        )
    )


if __name__ == "__main__":
    main()
