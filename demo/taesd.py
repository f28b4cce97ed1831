"""The demo prior's autoencoder: TAESD's architecture (github.com/madebyollin/taesd) with smaller widths.

Parameter names are TAESD's. Its skip connections are identities and its activation functions map 0 to 0, so
padding with zero channels to TAESD's 64 does not change the result: `pad_state` is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .padding import pad

WIDTHS = (16, 32, 64, 64)  # channels at 1, 1/2, 1/4 and 1/8 of the image side
TAESD_WIDTHS = (64, 64, 64, 64)
LATENT_CHANNELS = 4


def conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=bias)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.conv = nn.Sequential(conv(n, n), nn.ReLU(), conv(n, n), nn.ReLU(), conv(n, n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def blocks(n: int) -> list[Block]:
    return [Block(n) for _ in range(3)]


def encoder(widths: tuple[int, int, int, int] = WIDTHS) -> nn.Sequential:
    """(B, 3, H, W) in [0, 1] -> (B, 4, H/8, W/8)."""
    a, b, c, d = widths
    return nn.Sequential(
        conv(3, a),
        Block(a),
        conv(a, b, stride=2, bias=False),
        *blocks(b),
        conv(b, c, stride=2, bias=False),
        *blocks(c),
        conv(c, d, stride=2, bias=False),
        *blocks(d),
        conv(d, LATENT_CHANNELS),
    )


def decoder(widths: tuple[int, int, int, int] = WIDTHS) -> nn.Sequential:
    """(B, 4, h, w) -> (B, 3, 8h, 8w), about [0, 1]."""
    a, b, c, d = widths
    return nn.Sequential(
        Clamp(),
        conv(LATENT_CHANNELS, d),
        nn.ReLU(),
        *blocks(d),
        nn.Upsample(scale_factor=2),
        conv(d, c, bias=False),
        *blocks(c),
        nn.Upsample(scale_factor=2),
        conv(c, b, bias=False),
        *blocks(b),
        nn.Upsample(scale_factor=2),
        conv(b, a, bias=False),
        Block(a),
        conv(a, 3),
    )


def widths_of(encoder_state: dict[str, Tensor]) -> tuple[int, int, int, int]:
    """The widths of the `encoder` with this state."""
    return tuple(encoder_state[f"{i}.weight"].shape[0] for i in (0, 2, 6, 10))


def pad_state(narrow: dict[str, Tensor], wide: nn.Module) -> dict[str, Tensor]:
    """The narrow network's state, padded to the shapes of `wide` (the same network with TAESD_WIDTHS)."""
    return {name: pad(narrow[name], like.shape) for name, like in wide.state_dict().items()}
