"""ControlNet images (hints): renders of a splat from the training cameras, in the conventions of the
ControlNets' training data.

They are rendered for every batch of views, from the current splat or from a guide splat, without gradient.

depth   inverse depth, normalised per view: the nearest point is white, empty space black (MiDaS, as for
        SD's depth ControlNets)
normal  camera-space normals, red = left, green = up, blue = towards the viewer (Bae et al. 2021 on
        ScanNet, as for NormalBae)
canny   white edges on black by OpenCV's Canny with thresholds 100 and 200
image   the render itself: for tile ControlNets, or for a guide with DensePose or segmentation colours (as
        for the paper's avatars)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Views
from ..frames import Frame
from ..optional import load
from ..rasterize import Render, Renderer
from ..settings import require
from ..splats import Splats

SOLID = 0.5  # opacity from which a pixel counts as object
FARTHEST = 0.1  # brightness of the farthest object point, so that the outline stays visible on black
FACING = (0.5, 0.5, 1.0)  # colour of a surface that faces the camera, used for the background
# side of the depth filter, as a share of the image side; applied twice, or single Gaussians show as bumps
SMOOTHED = 1 / 40
CANNY = (100, 200)


@dataclass(frozen=True)
class Hint:
    """The kind of image for a ControlNet, rendered from `guide` or (None) from the optimised splat.

    Raises BadSetting for an unknown kind.
    """

    kind: str
    guide: Splats | None = None

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "hint", repr(self.kind), f"one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class RenderedBatch:
    """B rendered views, as a guidance gets them.

    images (B, H, W, 3) in [0, 1]: the colours of `render` or its disparity, mirrored if `mirrored`. views:
    their cameras, on the device of the images.
    """

    images: Tensor
    views: Views
    render: Render
    renderer: Renderer
    mirrored: bool = False

    @torch.no_grad()
    def control_images(self, hints: tuple[Hint, ...]) -> list[Tensor]:
        """Return an image (B, H, W, 3) in [0, 1] for each hint.

        Guides are rendered by the same cameras on black, at their own positions.
        """
        height, width = self.render.rgb.shape[1:3]
        cameras = self.views.cameras
        seen = {id(None): self.render}
        for guide in (hint.guide for hint in hints):
            if guide is not None and id(guide) not in seen:
                there = guide.map(lambda x: x.to(self.render.rgb.device))
                seen[id(guide)] = self.renderer(there, cameras, width, height)
        turn = mirror if self.mirrored else lambda render: render
        return [KINDS[hint.kind](turn(seen[id(hint.guide)]), cameras.Ks) for hint in hints]


def move_to_frame(hints: tuple[Hint, ...], frame: Frame | None) -> tuple[Hint, ...]:
    """Return the hints with their guides moved into `frame`, like the splat; None = unchanged."""
    if frame is None:
        return hints
    return tuple(replace(hint, guide=hint.guide and frame.enter(hint.guide)) for hint in hints)


def mirror(render: Render) -> Render:
    """Flip the maps (B, H, W, C) of the render left to right.

    The cameras stay valid because their principal point is the image centre.
    """
    return Render(render.rgb.flip(2), render.alpha.flip(2), render.depth.flip(2), render.info)


def inverse_depth_image(render: Render, Ks: Tensor) -> Tensor:
    """Return the grey depth images (B, H, W, 3) in [0, 1] of a render; intrinsics Ks (B, 3, 3) are unused."""
    inverse = render.alpha / render.depth.clamp_min(1e-6)
    solid = render.alpha > SOLID
    near = torch.where(solid, inverse, 0).amax((1, 2, 3), keepdim=True)
    far = torch.where(solid, inverse, torch.inf).amin((1, 2, 3), keepdim=True).minimum(near)
    behind = ((near - inverse) / (near - far).clamp_min(1e-6)).clamp(0, 1)
    return ((1 - (1 - FARTHEST) * behind) * render.alpha).expand(-1, -1, -1, 3)


def normal_image(render: Render, Ks: Tensor) -> Tensor:
    """Return the normal images (B, H, W, 3) in [0, 1]; normals point to the viewer. Ks (B, 3, 3), pixels."""
    normals = normals_of(render, Ks)  # OpenCV: x right, y down, z forward
    facing = normals.new_tensor(FACING)
    return torch.lerp(facing, (1 - normals) / 2, render.alpha.clamp(0, 1))


def normals_of(render: Render, Ks: Tensor) -> Tensor:
    """Return the unit normals (B, H, W, 3) of the depth map in camera space (OpenCV axes); (0, 0, -1) where
    there is no object. Ks (B, 3, 3) in pixels.

    Differences are taken to the object pixels on both sides along each image axis, at the outline to the one
    inside.
    """
    height, width = render.alpha.shape[1:3]
    reach = 2 * max(round(SMOOTHED * min(height, width) / 2), 1) + 1
    z = _smooth(render.depth, reach) / _smooth(render.alpha, reach).clamp_min(1e-6)
    x = torch.arange(width, device=z.device, dtype=z.dtype) + 0.5
    y = torch.arange(height, device=z.device, dtype=z.dtype) + 0.5
    grid = torch.stack(
        [*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, device=z.device, dtype=z.dtype)], -1
    )
    points = z * torch.einsum("bij,hwj->bhwi", torch.linalg.inv(Ks), grid)  # (B, H, W, 3) camera
    solid = render.alpha > SOLID
    across, down = (_difference(points, solid, dim) for dim in (2, 1))
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1)
    return torch.where(
        solid & (normals != 0).any(-1, keepdim=True), normals, normals.new_tensor([0.0, 0.0, -1.0])
    )


def _smooth(maps: Tensor, reach: int) -> Tensor:
    """Return the maps (B, H, W, C) averaged twice over squares of `reach` (odd) pixels."""
    for _ in range(2):
        mean = F.avg_pool2d(maps.movedim(-1, 1), reach, 1, reach // 2, count_include_pad=False)
        maps = mean.movedim(1, -1)
    return maps


def _difference(points: Tensor, solid: Tensor, dim: int) -> Tensor:
    """Return the sum (B, H, W, 3) of the forward and backward differences of points (B, H, W, 3) along `dim`,
    counting only differences between two solid pixels.
    """
    size = points.shape[dim]
    step = points.narrow(dim, 1, size - 1) - points.narrow(dim, 0, size - 1)
    step = step * (solid.narrow(dim, 1, size - 1) & solid.narrow(dim, 0, size - 1))
    none = torch.zeros_like(points.narrow(dim, 0, 1))
    return torch.cat([step, none], dim) + torch.cat([none, step], dim)


def canny_image(render: Render, Ks: Tensor) -> Tensor:
    """Return the edge images (B, H, W, 3), white on black. Raises MissingPackage without OpenCV."""
    cv2 = load("cv2", "opencv-python-headless")
    pictures = (render.rgb.clamp(0, 1) * 255).round().byte().cpu().numpy()
    edges = torch.stack([torch.from_numpy(cv2.Canny(picture, *CANNY)) for picture in pictures])
    return (edges / 255.0).to(render.rgb)[..., None].expand(-1, -1, -1, 3)


def plain_image(render: Render, Ks: Tensor) -> Tensor:
    """Return the render itself (B, H, W, 3), clipped to [0, 1]."""
    return render.rgb.clamp(0, 1)


KINDS: dict[str, Callable[[Render, Tensor], Tensor]] = {
    "depth": inverse_depth_image,
    "normal": normal_image,
    "canny": canny_image,
    "image": plain_image,
}
