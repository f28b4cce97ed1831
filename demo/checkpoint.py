"""The demo's models as full checkpoints for the host's stock loaders: the prior in Stable Diffusion 1.5's
format (CheckpointLoaderSimple), the camera model in Stable Zero123's (ImageOnlyCheckpointLoader).

    python -m demo.checkpoint OUT.safetensors
    python -m demo.checkpoint OUT.safetensors --prior demo/camera_prior.safetensors

The trained weights take 18 MB each; the 325 and 390 MB written here are those weights, padded with zeros.
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

from . import camera_unet, taesd, unet
from .words import CONCEPTS, TOKENS

PRIOR = Path(__file__).with_name("prior.safetensors")
CAMERA_PRIOR = Path(__file__).with_name("camera_prior.safetensors")
SD15_LATENT_SCALE = 0.18215  # the host multiplies the VAE's latents by this for the model
LAYOUT = "1"  # increase it when `expand` changes, so that existing files are rewritten
STAMP = "lucid_demo_prior"  # the key in the safetensors metadata
# The text encoder of CLIP ViT-L/14.
CLIP_LAYERS = 12
CLIP_WIDTH = 768
CLIP_MLP = 3072
CLIP_TOKENS = 49408
CLIP_POSITIONS = 77
# The image encoder of CLIP ViT-L/14.
VISION_LAYERS = 24
VISION_WIDTH = 1024
VISION_MLP = 4096
VISION_PATCH = 14
VISION_POSITIONS = 257


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
    """The tensors of a narrow file -> those of the checkpoint, all fp16 except the VAE's two scalars and the
    camera model's image encoder.
    """
    if "cc_projection.weight" in narrow:
        model = {k: v.float() for k, v in narrow.items() if k.startswith(("unet.", "cc_projection."))}
        wide, encoder = camera_unet.pad_state(model, SD15_LATENT_SCALE), image_encoder()
    else:
        wide = _prefixed("model.diffusion_model.", unet.pad_state(_part(narrow, "unet.")))
        wide |= _prefixed("cond_stage_model.transformer.", text_encoder(narrow["words"].float()))
        encoder = {}
    wide |= autoencoder(narrow)
    wide = {name: value.half() for name, value in wide.items()}
    scale, shift = narrow["scale_shift"]
    scalars = {"first_stage_model.vae_scale": scale.clone(), "first_stage_model.vae_shift": shift.clone()}
    return wide | encoder | scalars


def autoencoder(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.device("meta"):
        encoder, decoder = taesd.encoder(taesd.TAESD_WIDTHS), taesd.decoder(taesd.TAESD_WIDTHS)
    return _prefixed(
        "first_stage_model.taesd_encoder.", taesd.pad_state(_part(narrow, "enc."), encoder)
    ) | _prefixed("first_stage_model.taesd_decoder.", taesd.pad_state(_part(narrow, "dec."), decoder))


def image_encoder() -> dict[str, Tensor]:
    """State of a CLIP ViT-L/14 whose embedding of every picture is zero: the camera model sees the picture by
    its latents alone. One byte for each of its 304 M zeros.
    """
    return {
        f"cond_stage_model.model.visual.{name}": torch.zeros(shape, dtype=torch.float8_e4m3fn)
        for name, shape in _vision_shapes().items()
    }


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of CLIP ViT-L/14's image encoder, as in OpenAI's own model."""
    width, norm = VISION_WIDTH, {"weight": (VISION_WIDTH,), "bias": (VISION_WIDTH,)}
    layer = {f"ln_{i}.{kind}": shape for i in (1, 2) for kind, shape in norm.items()}
    layer |= {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
    layer |= {"attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,)}
    layer |= {"mlp.c_fc.weight": (VISION_MLP, width), "mlp.c_fc.bias": (VISION_MLP,)}
    layer |= {"mlp.c_proj.weight": (width, VISION_MLP), "mlp.c_proj.bias": (width,)}
    shapes = {
        f"transformer.resblocks.{i}.{name}": layer[name] for i in range(VISION_LAYERS) for name in layer
    }
    shapes |= {f"{name}.{kind}": shape for name in ("ln_pre", "ln_post") for kind, shape in norm.items()}
    return shapes | {
        "class_embedding": (width,),
        "positional_embedding": (VISION_POSITIONS, width),
        "conv1.weight": (width, 3, VISION_PATCH, VISION_PATCH),
        "proj": (width, CLIP_WIDTH),
    }


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
