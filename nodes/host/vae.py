"""A VAE of the host that gradients can pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .memory import memory_errors


class GradientVAE:
    """A VAE's encoder for backpropagation. Latents are the VAE's own, without the model's scale.

    The cached VAE's weights were made in inference mode: no gradient passes them, so this works on a copy made outside.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.patcher = vae.patcher.clone(force_deepcopy=True)
        self.patcher.model.requires_grad_(False)

    def memory_required(self, views: int, resolution: int) -> int:
        """Bytes for encoding `views` and going back."""
        return 2 * self._vae.memory_used_encode((views, 3, resolution, resolution), self._vae.vae_dtype)

    def encode(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> float32 latents; differentiable."""
        with memory_errors():
            pixels = self._vae.process_input(images.movedim(-1, 1).to(self._vae.device)).to(self._vae.vae_dtype)
            return self.patcher.model.encode(pixels).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, H, W, 3), by the host's own VAE and without gradients."""
        with torch.inference_mode():
            return self._vae.decode(latents).clone()

    def release(self) -> None:
        """Drop the copy; also called after an error."""
        self.patcher.detach()
        del self.patcher
