"""The demo's models without ComfyUI: lucid_core's Prior, implemented with the narrow networks.

Their predictions are those of the full checkpoints in the host, at a fraction of the cost. For benchmarks and
tests of the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from lucid_core.conditioning.picture import Picture
from lucid_core.conditioning.picture_prompt import PicturePrompt
from lucid_core.conditioning.view_prompts import VIEWS, Prompts, ViewBlend
from lucid_core.diffusion.prior import Prior

from . import captions, taesd, unet
from .camera_unet import COLUMNS, CameraUNet
from .checkpoint import CAMERA_PRIOR, PRIOR, SD15_LATENT_SCALE
from .train_unet import TIMESTEPS, alphas_cumprod
from .words import CONCEPTS, FILLER, START, concepts_in

TOKENS = 77  # length of a CLIP prompt


@dataclass(frozen=True)
class Caption:
    """The cross-attention context of a prompt: rows (B, T, 768), where B is 1 or the number of views, and
    their logit bias (T,). See `captions`.
    """

    rows: Tensor
    bias: Tensor


class NarrowPrior(Prior):
    """What the demo's models have in common: the autoencoder and SD 1.5's noise levels. Latents (B, 4, h, w)
    have a standard deviation of about 1, as in the host.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        encoder, decoder = part(tensors, "enc."), part(tensors, "dec.")
        self.encoder = _ready(taesd.encoder(taesd.widths_of(encoder)), encoder)
        self.decoder = _ready(taesd.decoder(taesd.widths_of(encoder)), decoder)
        self.scale, self.shift = tensors["scale_shift"].tolist()
        abar = alphas_cumprod().double()
        self.log_sigmas = ((1 - abar) / abar).sqrt().log()  # (1000,)
        self.evaluations = 0

    def encode(self, images: Tensor) -> Tensor:
        return (self.encoder(images.movedim(-1, 1)) / self.scale + self.shift) * SD15_LATENT_SCALE

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (
            self.decoder((latents / SD15_LATENT_SCALE - self.shift) * self.scale).movedim(1, -1).clamp(0, 1)
        )

    def sigma(self, t: float) -> float:
        at = min(max(t, 0.0), 1.0) * (TIMESTEPS - 1)
        low = min(int(at), TIMESTEPS - 2)
        return float(torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], at - low).exp())

    def timestep(self, sigma: float) -> Tensor:
        """The timestep () whose noise level is nearest to `sigma`, as in the host."""
        return (self.log_sigmas - torch.tensor(sigma).log()).abs().argmin()


class DemoPrior(NarrowPrior):
    """The text model in `path` (default: the repository's file) on the CPU."""

    def __init__(self, path: str | Path = PRIOR) -> None:
        tensors = load_file(path)
        super().__init__(tensors)
        denoiser = part(tensors, "unet.")
        self.unet = _ready(unet.UNet(*unet.widths_of(denoiser)), denoiser)
        self.words = captions.encoded(tensors["words"])

    def prompts(self, text: str, negative: str = "", blend: ViewBlend | None = None) -> Prompts:
        """As LucidPrompt does with its default view words: `text` followed by "front view" and so on."""
        views = tuple(self.caption(f"{text}, {view} view") for view in VIEWS)
        return Prompts(views, self.caption(negative), self.caption(""), blend or ViewBlend())

    def caption(self, text: str) -> Caption:
        words = [START, *concepts_in(text), FILLER]
        bias = torch.zeros(len(words))
        bias[-1] = torch.tensor(float(TOKENS - len(words) + 1)).log()
        return Caption(self.words[[CONCEPTS.index(word) for word in words]][None], bias)

    def blend(self, conds: list[Caption], weights: Tensor) -> Caption:
        # (V, T, 768): the prompts of all views have the same number of words.
        rows = torch.cat([cond.rows for cond in conds])
        return Caption(torch.einsum("bv,v...->b...", weights, rows), conds[0].bias)

    @torch.no_grad()
    def denoise(self, z: Tensor, sigma: float, conds: list[Caption]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        length = max(len(cond.bias) for cond in conds)
        pad = lambda x, value=0.0: F.pad(x, (0, length - x.shape[-1]), value=value)
        rows = [pad(cond.rows.mT).mT.expand(len(z), -1, -1) for cond in conds]
        bias = [pad(cond.bias, captions.MASKED).expand(len(z), -1) for cond in conds]
        x = (z / (1 + sigma**2) ** 0.5).repeat(len(conds), 1, 1, 1)
        eps = self.unet(x, self.timestep(sigma).expand(len(x)), torch.cat(rows), torch.cat(bias))
        return [z - sigma * e for e in eps.chunk(len(conds))]


@dataclass(frozen=True)
class Seen:
    """What the camera model is told: context (B, 768) of the views, where B is 1 or their number, and the
    picture's latents (1, 4, h, w).
    """

    context: Tensor
    latents: Tensor


class DemoCameraPrior(NarrowPrior):
    """The camera model in `path` (default: the repository's file) on the CPU."""

    def __init__(self, path: str | Path = CAMERA_PRIOR) -> None:
        tensors = load_file(path)
        super().__init__(tensors)
        state = {k: v.float() for k, v in tensors.items() if k.startswith(("unet.", "cc_projection."))}
        self.model = _ready(CameraUNet(*unet.widths_of(part(tensors, "unet."))), state)

    @torch.no_grad()
    def prompts(self, picture: Picture) -> PicturePrompt:
        """As the node for Stable Zero123 does; the picture has the size of the views."""
        latents = self.encode(picture.rgb[None])
        columns = torch.cat([torch.zeros(1, COLUMNS), torch.eye(COLUMNS)])
        cameras = tuple(Seen(row[None], latents) for row in self.model.cc_projection(columns))
        nothing = Seen(torch.zeros_like(cameras[0].context), torch.zeros_like(latents))
        return PicturePrompt(cameras, nothing, nothing, picture)

    def blend(self, conds: list[Seen], weights: Tensor) -> Seen:
        return Seen(weights @ torch.cat([cond.context for cond in conds]), conds[0].latents)

    @torch.no_grad()
    def denoise(self, z: Tensor, sigma: float, conds: list[Seen]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        context = torch.cat([cond.context.expand(len(z), -1) for cond in conds])[:, None]
        pictures = torch.cat([cond.latents.expand(len(z), -1, -1, -1) for cond in conds])
        x = torch.cat([(z / (1 + sigma**2) ** 0.5).repeat(len(conds), 1, 1, 1), pictures], 1)
        eps = self.model.unet(x, self.timestep(sigma).expand(len(x)), context)
        return [z - sigma * e for e in eps.chunk(len(conds))]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it, in float32."""
    return {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}


def _ready(network: torch.nn.Module, state: dict[str, Tensor]) -> torch.nn.Module:
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()
