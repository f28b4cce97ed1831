"""The start of a fit to views: Gaussians at the scene's points, or a ball where the cameras look."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import SizedCameras
from ..splats import Splats
from .points import NEIGHBOURS, Start
from .shapes import PointCloud

FILL = 0.9  # diameter of the ball, in sizes of the view at its centre


def start_of_views(
    cameras: SizedCameras, points: Tensor | None, colors: Tensor | None, count: int, seed: int
) -> Splats:
    """At most `count` Gaussians at points (N, 3) with sRGB colors (N, 3), else a grey ball.

    The ball lies where the optical axes meet and fills the views. Raises BadSetting for points that all lie
    on one spot.
    """
    if points is not None and colors is not None and len(points) > NEIGHBOURS:
        return Start(count=count, size=0.0).splats(points, colors, seed)
    centre, radius = subject_of(cameras)
    ball = PointCloud(count=count, size=2.0).splats(seed).scale_by(radius)
    return replace(ball, means=ball.means + centre)


def subject_of(cameras: SizedCameras) -> tuple[Tensor, float]:
    """(centre (3,), radius) of what the cameras look at, in world units.

    The centre is nearest to all optical axes; where they are parallel, to the cameras too.
    """
    positions = cameras.cameras.positions().double()
    forward = cameras.cameras.viewmats[:, 2, :3].double()
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None]  # (V, 3, 3)
    middle = positions.mean(dim=0)
    offsets = (across @ (positions - middle)[..., None]).sum(0)
    centre = middle + (torch.linalg.pinv(across.sum(0), rtol=1e-6) @ offsets)[:, 0]
    distance = float((centre - positions).norm(dim=-1).median())
    focal = cameras.cameras.Ks.diagonal(dim1=1, dim2=2)[:, :2].amin(1).median()
    radius = FILL * distance * min(cameras.width, cameras.height) / 2 / float(focal)
    return centre.float(), max(radius, 1e-6)
