"""Image and depth map -> points on the visible surface, facing the front."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras, intrinsics
from ..settings import check_bounds, require, setting
from ..splats import Splats
from .points import Start

ENCODINGS = ("disparity", "linear", "distance")


@dataclass(frozen=True)
class Relief:
    """How the values of a depth image are converted to z.

    disparity: near is bright, linear in 1 / z (Depth Anything, MiDaS, MoGe). linear: near is bright, linear
    in z (Lucid Render). distance: the values are z itself, in any unit.
    """

    encoding: str = ENCODINGS[0]
    fov_deg: float = setting(
        35.0, 1, 150, "Field of view of the image in degrees, over its shorter side.", step=1, advanced=False
    )
    depth_share: float = setting(
        0.5,
        0,
        10,
        "Depth range of the object relative to its longer side in the image; 0 = flat, 0.5 = hemisphere. "
        "Ignored for distance.",
        advanced=False,
    )

    def __post_init__(self) -> None:
        require(self.encoding in ENCODINGS, "encoding", repr(self.encoding), f"one of {', '.join(ENCODINGS)}")
        check_bounds(self)

    def splats(
        self, image: Tensor, depth: Tensor, mask: Tensor | None, start: Start, seed: int
    ) -> tuple[Splats, Cameras]:
        """sRGB image (H, W, 3), depth image and mask (h, w) -> splats, and the camera (1) of the image.

        The mask is 1 on the object. Depth and mask are resized to the image by nearest neighbour. Raises
        BadSetting as `points` and `Start.splats`.
        """
        height, width = image.shape[:2]
        points, colors = self.cloud(image, depth, mask)
        splats = start.splats(points, colors, seed)
        centre, factor = start.placement(points)
        pose = torch.eye(4)[None].clone()
        pose[0, :3, 3] = (centre * factor).float()  # camera position is -centre * factor
        return splats, Cameras(pose, self._intrinsics(width, height))

    def cloud(self, image: Tensor, depth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs as in `splats` -> points (N, 3) in the camera frame and their sRGB colours (N, 3)."""
        height, width = image.shape[:2]
        kept = torch.ones(height, width) if mask is None else _resize(mask, height, width)
        chosen = kept > 0.5
        return self.points(_resize(depth, height, width), chosen), image[chosen].clamp(0, 1)

    def _intrinsics(self, width: int, height: int) -> Tensor:
        return intrinsics(torch.tensor([self.fov_deg]).deg2rad(), width, height)

    def points(self, depth: Tensor, mask: Tensor) -> Tensor:
        """Depth image (H, W) and bool mask (H, W) of N pixels -> points (N, 3) in the camera frame.

        OpenCV axes (x right, y down, z forward), equal to the world axes for a camera in front. Raises
        BadSetting if the mask is empty or a depth is not valid.
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
        """Depth values (N,) -> z (N,); the nearest is at 1, except for `distance`.

        slope: longer side of the object at a distance of 1.
        """
        require(
            bool(torch.isfinite(values).all()),
            "depth",
            "not finite under the mask",
            "finite; mask such pixels out",
        )
        if self.encoding == "distance":
            require(
                float(values.min()) > 0,
                "depth",
                f"{float(values.min()):g} under the mask",
                "a distance above 0",
            )
            return values
        low, high = values.min(), values.max()
        far = 1 + self.depth_share * slope
        nearness = (values - low) / (high - low) if high > low else torch.ones_like(values)  # 1 = nearest
        if self.encoding == "linear":
            return far + (1 - far) * nearness
        return 1 / (1 / far + (1 - 1 / far) * nearness)


def _resize(values: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(values[None, None].float(), (height, width), mode="nearest-exact")[
        0, 0
    ]
