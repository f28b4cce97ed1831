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


def camera_columns(view_azimuth_rad: Tensor, view_elevation_rad: Tensor, picture: Picture) -> Tensor:
    """Azimuths and elevations (B,) of views in radians -> the model's camera columns (B, 4).

    They are [picture elevation - elevation, sin, cos of azimuth - picture azimuth, pi/2 - picture elevation],
    as in threestudio's Stable Zero123.
    """
    elevation, azimuth = math.radians(picture.view.elevation_deg), math.radians(picture.view.azimuth_deg)
    turn = view_azimuth_rad - azimuth
    polar = torch.full_like(turn, math.pi / 2 - elevation)
    return torch.stack([elevation - view_elevation_rad, turn.sin(), turn.cos(), polar], -1)


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
        columns = camera_columns(azimuth_rad, elevation_rad, self.picture)
        weights = torch.cat([1 - columns.sum(-1, keepdim=True), columns], -1)
        return Conds(prior.blend(list(self.cameras), weights), self.negative, self.inverse)
