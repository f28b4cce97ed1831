"""A differentiable copy of a VAE of the host."""

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

from ...lucid_core.diffusion.encoder import encode_in, encode_in_blocks, encode_in_parts
from .memory import memory_errors

log = logging.getLogger(__name__)
# Memory of an encoder's activations kept for the backward pass, as a multiple of the host's estimate for a
# forward pass (measured, see docs/lab-notes.md).
BACKWARD = 2
# Encoder blocks of the VAEs of Stable Diffusion to Flux, of Wan, of Qwen-Image 2.1, and of tiny VAEs.
BLOCKS = (ResnetBlock, AttnBlock, ResidualBlock, ResidualBlockOf22, Block, MemBlock)
RGB = 3


class GradientVAE:
    """A VAE with a differentiable encoder. Latents are the VAE's own, without the model's scale.

    The host's VAE cannot be used: its weights were made in inference mode, which excludes autograd. So this
    works on a copy made outside of it.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.patcher = copy_of(vae)
        self.patcher.model.requires_grad_(False)
        self._is_of_video = vae.latent_dim == 3  # a view is then a video of one frame
        if isinstance(self.patcher.model, TAEHV):
            self.patcher.model.parallel = True  # its sequential mode detaches the gradient
        self.views_at_a_time: int | None = None  # None = all
        self._is_in_blocks = False

    def memory_required(self, resolution: int) -> int:
        """Bytes for the forward and backward pass of one view of `resolution` pixels."""
        shape = (1, RGB, 1, resolution, resolution) if self._is_of_video else (1, RGB, resolution, resolution)
        return int(BACKWARD * self._vae.memory_used_encode(shape, self._vae.vae_dtype))

    def fit(self, views: int, resolution: int, free: int) -> None:
        """Limit the views encoded at a time to those that fit into `free` bytes. Each is then encoded again
        in the backward pass.

        If not even one view fits, its encoder's blocks are recomputed one by one.
        """
        # `free` may be negative: the model may use more than there is.
        fitting = max(int(free // self.memory_required(resolution)), 0)
        self.views_at_a_time = max(fitting, 1) if fitting < views > 1 else None
        if fitting < views:
            how = "each of them twice" if fitting else "block by block"
            log.info(
                "Lucid Dream: little memory is free; the VAE encodes %d of %d views at a time, %s",
                max(fitting, 1),
                views,
                how,
            )
        if not fitting:
            self.go_in_blocks()

    def go_in_blocks(self) -> None:
        """From now on keep the activations of only one encoder block at a time for the backward pass."""
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
        alpha = self._vae.output_channels - RGB  # 1 for an RGBA VAE, whose pad_channel_value is opaque
        if alpha:
            images = torch.nn.functional.pad(images, (0, alpha), value=self._vae.pad_channel_value)
        pixels = self._vae.process_input(images.movedim(-1, 1).to(self._vae.device))
        encode = self._encode_frame if self._is_of_video else self.patcher.model.encode
        return encode_in(self._vae.vae_dtype, encode, pixels).float()

    def _encode_frame(self, pixels: Tensor) -> Tensor:
        return self.patcher.model.encode(pixels.unsqueeze(2)).squeeze(2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, H, W, 3) in [0, 1], by the host's own VAE, without gradients."""
        with torch.inference_mode():
            images = (
                self._vae.decode(latents.unsqueeze(2)).flatten(0, 1)
                if self._is_of_video
                else self._vae.decode(latents)
            )
            return images[..., :RGB].clone()

    def release(self) -> None:
        """Drop the copy; also called after an error."""
        self.patcher.detach()
        del self.patcher


def copy_of(vae: Any) -> comfy.model_patcher.ModelPatcher:
    """A patcher of the same VAE with its own weights, in the VAE's dtype, which stay loaded until the end of
    the backward pass.

    With the host's dynamic VRAM, a VAE keeps its weights in the dtype of its file and casts them layer by
    layer as it runs. The copy is a plain patcher, which casts nothing.
    """
    patcher = _reread(vae) if vae.patcher.cached_patcher_init is not None else _rebuilt(vae)
    patcher.model.to(vae.vae_dtype)
    return patcher


def _reread(vae: Any) -> comfy.model_patcher.ModelPatcher:
    """The VAE, loaded from its file again."""
    return vae.patcher.clone(disable_dynamic=True, force_deepcopy=True)


def _rebuilt(vae: Any) -> comfy.model_patcher.ModelPatcher:
    """The VAE, built from copies of its weights: for a VAE of several files (TAESD) or of another pack's
    loader.
    """
    weights = {name: weight.clone() for name, weight in vae.get_sd().items()}
    known = {"tae_latent_channels": vae.latent_channels}  # not detectable from the weights of Flux.2's TAESD
    model = comfy.sd.VAE(sd=weights, device=vae.device, dtype=vae.vae_dtype, metadata=known).first_stage_model
    return comfy.model_patcher.ModelPatcher(model, vae.patcher.load_device, vae.patcher.offload_device)
