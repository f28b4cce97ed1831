"""An image and its depth -> the points of the visible side, seen from the front."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Cameras, intrinsics
from .checks import check_bounds, require, setting
from .gaussians import Splats
from .starts import Start

ENCODINGS = ("disparity", "linear", "distance")


@dataclass(frozen=True)
class Relief:
    """How the brightness of a depth image is read.

    disparity: near is bright, evenly in 1 / z (Depth Anything, MiDaS, MoGe). linear: near is bright, evenly in z (Lucid
    Render). distance: the values are z itself, in any unit.
    """

    encoding: str = ENCODINGS[0]
    fov_deg: float = setting(35.0, 1, 150, "Field of view of the image in degrees over its smaller side.", step=1, rare=False)
    depth_share: float = setting(
        0.5, 0, 10, "How deep the visible side is, nearest to farthest point, as a share of its larger side in the image; "
        "0 = flat, 0.5 = half a ball. Not used for distance.", rare=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self.encoding in ENCODINGS, "encoding", repr(self.encoding), f"one of {', '.join(ENCODINGS)}")
        check_bounds(self)

    def splats(self, image: Tensor, depth: Tensor, mask: Tensor | None, start: Start, seed: int) -> tuple[Splats, Cameras]:
        """sRGB image (H, W, 3), depth image and mask (h, w) -> the splats, and the camera (1) that sees them as in the image.

        The mask is 1 on what is kept. Depth and mask of another size are stretched to the image's, without new values.
        """
        height, width = image.shape[:2]
        points, colors = self.cloud(image, depth, mask)
        splats = start.splats(points, colors, seed)
        centre, factor = start.placement(points)
        pose = torch.eye(4)[None].clone()
        pose[0, :3, 3] = (centre * factor).float()  # it stands at -centre * factor
        return splats, Cameras(pose, self._intrinsics(width, height))

    def cloud(self, image: Tensor, depth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `splats` -> the points (N, 3) as the camera sees them and their sRGB colours (N, 3)."""
        height, width = image.shape[:2]
        kept = torch.ones(height, width) if mask is None else _stretched(mask, height, width)
        chosen = kept > 0.5
        return self.points(_stretched(depth, height, width), chosen), image[chosen].clamp(0, 1)

    def _intrinsics(self, width: int, height: int) -> Tensor:
        return intrinsics(torch.tensor([self.fov_deg]).deg2rad(), width, height)

    def points(self, depth: Tensor, mask: Tensor) -> Tensor:
        """Depth image (H, W) and bool mask (H, W) of N pixels -> their points (N, 3) as the camera at the origin sees them.

        OpenCV axes, which are the world's for a camera in front: x right, y down, z away from it. Raises ValueError where
        no pixel is left or a depth is out of bounds.
        """
        height, width = depth.shape
        rows, columns = mask.nonzero().unbind(-1)
        require(len(rows) > 0, "mask", "empty", "1 on the object; invert it if it marks the background")
        K = self._intrinsics(width, height)[0]
        side = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1  # px
        z = self._distances(depth[mask].float(), side / float(K[0, 0]))
        x, y = (columns + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1]
        return torch.stack([x * z, y * z, z], -1)

    def _distances(self, values: Tensor, slope: float) -> Tensor:
        """Values (N,) -> z (N,), nearest at 1 except for `distance`. `slope`: the object's larger side at a distance of 1."""
        require(bool(torch.isfinite(values).all()), "depth", "not finite under the mask", "finite; mask such pixels out")
        if self.encoding == "distance":
            require(float(values.min()) > 0, "depth", f"{float(values.min()):g} under the mask", "a distance above 0")
            return values
        low, high = values.min(), values.max()
        far = 1 + self.depth_share * slope
        nearness = (values - low) / (high - low) if high > low else torch.ones_like(values)  # 1 = nearest
        if self.encoding == "linear":
            return far + (1 - far) * nearness
        return 1 / (1 / far + (1 - 1 / far) * nearness)


def _stretched(values: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(values[None, None].float(), (height, width), mode="nearest-exact")[0, 0]
