"""Small ControlNets for the demo prior's architecture, random where they are not its encoder, as files for
the stock loader.

Those of DiT families are made in the running host, by the tests' node LucidTestNet.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .families import file_of

WIDTH = 320
HINT_BLOCK = [
    (3, 16),
    (16, 16),
    (16, 32),
    (32, 32),
    (32, 96),
    (96, 96),
    (96, 256),
    (256, WIDTH),
]  # cldm's, at even places
UNET = "model.diffusion_model."
SD35_POOLED = 2048


def encoder(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a ControlNet starts as: a copy of the model's encoder."""
    parts = ("time_embed.", "input_blocks.", "middle_block.")
    unet = {
        name.removeprefix(UNET): value
        for name, value in load_file(checkpoint).items()
        if name.startswith(UNET)
    }
    return {name: value for name, value in unet.items() if name.startswith(parts)}


def heads(seed: int, blocks: int = 4) -> dict[str, torch.Tensor]:
    """The layers that are a ControlNet's own; those that are zero before training are small."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape, scale: torch.randn(shape, generator=generator) * scale
    state = {}
    for i, (n_in, n_out) in enumerate(HINT_BLOCK):
        state[f"input_hint_block.{2 * i}.weight"] = random(n_out, n_in, 3, 3, scale=(2 / (9 * n_in)) ** 0.5)
        state[f"input_hint_block.{2 * i}.bias"] = torch.zeros(n_out)
    for name in [*(f"zero_convs.{i}.0" for i in range(blocks)), "middle_block_out.0"]:
        state[f"{name}.weight"] = random(WIDTH, WIDTH, 1, 1, scale=0.02)
        state[f"{name}.bias"] = torch.zeros(WIDTH)
    return state


def write(checkpoint: Path, folder: Path) -> None:
    """plain and other (two ControlNets), lora (a ControlLoRA) and sd2 (for a model with text 1024 wide)."""
    folder.mkdir(parents=True, exist_ok=True)
    body = encoder(checkpoint)
    save = lambda name, state: save_file(
        {k: v.half().contiguous() for k, v in state.items()}, folder / f"test_{name}.safetensors"
    )
    save("plain", body | heads(0))
    save("other", body | heads(1))
    save("sd2", {name: as_sd2(name, value) for name, value in body.items()} | heads(2))
    generator = torch.Generator().manual_seed(3)
    low_rank = {"lora_controlnet": torch.zeros(0)}
    for name, value in body.items():
        if name.endswith("to_q.weight") or name.endswith("in_layers.2.weight"):
            base = name.removesuffix(".weight")
            low_rank[f"{base}.up"] = torch.randn(len(value), 2, generator=generator) * 0.05
            low_rank[f"{base}.down"] = torch.randn(2, *value.shape[1:], generator=generator) * 0.05
    save("lora", low_rank | heads(3))


def as_sd2(name: str, value: torch.Tensor) -> torch.Tensor:
    if ".attn2.to_k." in name or ".attn2.to_v." in name:
        return torch.zeros(len(value), 1024)
    return value[:, :, 0, 0] if name.endswith(("proj_in.weight", "proj_out.weight")) else value


def write_sd35(families: Path) -> None:
    """The model `sd35`: `sd3` with pooled text as wide as the loader of SD3.5's ControlNets wants it."""
    models = families / "diffusion_models"
    model = load_file(models / file_of("sd3"))
    first = "y_embedder.mlp.0.weight"
    wide = (
        torch.randn(len(model[first]), SD35_POOLED, generator=torch.Generator().manual_seed(4))
        / SD35_POOLED**0.5
    )
    save_file(model | {first: wide.half()}, models / file_of("sd35"))
