"""Stable Zero123 and its kind: models that read one picture and the camera in place of a text."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import torch
from torch import Tensor

from ...lucid_core.conditioning.picture_prompt import COLUMNS
from ...lucid_core.errors import BadInput
from ..types import Conditioning, LucidPictureData, LucidPromptData
from .conditioning import require_text_of
from .families import family_of

WIDTH = 768  # of CLIP ViT-L/14's image embedding, which these models read
CHANNELS = 4  # of SD 1.5's latents
LOADER = "load a Stable Zero123 checkpoint with Load Checkpoint Image Only"


def encode_picture(clip_vision: Any, vae: Any, rgb: Tensor) -> tuple[list[Conditioning], Conditioning]:
    """Encode a picture (S, S, 3) on white as the host's StableZero123_Conditioning does.

    Returns the positive CONDITIONINGs of all camera columns at 0 and of each column at 1, and the negative
    one. Raises BadInput for a `clip_vision` or `vae` that is missing or does not fit such a model.
    """
    for name, given in (("clip_vision", clip_vision), ("vae", vae)):
        if given is None:
            raise BadInput(name, f"is missing: this checkpoint holds none; {LOADER}")
    if (vae.latent_channels, vae.latent_dim) != (CHANNELS, 2):
        raise BadInput(
            "vae",
            f"makes latents of {vae.latent_channels} channels in {vae.latent_dim} dimensions, but "
            f"Stable Zero123 reads {CHANNELS} channels in 2; connect the VAE of its checkpoint",
        )
    embedding = clip_vision.encode_image(rgb[None]).image_embeds
    width = embedding.shape[-1] if isinstance(embedding, Tensor) else 0
    if width != WIDTH:
        raise BadInput(
            "clip_vision",
            f"makes embeddings of width {width or 'none'}, but Stable Zero123 reads {WIDTH} "
            "(CLIP ViT-L/14); connect the CLIP_VISION of its checkpoint",
        )
    embedding = embedding.reshape(1, 1, WIDTH)
    latents = vae.encode(rgb[None])
    columns = torch.cat([torch.zeros(1, COLUMNS), torch.eye(COLUMNS)]).to(embedding)
    positive = [
        [[torch.cat([embedding, column.reshape(1, 1, COLUMNS)], -1), {"concat_latent_image": latents}]]
        for column in columns
    ]
    nothing = {"concat_latent_image": torch.zeros_like(latents)}
    return positive, [[torch.zeros_like(embedding), nothing]]


def require_prompt_of(model: Any, prompt: LucidPromptData | LucidPictureData) -> None:
    """Raise BadInput unless `model` reads this kind of prompt: a picture with the camera, or text."""
    name, is_picture = family_of(model.model), isinstance(prompt, LucidPictureData)
    reads_camera = isinstance(model.model, comfy.model_base.Stable_Zero123)
    if is_picture and not reads_camera:
        raise BadInput(
            "model", f"{name} reads text, but the prompt is a picture; {LOADER}, or connect a Lucid Prompt"
        )
    if reads_camera and not is_picture:
        raise BadInput(
            "prompt",
            f"is text, but model {name} reads a picture and the camera of each view; connect Lucid Image "
            "Prompt (Zero123)",
        )
    if not is_picture:
        require_text_of(model, prompt.conditionings())
