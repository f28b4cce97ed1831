"""A Stable Diffusion checkpoint as a Prior without ComfyUI, by diffusers and transformers (both optional)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .checks import require
from .extras import load
from .prior import Prior

SD15_UNET = {"cross_attention_dim": 768, "sample_size": 64}  # what differs from diffusers' defaults
SD15_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class DiffusersPrior(Prior):
    """A Prior over a diffusers UNet of noise or v prediction and a VAE (None where nothing is encoded).

    A conditioning is the text's embedding (1 or B, T, D). `alphas_cumprod` (N,) is the training schedule.
    """

    def __init__(self, unet: Module, vae: Module | None, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> None:
        kinds = ("epsilon", "v_prediction")
        require(prediction_type in kinds, "prediction_type", prediction_type, " or ".join(kinds))
        self.unet, self.vae, self.predicts_v, self.evaluations = unet, vae, prediction_type == "v_prediction", 0
        self.log_sigmas = ((1 - alphas_cumprod.double()) / alphas_cumprod.double()).sqrt().log()  # (N,)

    def encode(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images.movedim(-1, 1).to(self.vae.dtype) * 2 - 1)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (self.vae.decode(latents / self.vae.config.scaling_factor).sample.movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def denoise(self, z: Tensor, sigma: float, conds: list[Tensor]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        scale = (1 + sigma**2) ** 0.5  # z / scale is what the model was trained on
        rows = torch.cat([cond.expand(len(z), -1, -1) for cond in conds])
        output = self.unet(z.repeat(len(conds), 1, 1, 1) / scale, self.timestep(sigma), encoder_hidden_states=rows).sample
        z0 = z.repeat(len(conds), 1, 1, 1) / scale**2 if self.predicts_v else z.repeat(len(conds), 1, 1, 1)
        return list((z0 - sigma / (scale if self.predicts_v else 1) * output).split(len(z)))

    def timestep(self, sigma: float) -> Tensor:
        """The trained step whose noise level is nearest, as the host chooses it."""
        return (self.log_sigmas - torch.tensor(sigma).double().log()).abs().argmin()

    def sigma(self, t: float) -> float:
        """Between the trained steps the logarithm is interpolated, as in the host."""
        step = t * (len(self.log_sigmas) - 1)
        low = min(int(step), len(self.log_sigmas) - 2)
        return float(torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], step - low).exp())

    def blend(self, conds: list[Tensor], weights: Tensor) -> Tensor:
        return torch.einsum("bv,vtd->btd", weights.to(conds[0]), torch.cat(conds))


def unet_of(checkpoint: str | Path, config: dict[str, Any] = SD15_UNET, prefix: str = "model.diffusion_model.") -> Module:
    """The UNet of a single-file checkpoint (.safetensors), float32. `config`: what differs from diffusers' defaults.

    Nothing is downloaded: diffusers gets its configuration from here. Raises ValueError when the two do not match
    (diffusers itself leaves the weights that it misses at random).
    """
    kind = load("diffusers", "diffusers").UNet2DConditionModel
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"_class_name": kind.__name__, **config}))
        unet = kind.from_single_file(str(checkpoint), config=folder, local_files_only=True)
    with load("safetensors", "safetensors").safe_open(str(checkpoint), "pt") as file:
        held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys() if name.startswith(prefix))  # noqa: SIM118
    wanted = sum(parameter.numel() for parameter in unet.parameters())
    require(held == wanted, "the checkpoint's UNet", f"of {held:,} weights", f"of {wanted:,}, as its configuration says")
    return unet.requires_grad_(False)


def text_encoder_of(checkpoint: str | Path, prefix: str = "cond_stage_model.transformer.") -> Module:
    """The CLIP ViT-L/14 text encoder of a single-file SD 1.x checkpoint (.safetensors), float32."""
    transformers = load("transformers", "transformers")
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L))
    with load("safetensors", "safetensors").safe_open(str(checkpoint), "pt") as file:
        state = {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    wanted = model.state_dict().keys()
    if "embeddings.token_embedding.weight" in wanted:  # transformers 5 has dropped a level
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
    missing = wanted - state.keys()
    require(not missing, "the checkpoint's text encoder", f"without {len(missing)} of {len(wanted)} tensors", "CLIP ViT-L/14")
    model.load_state_dict({name: value.float() for name, value in state.items() if name in wanted})
    return model.requires_grad_(False)


CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip


@torch.no_grad()
def encode_text(text: str, tokenizer: Any, text_encoder: Module) -> Tensor:
    """(1, 77, D) embedding of `text` by a CLIPTokenizer and its text encoder."""
    tokens = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return text_encoder(tokens).last_hidden_state
