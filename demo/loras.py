"""LoRAs for the demo prior and the host's stock LoRA loaders. Each makes red objects another colour.

    python -m demo.loras FOLDER

They are computed, not trained: in every cross-attention, the keys and values of the word "red" become those
of another word. This is an exact rank-1 change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import captions, unet
from .checkpoint import PRIOR, save
from .words import CONCEPTS

COLORS = ("blue", "purple", "yellow")


def file_of(color: str) -> str:
    """The file name, in the host's loaders, of the LoRA that turns red into `color`."""
    return f"lucid_demo_red_is_{color}.safetensors"


def write(folder: str | Path, prior: str | Path = PRIOR) -> None:
    """Write all LoRAs into `folder`; `prior`: the narrow weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for color in COLORS:
        save(folder / file_of(color), recolored(load_file(prior), "red", color))


def recolored(narrow: dict[str, Tensor], word: str, other: str) -> dict[str, Tensor]:
    """State of a rank-1 LoRA with which the denoiser reads `other` instead of `word`.

    `narrow`: tensors of the narrow weights file.
    """
    words = captions.encoded(narrow["words"]).double()  # (26, 768), the context of cross-attention
    picks = torch.linalg.pinv(words)[
        :, CONCEPTS.index(word)
    ]  # (768,): dot product 1 with `word`, 0 with others
    change = words[CONCEPTS.index(other)] - words[CONCEPTS.index(word)]
    weights = unet.pad_state(
        {k.removeprefix("unet."): v.float() for k, v in narrow.items() if k.startswith("unet.")}
    )
    state = {}
    for name, weight in weights.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            state[f"{layer}.lora_up.weight"] = (weight.double() @ change)[:, None].float()
            state[f"{layer}.lora_down.weight"] = picks[None].float()
    return state


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.loras", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write them, e.g. models/loras")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
