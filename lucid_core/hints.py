"""Hints for ControlNets: pictures of a splat from the training cameras, in the conventions that ControlNets are trained on.

They are made anew for every batch of views, from the splat as it is or from a guide, and no gradient passes through them.

depth   inverse depth, scaled view by view: the nearest point is white, empty space black (MiDaS, as for SD's depth ControlNets)
normal  camera-space normals, red = to the left, green = up, blue = to the viewer (Bae et al. 2021 on ScanNet, as for NormalBae)
canny   white edges on black by opencv's Canny at the thresholds 100 and 200
image   the picture itself: for ControlNets of the tile kind, or for a guide that is painted in the colours of DensePose or of
        a segmentation (as the paper's avatars use it)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .cameras import Cameras
from .checks import require
from .extras import load
from .gaussians import Splats
from .rasterize import Render, rasterize
from .refine import Frame

SOLID = 0.5  # opacity from which on a pixel shows the object
FARTHEST = 0.1  # brightness of the farthest solid point: the outline stays visible on black
FACING = (0.5, 0.5, 1.0)  # the colour of a wall that faces the camera: what is behind the object
SMOOTHED = 1 / 40  # of the image side: over so much depth is averaged, twice, or single Gaussians show as bumps
CANNY = (100, 200)


@dataclass(frozen=True)
class Hint:
    """What a ControlNet is shown: a kind of picture, of `guide` or (None) of the splat that is optimised."""

    kind: str
    guide: Splats | None = None

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "hint", repr(self.kind), f"one of {', '.join(KINDS)}")


@torch.no_grad()
def images_of(hints: tuple[Hint, ...], render: Render, cameras: Cameras, mirrored: bool, backend: str) -> list[Tensor]:
    """A picture (B, H, W, 3) in [0, 1] for each hint, of the views in `render` or of their mirror images.

    Guides are seen by the same `cameras` on black; what they show is at its own place, not at that of the splat.
    """
    height, width = render.rgb.shape[1:3]
    seen = {id(None): render}
    for guide in (hint.guide for hint in hints):
        if id(guide) not in seen:
            there = guide.map(lambda x: x.to(render.rgb.device))
            seen[id(guide)] = rasterize(there, cameras, width, height, backend=backend)
    turn = mirror if mirrored else lambda render: render
    return [KINDS[hint.kind](turn(seen[id(hint.guide)]), cameras.Ks) for hint in hints]


def placed(hints: tuple[Hint, ...], frame: Frame | None) -> tuple[Hint, ...]:
    """The hints with their guides where `frame` puts the splat that they were made for."""
    if frame is None:
        return hints
    return tuple(replace(hint, guide=hint.guide and frame.enter(hint.guide)) for hint in hints)


def mirror(render: Render) -> Render:
    """Left for right, seen by the same cameras: the middle of the image is theirs."""
    return Render(render.rgb.flip(2), render.alpha.flip(2), render.depth.flip(2), render.info)


def depth_image(render: Render, Ks: Tensor) -> Tensor:
    """(B, H, W, 3) grey."""
    inverse = render.alpha / render.depth.clamp_min(1e-6)
    solid = render.alpha > SOLID
    near = torch.where(solid, inverse, 0).amax((1, 2, 3), keepdim=True)
    far = torch.where(solid, inverse, torch.inf).amin((1, 2, 3), keepdim=True).minimum(near)
    behind = ((near - inverse) / (near - far).clamp_min(1e-6)).clamp(0, 1)
    return ((1 - (1 - FARTHEST) * behind) * render.alpha).expand(-1, -1, -1, 3)


def normal_image(render: Render, Ks: Tensor) -> Tensor:
    """(B, H, W, 3); normals point to the viewer."""
    normals = normals_of(render, Ks)  # OpenCV: x right, y down, z forward
    facing = normals.new_tensor(FACING)
    return torch.lerp(facing, (1 - normals) / 2, render.alpha.clamp(0, 1))


def normals_of(render: Render, Ks: Tensor) -> Tensor:
    """Unit normals (B, H, W, 3) of the depth map in the camera's axes; (0, 0, -1) where nothing solid is.

    Across the image's axes points are compared with their solid neighbours on both sides, at the outline with the one.
    """
    height, width = render.alpha.shape[1:3]
    reach = 2 * max(round(SMOOTHED * min(height, width) / 2), 1) + 1
    mean = lambda x: F.avg_pool2d(x.movedim(-1, 1), reach, 1, reach // 2, count_include_pad=False).movedim(1, -1)
    z = mean(mean(render.depth)) / mean(mean(render.alpha)).clamp_min(1e-6)
    x = torch.arange(width, device=z.device, dtype=z.dtype) + 0.5
    y = torch.arange(height, device=z.device, dtype=z.dtype) + 0.5
    grid = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, device=z.device, dtype=z.dtype)], -1)
    points = z * torch.einsum("bij,hwj->bhwi", torch.linalg.inv(Ks), grid)  # (B, H, W, 3) camera
    solid = render.alpha > SOLID
    across, down = (_difference(points, solid, dim) for dim in (2, 1))
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1)
    return torch.where(solid & (normals != 0).any(-1, keepdim=True), normals, normals.new_tensor([0.0, 0.0, -1.0]))


def _difference(points: Tensor, solid: Tensor, dim: int) -> Tensor:
    """Sum of the steps to the next point and from the one before along `dim`, of those between solid pixels."""
    size = points.shape[dim]
    step = points.narrow(dim, 1, size - 1) - points.narrow(dim, 0, size - 1)
    step = step * (solid.narrow(dim, 1, size - 1) & solid.narrow(dim, 0, size - 1))
    none = torch.zeros_like(points.narrow(dim, 0, 1))
    return torch.cat([step, none], dim) + torch.cat([none, step], dim)


def canny_image(render: Render, Ks: Tensor) -> Tensor:
    """(B, H, W, 3) black and white."""
    cv2 = load("cv2", "opencv-python-headless")
    pictures = (render.rgb.clamp(0, 1) * 255).round().byte().cpu().numpy()
    edges = torch.stack([torch.from_numpy(cv2.Canny(picture, *CANNY)) for picture in pictures])
    return (edges / 255.0).to(render.rgb)[..., None].expand(-1, -1, -1, 3)


def plain_image(render: Render, Ks: Tensor) -> Tensor:
    return render.rgb.clamp(0, 1)


KINDS: dict[str, Callable[[Render, Tensor], Tensor]] = {
    "depth": depth_image, "normal": normal_image, "canny": canny_image, "image": plain_image,
}  # fmt: skip
