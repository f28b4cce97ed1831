"""A prompt made of one picture, for models that are told the camera: Zero123 (Liu et al., ICCV 2023, arXiv
2303.11328) and Stable Zero123.

Such a model reads [embedding of the picture, camera columns] through one affine layer, and the picture's
latents beside the noise. Weighted sums of five conditionings (no camera, and each column at 1) therefore give
every camera exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.prior import Cond, Conds, Prior
from .control_images import Hint
from .picture import Picture

COLUMNS = 4


def camera_columns(
    azimuth_rad: Tensor,
    elevation_rad: Tensor,
    picture_azimuth_rad: Tensor | float,
    picture_elevation_rad: Tensor | float,
) -> Tensor:
    """Azimuths and elevations (B,) of views, and those of their pictures, (B,) or one -> the model's camera
    columns (B, 4).

    They are [picture elevation - elevation, sin, cos of azimuth - picture azimuth, pi/2 - picture elevation],
    as in threestudio's Stable Zero123. The host's StableZero123_Conditioning is the case of a picture at
    elevation 0.
    """
    turn = azimuth_rad - picture_azimuth_rad
    polar = torch.zeros_like(turn) + math.pi / 2 - picture_elevation_rad
    return torch.stack([picture_elevation_rad - elevation_rad, turn.sin(), turn.cos(), polar], -1)


@dataclass(frozen=True)
class PicturePrompt:
    """The conditionings of one picture; takes the place of `view_prompts.Prompts`.

    cameras: five conditionings of the picture, one row each: all camera columns 0, then each column 1 and the
    others 0. negative and inverse: without picture and camera.
    """

    cameras: tuple[Cond, Cond, Cond, Cond, Cond]
    negative: Cond
    inverse: Cond
    picture: Picture
    hints: tuple[Hint, ...] = ()  # no ControlNet images

    def at(self, prior: Prior, azimuth_rad: Tensor, elevation_rad: Tensor) -> Conds:
        """Return the conditionings of B views with azimuths and elevations (B,) in radians."""
        view = self.picture.view
        own = math.radians(view.azimuth_deg), math.radians(view.elevation_deg)
        columns = camera_columns(azimuth_rad, elevation_rad, *own)
        weights = torch.cat([1 - columns.sum(-1, keepdim=True), columns], -1)
        return Conds(prior.blend(list(self.cameras), weights), self.negative, self.inverse)
