"""A Prior of a Stable Diffusion checkpoint without ComfyUI, by diffusers and transformers (optional)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from ..errors import BadFile, BadInput
from ..optional import load
from ..settings import require
from .prior import Prior

SD15_UNET = {"cross_attention_dim": 768, "sample_size": 64}  # differences from diffusers' defaults
SD15_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


class VAE(Protocol):
    """What is used of diffusers' AutoencoderKL and AutoencoderTiny."""

    config: Any

    @property
    def dtype(self) -> torch.dtype: ...
    def encode(self, images: Tensor, /) -> Any: ...
    def decode(self, latents: Tensor, /) -> Any: ...


class DiffusersPrior(Prior):
    """A Prior of a diffusers UNet with noise or v prediction and a VAE (None = no encode or decode).

    A conditioning is a text embedding (1 or B, T, D). `alphas_cumprod` (N,) is the training schedule. Raises
    BadSetting for another prediction_type.
    """

    def __init__(
        self, unet: Module, vae: VAE | None, alphas_cumprod: Tensor, prediction_type: str = "epsilon"
    ) -> None:
        kinds = ("epsilon", "v_prediction")
        require(prediction_type in kinds, "prediction_type", prediction_type, " or ".join(kinds))
        self.unet = unet
        self._vae = vae
        self.predicts_v = prediction_type == "v_prediction"
        self.evaluations = 0
        self.log_sigmas = ((1 - alphas_cumprod.double()) / alphas_cumprod.double()).sqrt().log()  # (N,)

    @property
    def vae(self) -> VAE:
        """The VAE. Raises BadInput if there is none."""
        if self._vae is None:
            raise BadInput("vae", "is None; give DiffusersPrior a VAE to encode or decode")
        return self._vae

    def encode(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images.movedim(-1, 1).to(self.vae.dtype) * 2 - 1)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (images.movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def denoise(self, z: Tensor, sigma: float, conds: list[Tensor]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        scale = (1 + sigma**2) ** 0.5  # the model was trained on z / scale
        rows = torch.cat([cond.expand(len(z), -1, -1) for cond in conds])
        output = self.unet(
            z.repeat(len(conds), 1, 1, 1) / scale, self.timestep(sigma), encoder_hidden_states=rows
        ).sample
        z0 = z.repeat(len(conds), 1, 1, 1) / scale**2 if self.predicts_v else z.repeat(len(conds), 1, 1, 1)
        return list((z0 - sigma / (scale if self.predicts_v else 1) * output).split(len(z)))

    def timestep(self, sigma: float) -> Tensor:
        """Return the training step with the nearest noise level (in log sigma), as in ComfyUI."""
        return (self.log_sigmas - torch.tensor(sigma).double().log()).abs().argmin()

    def sigma(self, t: float) -> float:
        """See Prior. Log sigma is interpolated between training steps, as in ComfyUI."""
        step = t * (len(self.log_sigmas) - 1)
        low = min(int(step), len(self.log_sigmas) - 2)
        return float(torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], step - low).exp())

    def blend(self, conds: list[Tensor], weights: Tensor) -> Tensor:
        return torch.einsum("bv,vtd->btd", weights.to(conds[0]), torch.cat(conds))


def unet_of(
    checkpoint: str | Path, config: dict[str, Any] = SD15_UNET, prefix: str = "model.diffusion_model."
) -> Module:
    """Load the UNet of a single-file checkpoint (.safetensors) in float32.

    config: differences from diffusers' defaults. prefix: of the UNet's names in the file. Nothing is
    downloaded: diffusers reads this configuration. Raises BadFile if the checkpoint does not match it
    (diffusers itself leaves missing weights at random values), and MissingPackage without diffusers.
    """
    kind = load("diffusers", "diffusers").UNet2DConditionModel
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"_class_name": kind.__name__, **config}))
        unet: Module = kind.from_single_file(str(checkpoint), config=folder, local_files_only=True)
    with load("safetensors", "safetensors").safe_open(str(checkpoint), "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        held = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    expected = sum(parameter.numel() for parameter in unet.parameters())
    if held != expected:
        raise BadFile(
            checkpoint, f"its UNet has {held:,} weights, its configuration {expected:,}; change one"
        )
    return unet.requires_grad_(False)


def text_encoder_of(checkpoint: str | Path, prefix: str = "cond_stage_model.transformer.") -> Module:
    """Load the CLIP ViT-L/14 text encoder of a single-file SD 1.x checkpoint (.safetensors) in float32.

    Raises BadFile if tensors are missing, and MissingPackage without transformers.
    """
    transformers = load("transformers", "transformers")
    model: Module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L))
    with load("safetensors", "safetensors").safe_open(str(checkpoint), "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        state = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    expected = model.state_dict().keys()
    if "embeddings.token_embedding.weight" in expected:  # transformers 5 dropped the level "text_model."
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
    missing = expected - state.keys()
    if missing:
        lacks = f"it lacks {len(missing)} of {len(expected)} tensors of the text encoder CLIP ViT-L/14"
        raise BadFile(checkpoint, f"{lacks}; use a checkpoint of Stable Diffusion 1.x")
    model.load_state_dict({name: value.float() for name, value in state.items() if name in expected})
    return model.requires_grad_(False)


CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}


@torch.no_grad()
def encode_text(text: str, tokenizer: Any, text_encoder: Module) -> Tensor:
    """Return the embedding (1, 77, D) of `text` by a CLIPTokenizer and its text encoder."""
    tokens = tokenizer(
        text, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    embedding: Tensor = text_encoder(tokens).last_hidden_state
    return embedding
