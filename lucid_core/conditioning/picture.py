"""One picture of an object, cut out and framed, and the camera that sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadInput
from ..settings import check_bounds, require, setting

LEAST_SIDE = 64  # pixels
SOLID = 0.5  # opacity from which a pixel counts as object
LEAST_FILL = 0.1
LEAST_SHARE = 0.002  # of the pixels; fewer solid ones are taken as none


@dataclass(frozen=True)
class PictureView:
    """Camera and framing of a picture, and the weights of its own view. Raises BadSetting for a value out of
    bounds.
    """

    elevation_deg: float = setting(
        0.0,
        -80,
        80,
        "Elevation of the picture's camera in degrees: 0 = at the object's height, 30 = from above.",
        step=1,
        advanced=False,
    )
    azimuth_deg: float = setting(
        0.0,
        -360,
        360,
        "Azimuth of the picture's camera in degrees: 0 = the picture shows the front, 90 = the camera is to "
        "the right of the front.",
        step=1,
        advanced=False,
    )
    fill: float = setting(
        0.8,
        0,
        1,
        "Share of the frame's side that the object fills: the picture is cut to a square around the object. "
        "0 = keep the picture's own framing, with white borders where it is not square.",
        advanced=False,
    )
    weight: float = setting(
        1.0,
        0,
        1000,
        "Weight of the picture's own view: its colours and outline, seen from its camera, are fitted in "
        "every step. 1 = as much as a view of the guidance; 0 = off.",
        step=0.1,
        advanced=False,
    )
    depth_weight: float = setting(
        0.1,
        0,
        1000,
        "Weight of the depth map at the picture's own view, relative to its colours; unused without a depth "
        "map. 0 = off.",
        step=0.01,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        least = f"{LEAST_FILL} to 1, or 0 (the picture's own framing)"
        require(self.fill == 0 or self.fill >= LEAST_FILL, "fill", self.fill, least)


@dataclass(frozen=True)
class Picture:
    """A square picture on white, and its camera.

    rgb (S, S, 3) sRGB in [0, 1], alpha (S, S, 1), disparity (S, S, 1) in any scale, larger = nearer, or None.
    """

    rgb: Tensor
    alpha: Tensor
    view: PictureView = PictureView()
    disparity: Tensor | None = None

    def at(self, size: int, device: torch.device | str = "cpu") -> Picture:
        """Return the picture resampled to `size` x `size` pixels, on `device`."""
        rgb, alpha = (_resample(x, size, size).clamp(0, 1).to(device) for x in (self.rgb, self.alpha))
        disparity = self.disparity
        return Picture(
            rgb, alpha, self.view, None if disparity is None else _resample(disparity, size, size).to(device)
        )


def frame_picture(image: Tensor, mask: Tensor, view: PictureView, disparity: Tensor | None = None) -> Picture:
    """Cut the object of `mask` out of an image, on white, and frame it as `view.fill` says.

    image (H, W, 3) sRGB in [0, 1], mask (h, w) in [0, 1] with 1 = object, disparity (h, w). Masks of another
    size are resampled. Raises BadInput for an image or an object that is too small, and for a mask that
    marks nothing or all.
    """
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise BadInput("image", f"is {width} x {height} px; connect one of at least {LEAST_SIDE} px a side")
    maps = [mask] if disparity is None else [mask, disparity]
    alpha, *rest = (_resample(x[..., None], height, width) for x in maps)
    alpha = alpha.clamp(0, 1)
    left, top, side = _frame(alpha[..., 0], view.fill)
    if side < LEAST_SIDE:
        raise BadInput(
            "image", f"holds an object whose frame is {side} px wide; it must be at least {LEAST_SIDE} px"
        )
    bounds = (0, 0, -left, left + side - width, -top, top + side - height)
    color, alpha, *rest = (F.pad(x, bounds) for x in (image * alpha, alpha, *rest))  # negative = cut off
    return Picture((color + 1 - alpha).clamp(0, 1), alpha, view, *rest)


def _resample(x: Tensor, height: int, width: int) -> Tensor:
    """(h, w, C) -> (height, width, C)."""
    if x.shape[:2] == (height, width):
        return x
    channels_first = x.movedim(-1, 0)[None]
    resized = F.interpolate(channels_first, (height, width), mode="bilinear", antialias=True)
    return resized[0].movedim(0, -1)


def _frame(alpha: Tensor, fill: float) -> tuple[int, int, int]:
    """Left, top and side in pixels of the square that frames the object of alpha (H, W)."""
    solid = alpha > SOLID
    share = float(solid.float().mean())
    if not LEAST_SHARE < share < 1:
        raise BadInput("mask", f"marks {share:.3g} of the picture; it must mark the object alone")
    height, width = alpha.shape
    if not fill:
        side = max(height, width)
        return (width - side) // 2, (height - side) // 2, side
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    (top, bottom), (left, right) = ((int(places[0]), int(places[-1]) + 1) for places in (rows, columns))
    side = round(max(bottom - top, right - left) / fill)
    return (left + right - side) // 2, (top + bottom - side) // 2, side


def marks_background(mask: Tensor) -> bool:
    """Whether mask (H, W) is 1 on most of the picture's border and not everywhere: it marks the background,
    as transparency does.
    """
    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(border.mean() > SOLID and (mask < SOLID).any())


def on_white(image: Tensor) -> Tensor:
    """Pictures (B, H, W, 3 or 4) as RGB (B, H, W, 3) in [0, 1] on white, a copy on the CPU."""
    pictures = torch.clone(image.cpu().float()).clamp(0, 1)
    if pictures.shape[-1] < 4:
        return pictures
    alpha = pictures[..., 3:]
    return pictures[..., :3] * alpha + 1 - alpha
