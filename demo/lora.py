"""A LoRA for the demo prior, in closed form: whatever colour is asked for, the thing is yellow.

    python -m demo.lora OUT.safetensors

The denoiser sees a word only through the keys and values of its cross-attentions, K c and V c for the word's vector c. With
d the rows of the pseudo-inverse of all words' vectors, W + sum over colours of W (yellow - c) d_c^T gives every colour the
key and value of yellow and leaves each other word its own: a change of rank 7.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import captions
from .checkpoint import PRIOR, save
from .padding import pad
from .unet import SD15_WIDTHS
from .words import COLORS, CONCEPTS

COLOR = "yellow"
PREFIX = "unet."


def low_rank(narrow: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight of the narrow denoiser -> (up (C, 7), down (7, 768)), whose product is what is added to it."""
    words = captions.encoded(narrow["words"])  # (26, 768)
    others = [CONCEPTS.index(color) for color in COLORS if color != COLOR]
    down = torch.linalg.pinv(words.double()).T[others].float()
    change = (words[CONCEPTS.index(COLOR)] - words[others]).T  # (768, 7)
    asked = [name for name in narrow if name.startswith(PREFIX) and name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return {name.removeprefix(PREFIX): (narrow[name].float() @ change, down) for name in asked}


def lora(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file for the wide checkpoint, under the names that the host's LoRA loaders know."""
    tensors = {}
    for name, (up, down) in low_rank(narrow).items():
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        tensors[f"{key}.lora_up.weight"] = pad(up, (SD15_WIDTHS[1], up.shape[1])).half()
        tensors[f"{key}.lora_down.weight"] = down.half()
        tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return {name: value.contiguous().clone() for name, value in tensors.items()}


def write(path: str | Path, prior: str | Path = PRIOR) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, lora(load_file(prior)))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.lora", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the file to write, e.g. models/loras/lucid_demo_yellow_lora.safetensors")
    print(write(parser.parse_args().out))


if __name__ == "__main__":
    main()
