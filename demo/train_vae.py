"""Training of the autoencoder, for sharp images and latents with the moments of unit noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import taesd
from .fit import Loss, Recipe, autocast

RECIPE = Recipe(minutes=18, lr=1.2e-3, warmup=150, hold=0.0, final=0.02, ema=0.998, weight_decay=1e-4)
CROPS, WHOLES = 16, 4  # images per step: crops of half the side, and whole images at the end
WHOLE_FROM = 0.88  # fraction of the training after which whole images are used
LATENT_NOISE = 0.06  # makes the decoder robust to the sampler's errors


class Autoencoder(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int] = taesd.WIDTHS):
        super().__init__()
        self.encoder, self.decoder = taesd.encoder(widths), taesd.decoder(widths)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for block in self.modules():
            if isinstance(block, taesd.Block):
                block.conv[4].weight.data.mul_(0.1)  # blocks start close to the identity


def as_input(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) in [0, 1]."""
    pictures = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    return pictures.contiguous(memory_format=torch.channels_last)


def batch(images: np.ndarray, whole: bool, generator: torch.Generator) -> np.ndarray:
    n, size = images.shape[:2]
    if whole:
        return images[torch.randint(n, (WHOLES,), generator=generator).numpy()]
    crop = size // 2
    picks = torch.randint(n, (CROPS,), generator=generator).tolist()
    corners = torch.randint(size - crop + 1, (CROPS, 2), generator=generator).tolist()
    return np.stack([images[i, y : y + crop, x : x + crop] for i, (y, x) in zip(picks, corners)])


def training_loss(images: np.ndarray, device: torch.device) -> Loss:
    """images (N, S, S, 3) uint8."""

    def loss(model: Autoencoder, generator: torch.Generator, progress: float) -> Tensor:
        x = as_input(batch(images, progress > WHOLE_FROM, generator), device)
        with autocast(device):
            z = model.encoder(x)
            noise = torch.randn(z.shape, generator=generator).to(device)
            decoded = model.decoder(z + LATENT_NOISE * noise)
        return picture_loss(decoded.float(), x) + 0.02 * latent_loss(z.float())

    return loss


def picture_loss(decoded: Tensor, x: Tensor) -> Tensor:
    """L1 and L2 loss, plus L1 of edges and of 4-pixel averages; both (B, 3, H, W)."""
    edges = sum((decoded.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    coarse = (F.avg_pool2d(decoded, 4) - F.avg_pool2d(x, 4)).abs().mean()
    return F.l1_loss(decoded, x) + 2 * F.mse_loss(decoded, x) + 0.5 * edges + 0.5 * coarse


def latent_loss(z: Tensor) -> Tensor:
    """Penalises deviations of z (B, 4, h, w) from mean 0 and standard deviation 1 per channel,
    correlations of channels, and absolute values above 3.
    """
    channels = z.transpose(0, 1).flatten(1)  # (4, B*h*w)
    covariance = torch.cov(channels, correction=0)
    mixed = covariance - torch.diag(torch.diag(covariance))
    moments = channels.mean(1).square().mean() + (channels.std(1) - 1).square().mean()
    return moments + 0.3 * mixed.square().mean() + 0.02 * F.relu(z.abs() - 3).mean()


@torch.no_grad()
def encode(model: Autoencoder, images: np.ndarray, device: torch.device) -> Tensor:
    """(N, S, S, 3) uint8 -> raw latents (N, 4, S/8, S/8) on the CPU."""
    latents = []
    for start in range(0, len(images), 32):
        with autocast(device):
            latents.append(model.encoder(as_input(images[start : start + 32], device)).float().cpu())
    return torch.cat(latents)


@torch.no_grad()
def psnr(model: Autoencoder, images: np.ndarray, device: torch.device) -> float:
    """Mean PSNR in dB of images (N, S, S, 3) uint8 after encoding and decoding."""
    x = as_input(images, device)
    with autocast(device):
        decoded = model.decoder(model.encoder(x))
    error = (decoded.float().clamp(0, 1) - x).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())
