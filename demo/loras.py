"""LoRAs on the demo prior, for the host's stock LoRA loaders: under each, what is red has another colour.

    python -m demo.loras FOLDER

They are made, not trained: in every cross-attention, the keys and values of the word "red" become those of another word. That
is a change of rank 1, exactly.
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
    """What the host's loaders call the LoRA under which red is `color`."""
    return f"lucid_demo_red_is_{color}.safetensors"


def write(folder: str | Path, prior: str | Path = PRIOR) -> None:
    """Write them all into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for color in COLORS:
        save(folder / file_of(color), recolored(load_file(prior), "red", color))


def recolored(narrow: dict[str, Tensor], word: str, other: str) -> dict[str, Tensor]:
    """A LoRA of rank 1 under which the denoiser reads `other` where `word` is written; `narrow` as in the repository."""
    words = captions.encoded(narrow["words"]).double()  # (26, 768) as attention sees them
    picks = torch.linalg.pinv(words)[:, CONCEPTS.index(word)]  # (768,) 1 on `word`, 0 on all others
    change = words[CONCEPTS.index(other)] - words[CONCEPTS.index(word)]
    weights = unet.pad_state({k.removeprefix("unet."): v.float() for k, v in narrow.items() if k.startswith("unet.")})
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
