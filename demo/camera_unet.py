"""The demo camera model's denoiser: `UNet` with the latents of one picture beside the noisy ones, and the
camera as the only token of context. It is a narrow Stable Zero123 (Zero-1-to-3, Liu et al., ICCV 2023, arXiv
2303.11328).

The image encoder of the demo's checkpoint gives zeros, so `cc_projection` has the columns of the camera
alone; `pad_state` adds the other 768.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lucid_core.conditioning.picture_prompt import COLUMNS

from . import unet
from .unet import CONTEXT, WIDTHS

WORD_SHARE = 0.3  # of a prompt's context that a word takes, about


class CameraUNet(nn.Module):
    """eps prediction of the view that the core's `camera_columns` describe. a, b, t: the widths of `UNet`."""

    def __init__(self, a: int = WIDTHS[0], b: int = WIDTHS[1], t: int = WIDTHS[2]):
        super().__init__()
        self.unet = unet.UNet(a, b, t, inputs=8)
        self.cc_projection = nn.Linear(COLUMNS, CONTEXT)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, picture: Tensor, columns: Tensor, given: Tensor
    ) -> Tensor:
        """noisy, picture (B, 4, h, w) with standard deviation 1, timesteps (B,), columns (B, 4) -> eps (B, 4,
        h, w). given (B,) bool: False replaces the picture and the context with zeros, as the host's negative
        conditioning does.
        """
        context = self.cc_projection(columns)[:, None] * given[:, None, None]
        picture = picture * given[:, None, None, None]
        return self.unet(torch.cat([noisy, picture], 1), timesteps, context)


@torch.no_grad()
def start_from_text(model: CameraUNet, text: dict[str, Tensor], words: dict[str, Tensor]) -> None:
    """Load the text model's UNet state into `model`.

    The picture's input channels start at zero. The camera starts as the view words' encodings `words` (768,):
    from front to back with the cosine of the turn, to overhead with the elevation.
    """
    state = dict(text)
    weight = state["input_blocks.0.0.weight"]
    state["input_blocks.0.0.weight"] = torch.cat([weight, torch.zeros_like(weight)], 1)
    model.unet.load_state_dict(state)
    level, back = (words["front"] + words["back"]) / 2, (words["front"] - words["back"]) / 2
    up = (words["overhead"] - level) / math.radians(60)
    projection = model.cc_projection  # elevation = pi/2 - polar - the first column
    projection.weight *= WORD_SHARE
    projection.weight[:, [0, 3]] = -WORD_SHARE * up[:, None]
    projection.weight[:, 2] = WORD_SHARE * back
    projection.bias.copy_(WORD_SHARE * (level + words["white"] + math.pi / 2 * up))


def pad_state(narrow: dict[str, Tensor], latent_scale: float) -> dict[str, Tensor]:
    """The narrow state -> that of the host's model, which computes the same: "model.diffusion_model.*" and
    "cc_projection.*".

    The host gives the picture's latents as the VAE makes them, not multiplied by `latent_scale`.
    """
    part = {name.removeprefix("unet."): value for name, value in narrow.items() if name.startswith("unet.")}
    weight = part["input_blocks.0.0.weight"].clone()
    weight[:, 4:] *= latent_scale
    wide = unet.pad_state(part | {"input_blocks.0.0.weight": weight})
    camera = narrow["cc_projection.weight"]
    padded = torch.cat([camera.new_zeros(CONTEXT, CONTEXT), camera], 1)
    return {f"model.diffusion_model.{name}": value for name, value in wide.items()} | {
        "cc_projection.weight": padded,
        "cc_projection.bias": narrow["cc_projection.bias"],
    }
