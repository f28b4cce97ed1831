"""A VAE of the host that gradients can pass."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.model import AttnBlock, ResnetBlock
from comfy.ldm.wan.vae import ResidualBlock
from comfy.ldm.wan.vae2_2 import ResidualBlock as ResidualBlockOf22
from comfy.taesd.taehv import TAEHV, MemBlock
from comfy.taesd.taesd import Block
from torch import Tensor

from ...lucid_core.encoder import encode_in, encode_in_blocks, encode_in_parts
from .memory import memory_errors

log = logging.getLogger(__name__)
BACKWARD = 2  # what the way back keeps of an encoder, over the host's estimate of a pass without it (BENCHMARKS.md)
# Of Stable Diffusion's to Flux's, of Wan's, of Qwen-Image 2.1's, of tiny ones.
BLOCKS = (ResnetBlock, AttnBlock, ResidualBlock, ResidualBlockOf22, Block, MemBlock)
RGB = 3


class GradientVAE:
    """A VAE's encoder for backpropagation. Latents are the VAE's own, without the model's scale.

    The cached VAE's weights were made in inference mode: no gradient passes them, so this works on a copy made outside.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.patcher = copy_of(vae)
        self.patcher.model.requires_grad_(False)
        self._is_of_video = vae.latent_dim == 3  # then a view is a video of one frame
        if isinstance(self.patcher.model, TAEHV):
            self.patcher.model.parallel = True  # frame by frame it cuts the gradient
        self.views_at_a_time: int | None = None  # None: all
        self._is_in_blocks = False

    def memory_required(self, resolution: int) -> int:
        """Bytes for encoding one view and going back."""
        shape = (1, RGB, 1, resolution, resolution) if self._is_of_video else (1, RGB, resolution, resolution)
        return int(BACKWARD * self._vae.memory_used_encode(shape, self._vae.vae_dtype))

    def fit(self, views: int, resolution: int, free: int) -> None:
        """Encode as few views at a time as `free` bytes hold; then each is encoded again on the way back.

        Where they hold less than one, its encoder's blocks are, one by one.
        """
        fitting = max(int(free // self.memory_required(resolution)), 0)  # the model may have taken more than there is
        self.views_at_a_time = max(fitting, 1) if fitting < views > 1 else None
        if fitting < views:
            how = "twice" if fitting else "block by block"
            log.info("Lucid Dream: little memory is free; the VAE encodes %d of %d views at a time, %s",
                     max(fitting, 1), views, how)  # fmt: skip
        if not fitting:
            self.go_in_blocks()

    def go_in_blocks(self) -> None:
        """From now on hold the graph of one block of the encoder at a time."""
        if not self._is_in_blocks:
            self._is_in_blocks = True
            encode_in_blocks(self.patcher.model, BLOCKS)

    def encode(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> float32 latents (B, C, h, w); differentiable."""
        with memory_errors():
            if self.views_at_a_time:
                return encode_in_parts(self._encode, images, self.views_at_a_time)
            return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        alpha = self._vae.output_channels - RGB  # of a VAE of RGBA, whose pad_channel_value is opaque
        if alpha:
            images = torch.nn.functional.pad(images, (0, alpha), value=self._vae.pad_channel_value)
        pixels = self._vae.process_input(images.movedim(-1, 1).to(self._vae.device))
        encode = self._encode_frame if self._is_of_video else self.patcher.model.encode
        return encode_in(self._vae.vae_dtype, encode, pixels).float()

    def _encode_frame(self, pixels: Tensor) -> Tensor:
        return self.patcher.model.encode(pixels.unsqueeze(2)).squeeze(2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, H, W, 3), by the host's own VAE and without gradients."""
        with torch.inference_mode():
            images = self._vae.decode(latents.unsqueeze(2)).flatten(0, 1) if self._is_of_video else self._vae.decode(latents)
            return images[..., :RGB].clone()

    def release(self) -> None:
        """Drop the copy; also called after an error."""
        self.patcher.detach()
        del self.patcher


def copy_of(vae: Any) -> comfy.model_patcher.ModelPatcher:
    """A patcher of the same VAE with weights of its own, in the VAE's dtype, that stay loaded until the backward pass is over.

    A VAE under the host's dynamic VRAM keeps its weights in the dtype of its file, and casts them layer by layer as it runs.
    The copy is a plain patcher, which casts nothing.
    """
    patcher = _reread(vae) if vae.patcher.cached_patcher_init is not None else _rebuilt(vae)
    patcher.model.to(vae.vae_dtype)
    return patcher


def _reread(vae: Any) -> comfy.model_patcher.ModelPatcher:
    """The VAE read from its file again."""
    return vae.patcher.clone(disable_dynamic=True, force_deepcopy=True)


def _rebuilt(vae: Any) -> comfy.model_patcher.ModelPatcher:
    """A VAE of several files (TAESD), or of another pack's loader, built from its weights."""
    weights = {name: weight.clone() for name, weight in vae.get_sd().items()}
    known = {"tae_latent_channels": vae.latent_channels}  # which the weights of Flux.2's TAESD do not tell
    model = comfy.sd.VAE(sd=weights, device=vae.device, dtype=vae.vae_dtype, metadata=known).first_stage_model
    return comfy.model_patcher.ModelPatcher(model, vae.patcher.load_device, vae.patcher.offload_device)
