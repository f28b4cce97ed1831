"""The demo prior as a full Stable Diffusion 1.5-format checkpoint, for the host's stock
CheckpointLoaderSimple.

    python -m demo.checkpoint OUT.safetensors

The trained weights (three quarters of an hour of training) take 18 MB; the 325 MB written here are those
weights, padded with zeros.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lucid_core.io.atomic import atomic_path

from . import taesd, unet
from .words import CONCEPTS, TOKENS

PRIOR = Path(__file__).with_name("prior.safetensors")
LAYOUT = "1"  # increase it when `expand` changes, so that existing files are rewritten
STAMP = "lucid_demo_prior"  # the key in the safetensors metadata
# The text encoder of CLIP ViT-L/14.
CLIP_LAYERS = 12
CLIP_WIDTH = 768
CLIP_MLP = 3072
CLIP_TOKENS = 49408
CLIP_POSITIONS = 77


def write(path: str | Path, prior: str | Path = PRIOR) -> Path:
    """Write the checkpoint to `path`, unless it is already there. Atomic: an interrupted run leaves no
    partial file.

    prior: the narrow weights, as `demo.train` exports them. Raises ValueError if the file does not exist.
    """
    path, prior = Path(path), Path(prior)
    if not prior.is_file():
        raise ValueError(
            f"the demo prior is not at {prior}; check out the whole repository or run demo.train"
        )
    stamp = f"{LAYOUT}-{hashlib.sha256(prior.read_bytes()).hexdigest()[:16]}"
    if _stamp_of(path) == stamp:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, expand(load_file(prior)), {STAMP: stamp})
    return path


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a .safetensors file whole or not at all."""
    with atomic_path(path) as part:
        save_file(tensors, part, metadata)
        part.chmod(0o644)  # safetensors makes files that only their owner can read


def _stamp_of(path: Path) -> str | None:
    """The stamp of a complete checkpoint; None for any other file. Opening detects truncated files,
    because it compares the size with the header.
    """
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(STAMP)
    except (OSError, SafetensorError):
        return None


def expand(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the narrow file -> those of the checkpoint, all fp16 except the VAE's two scalars."""
    wide = _prefixed("model.diffusion_model.", unet.pad_state(_part(narrow, "unet.")))
    with torch.device("meta"):
        encoder, decoder = taesd.encoder(taesd.TAESD_WIDTHS), taesd.decoder(taesd.TAESD_WIDTHS)
    wide |= _prefixed("first_stage_model.taesd_encoder.", taesd.pad_state(_part(narrow, "enc."), encoder))
    wide |= _prefixed("first_stage_model.taesd_decoder.", taesd.pad_state(_part(narrow, "dec."), decoder))
    wide |= _prefixed("cond_stage_model.transformer.", text_encoder(narrow["words"].float()))
    wide = {name: value.half() for name, value in wide.items()}
    scale, shift = narrow["scale_shift"]
    return wide | {"first_stage_model.vae_scale": scale.clone(), "first_stage_model.vae_shift": shift.clone()}


def text_encoder(words: Tensor) -> dict[str, Tensor]:
    """State of a CLIP-L text encoder that maps each token to its word vector; `words` (26, 768) in the order
    of CONCEPTS.

    Attention and MLPs are zero, so the residual stream carries token + position embedding to the final layer
    norm. The last row of `words` is the embedding of every position; tokens outside the vocabulary have a
    zero token embedding.
    """
    state = {name: torch.zeros(shape) for name, shape in _clip_shapes().items()}
    for name, value in state.items():
        if "norm" in name and name.endswith("weight"):
            value.fill_(1)
    tokens = state["text_model.embeddings.token_embedding.weight"]
    for token, concept in TOKENS.items():
        tokens[token] = words[CONCEPTS.index(concept)]
    state["text_model.embeddings.position_embedding.weight"][:] = words[-1]
    return state


def _clip_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of CLIP-L's text encoder, as in transformers' CLIPTextModelWithProjection."""
    width, linear = (CLIP_WIDTH,), (CLIP_WIDTH, CLIP_WIDTH)
    layer = {
        f"self_attn.{name}_proj.{kind}": shape
        for name in ("q", "k", "v", "out")
        for kind, shape in (("weight", linear), ("bias", width))
    }
    layer |= {f"layer_norm{i}.{kind}": width for i in (1, 2) for kind in ("weight", "bias")}
    layer |= {"mlp.fc1.weight": (CLIP_MLP, CLIP_WIDTH), "mlp.fc1.bias": (CLIP_MLP,)}
    layer |= {"mlp.fc2.weight": (CLIP_WIDTH, CLIP_MLP), "mlp.fc2.bias": width}
    shapes = {
        f"text_model.encoder.layers.{i}.{name}": layer[name] for i in range(CLIP_LAYERS) for name in layer
    }
    shapes["text_model.embeddings.token_embedding.weight"] = (CLIP_TOKENS, CLIP_WIDTH)
    shapes["text_model.embeddings.position_embedding.weight"] = (CLIP_POSITIONS, CLIP_WIDTH)
    shapes |= {f"text_model.final_layer_norm.{kind}": width for kind in ("weight", "bias")}
    return shapes | {"text_projection.weight": linear}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)
    }


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument(
        "out", type=Path, help="the file to write, e.g. models/checkpoints/lucid_demo.safetensors"
    )
    parser.add_argument(
        "--prior", type=Path, default=PRIOR, help="narrow weights (default: those of the repository)"
    )
    arguments = parser.parse_args()
    print(write(arguments.out, arguments.prior))


if __name__ == "__main__":
    main()
