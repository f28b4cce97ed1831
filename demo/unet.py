"""The demo prior's denoiser: a narrow version of Stable Diffusion 1.5's UNet with two levels.

Parameter names are SD 1.5's. `UNet()` is narrow, `UNet(*SD15_WIDTHS)` is the network that the host builds,
and `pad_state` pads a narrow state to the wide shapes so that both compute the same. The padding is exact
because:

- group norms have 10 channels a group (20 where a skip is concatenated) at every width, as SD 1.5 has at 320:
  a group is all real or all zero;
- attention heads have 40 channels at every width;
- layer norms would include the zeros. Therefore the mean is removed from the residual stream of a transformer
  (layers that write to it are centred). The wide variance is then the narrow one times width/320, a factor
  that the layer norm's weight includes. The only difference is the norm's epsilon, 1e-5 against 5e-6 to 1e-5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .padding import pad

WIDTHS = (80, 160, 512)  # channels at full and half resolution, time embedding
SD15_WIDTHS = (320, 320, 1280)
CONTEXT = 768  # width of the text encoder
TIME_FEATURES = 320
HEAD, GROUP = 40, 10
TO_RESIDUAL = (
    "proj_in",
    "to_out.0",
    "ff.net.2",
)  # layers whose output is added to a transformer's residual stream


def group_norm(channels: int, group: int = GROUP, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(channels // group, channels, eps=eps)


def zeroed(layer: nn.Module) -> nn.Module:
    """A layer that starts at zero, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_time: int, concatenated: bool = False):
        super().__init__()
        norm = group_norm(n_in, 2 * GROUP if concatenated else GROUP)
        self.in_layers = nn.Sequential(norm, nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(n_time, n_out))
        last = zeroed(nn.Conv2d(n_out, n_out, 3, padding=1))
        self.out_layers = nn.Sequential(group_norm(n_out), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Conv2d(n_in, n_out, 1) if concatenated else nn.Identity()
        # Padding, not a layer: the wide net has 320 channels on both sides, so it has no weights here.
        self.grow = 0 if concatenated else n_out - n_in

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.out_layers(self.in_layers(x) + self.emb_layers(time)[:, :, None, None])
        return F.pad(self.skip_connection(x), (0, 0, 0, 0, 0, self.grow)) + h


class Attention(nn.Module):
    def __init__(self, channels: int, n_context: int):
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(n_context, channels, bias=False)
        self.to_v = nn.Linear(n_context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, L, C), context (B, T, n_context), bias (B, T) added to the logits."""
        q, k, v = (
            y.unflatten(-1, (-1, HEAD)).transpose(1, 2)  # (B, heads, L or T, HEAD)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
        return self.to_out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1 = Attention(channels, channels)
        self.attn2 = Attention(channels, CONTEXT)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context, bias)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels)])
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, C)
        y = self.transformer_blocks[0](y, context, bias)
        # The residual stream of the padded net has mean 0 (see the module's docstring).
        y = y - y.mean(-1, keepdim=True)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape).to(x.dtype))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def time_features(timesteps: Tensor) -> Tensor:
    """(B,) -> (B, 320) sines and cosines, cosines first as in SD 1.5."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def stage(*layers: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(layers)


class UNet(nn.Module):
    """eps prediction on 4-channel latents. a, b: channels at full and half resolution; t: the time
    embedding's; inputs: 4, or more where a condition is concatenated to the noisy latents.
    """

    def __init__(self, a: int = WIDTHS[0], b: int = WIDTHS[1], t: int = WIDTHS[2], inputs: int = 4):
        super().__init__()
        if a % (2 * GROUP) or b % HEAD:
            raise ValueError(
                f"widths are {a} and {b}; make the first a multiple of {2 * GROUP}, the second of {HEAD}"
            )
        self.time_embed = nn.Sequential(nn.Linear(TIME_FEATURES, t), nn.SiLU(), nn.Linear(t, t))
        self.input_blocks = stage(
            stage(nn.Conv2d(inputs, a, 3, padding=1)),
            stage(ResBlock(a, a, t)),
            stage(Downsample(a)),
            stage(ResBlock(a, b, t), SpatialTransformer(b)),
        )
        self.middle_block = stage(ResBlock(b, b, t), SpatialTransformer(b), ResBlock(b, b, t))
        self.output_blocks = stage(
            stage(ResBlock(b + b, b, t, True), SpatialTransformer(b)),
            stage(ResBlock(b + a, b, t, True), SpatialTransformer(b), Upsample(b)),
            stage(ResBlock(b + a, a, t, True)),
            stage(ResBlock(a + a, a, t, True)),
        )
        self.out = nn.Sequential(group_norm(a), nn.SiLU(), zeroed(nn.Conv2d(a, 4, 3, padding=1)))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, inputs, h, w), timesteps (B,) in 0..999, context (B, T, 768), bias (B, T) of attention -> eps
        (B, 4, h, w).
        """
        time = self.time_embed(time_features(timesteps).to(x.dtype))

        def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                if isinstance(layer, ResBlock):
                    h = layer(h, time)
                elif isinstance(layer, SpatialTransformer):
                    h = layer(h, context, bias)
                else:
                    h = layer(h)
            return h

        skips = []
        for layers in self.input_blocks:
            x = run(layers, x)
            skips.append(x)
        x = run(self.middle_block, x)
        for layers in self.output_blocks:
            x = run(layers, torch.cat([x, skips.pop()], dim=1))
        return self.out(x)


def widths_of(state: dict[str, Tensor]) -> tuple[int, int, int]:
    """The widths (a, b, t) of the `UNet` whose state this is."""
    a = state["input_blocks.0.0.weight"].shape[0]
    b = state["middle_block.1.proj_in.weight"].shape[0]
    return a, b, state["time_embed.0.weight"].shape[0]


def pad_state(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """A narrow `UNet` state, padded to SD 1.5's shapes; the padded model computes the same."""
    a, b, _ = widths_of(narrow)
    with torch.device("meta"):
        wide = UNet(*SD15_WIDTHS, narrow["input_blocks.0.0.weight"].shape[1]).state_dict()
    skips = {"output_blocks.0.0": (b, b), "output_blocks.1.0": (b, a), "output_blocks.2.0": (b, a)}
    skips["output_blocks.3.0"] = (a, a)

    def padded(name: str) -> Tensor:
        value, layer = _centred(name, narrow[name]), ".".join(name.split(".")[:3])
        if "ff.net.0.proj" in name:  # value and gate
            parts = {0: (4 * b, 4 * b)}
        elif "in_layers.0" in name and layer in skips:
            parts = {0: skips[layer]}
        elif ("in_layers.2.weight" in name or "skip_connection.weight" in name) and layer in skips:
            parts = {1: skips[layer]}
        else:
            parts = {}
        return pad(value, wide[name].shape, parts)

    return {name: padded(name) for name in wide}


def _centred(name: str, value: Tensor) -> Tensor:
    """The weight, adapted to the wide layer norms (see the module's docstring)."""
    if "transformer_blocks" in name and "norm" in name and name.endswith("weight"):
        return value * (len(value) / SD15_WIDTHS[1]) ** 0.5
    if any(layer in name for layer in TO_RESIDUAL):
        return value - value.mean(0, keepdim=True)
    return value
