"""The picture of a picture prompt as a view of its own: its colours, outline and depth, at its own camera."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import CameraRanges, Cameras, orbit
from ..conditioning.picture import SOLID, Picture
from ..conditioning.picture_prompt import PicturePrompt
from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import GuidanceSource, MixedSource
from ..rasterize import Render, to_device
from .config import DreamConfig
from .losses import decorrelation

# The gradient of a guidance is a sum over latents, of 8 x 8 pixels each, the picture's loss a mean over
# pixels. In 200 steps of ISM on the demo's mug the picture's view reached 23 dB at a tenth of this factor and
# 28 dB at half of it; the other views did not change.
WEIGHT_PER_PIXEL = 1 / 64  # per pixel of a view
DIFFERENCE = ImageTargets().difference


@dataclass(frozen=True)
class PictureTarget:
    """A picture (size, size) on the device of a run, and its camera (1)."""

    picture: Picture
    camera: Cameras

    def loss(self, render: Render) -> Tensor:
        """The weighted difference (scalar, a mean over pixels) between `render` (1 view on white) and the
        picture: of colours and opacity as with image targets, of depth by its correlation.
        """
        picture, view = self.picture, self.picture.view
        seen = torch.cat([render.rgb[0], render.alpha[0]], -1)
        loss = DIFFERENCE(seen[None], torch.cat([picture.rgb, picture.alpha], -1)[None])
        if picture.disparity is not None and view.depth_weight:
            loss = loss + view.depth_weight * depth_difference(render, picture.alpha, picture.disparity)
        return loss * view.weight


def depth_difference(render: Render, alpha: Tensor, disparity: Tensor) -> Tensor:
    """1 - the correlation (scalar, 0 to 2) of rendered and given disparity (H, W, 1) on the object of alpha
    (H, W, 1).

    It is invariant to the unknown scale and shift of the given one.
    """
    solid = (alpha > SOLID) & (render.alpha[0].detach() > SOLID)
    inverse = render.alpha[0] / render.depth[0].clamp_min(1e-6)
    return decorrelation(inverse[None], disparity[None], solid[None])


def picture_targets(
    source: GuidanceSource | MixedSource, cameras: CameraRanges, size: int, device: torch.device
) -> list[PictureTarget]:
    """The pictures with a weight among the prompts of `source`, each once, resampled to `size` pixels.

    Their cameras are at the middle of the first distances and fields of view of `cameras`.
    """
    pictures = {id(picture): picture for picture in pictures_of(source) if picture.view.weight}
    if not pictures:
        return []
    radius = (cameras.radius_min + cameras.radius_max) / 2
    fovy = math.radians(cameras.fovy_min_deg + cameras.fovy_max_deg) / 2
    targets = []
    for picture in pictures.values():
        view, one = picture.view, torch.ones(1)
        angles = one * math.radians(view.azimuth_deg), one * math.radians(view.elevation_deg)
        camera = to_device(orbit(*angles, one * radius, one * fovy, size, size), device)
        targets.append(PictureTarget(picture.at(size, device), camera))
    return targets


def pictures_of(source: GuidanceSource | MixedSource) -> list[Picture]:
    """The pictures of all picture prompts of `source`."""
    if isinstance(source, MixedSource):
        return [*pictures_of(source.first), *pictures_of(source.second)]
    return [source.prompts.picture] if isinstance(source.prompts, PicturePrompt) else []


def without_augmentation(config: DreamConfig, source: GuidanceSource | MixedSource) -> DreamConfig:
    """Return `config` with views on white, not mirrored and in colour if a prompt of `source` is a picture.

    A mirrored view has no camera, and such models know neither disparity images nor other backgrounds.
    """
    if not pictures_of(source):
        return config
    plain = replace(config.optimizer.augmentation, background_share=0.0, flip_share=0.0, disparity_share=0.0)
    return replace(config, optimizer=replace(config.optimizer, augmentation=plain))
