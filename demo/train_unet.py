"""Training of the denoiser: eps prediction on SD 1.5's noise schedule with min-SNR weights (arXiv
2303.09556).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import captions
from .fit import Loss, Recipe, autocast

RECIPE = Recipe(minutes=47, lr=6e-4, warmup=300, hold=0.1, final=0.01, ema=0.999, weight_decay=0.01)
BATCH = 32
GAMMA = 5.0  # of min-SNR weighting
TIMESTEPS = 1000


@dataclass(frozen=True)
class Examples:
    """latents (N, 4, h, w) with standard deviation 1; rows (N, 6) of their captions; table (26, 768) of
    encoded concepts.
    """

    latents: Tensor
    rows: Tensor
    table: Tensor


def alphas_cumprod() -> Tensor:
    """Cumulative alphas (1000,) of SD 1.5's "scaled linear" schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def draw_timesteps(n: int, generator: torch.Generator, power: float = 1.0) -> Tensor:
    """Stratified timesteps (n,): evenly spaced over the schedule, with a random offset. A power below 1 draws
    more of the noisy ones.
    """
    strata = (torch.rand(1, generator=generator) + torch.arange(n) / n) % 1
    return (strata**power * TIMESTEPS).long()


def diffuse(z0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Noisy latents at `timesteps` (B,), scaled as the network expects them; all (B, 4, h, w)."""
    abar = alphas_cumprod()[timesteps][:, None, None, None]
    return abar.sqrt() * z0 + (1 - abar).sqrt() * noise


def predict(model: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor, bias: Tensor) -> Tensor:
    """eps prediction on the model's device; the arguments are those of `UNet.forward`, on any device."""
    device = next(model.parameters()).device
    noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        return model(noisy, timesteps.to(device), context.to(device), bias.to(device)).float()


def training_loss(examples: Examples) -> Loss:
    abar = alphas_cumprod()
    snr = abar / (1 - abar)

    def loss(model: nn.Module, generator: torch.Generator, progress: float) -> Tensor:
        picks = torch.randint(len(examples.latents), (BATCH,), generator=generator)
        t = draw_timesteps(BATCH, generator)
        z0 = examples.latents[picks].float()
        noise = torch.randn(z0.shape, generator=generator)
        noisy = diffuse(z0, t, noise)
        bias = captions.bias(captions.dropout(BATCH, generator))
        eps = predict(model, noisy, t, examples.table[examples.rows[picks]], bias)
        error = (eps - noise.to(eps.device)).square().mean(dim=(1, 2, 3))  # (B,)
        weight = snr[t].clamp(max=GAMMA) / snr[t]
        return (weight.to(eps.device) * error).mean()

    return loss


@torch.no_grad()
def eps_mse(model: nn.Module, examples: Examples) -> float:
    """Mean squared error of eps over evenly spaced timesteps, with full captions and the same noise in each
    call.
    """
    n = len(examples.latents)
    t = torch.arange(n) * TIMESTEPS // n
    z0 = examples.latents.float()
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(7))
    noisy = diffuse(z0, t, noise)
    bias = captions.bias(torch.ones(n, 4, dtype=torch.bool))
    errors = []
    for start in range(0, n, BATCH):
        part = slice(start, start + BATCH)
        eps = predict(model, noisy[part], t[part], examples.table[examples.rows[part]], bias[part])
        errors.append((eps.cpu() - noise[part]).square().flatten())
    return float(torch.cat(errors).mean())
