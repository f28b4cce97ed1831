"""Transform of a splat of any position and size to the cameras' frame and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cameras import Cameras
from .splats import Splats

RADIUS = 0.6  # radius of a fitted splat in the cameras' frame, as the Lucid Point Cloud ball in the workflows
INLIERS = 0.99  # fraction of the Gaussians, nearest to the centre, that define the radius


@dataclass(frozen=True)
class Frame:
    """A splat's own frame: `centre` maps to the origin of the cameras' frame, `radius` to RADIUS."""

    centre: tuple[float, float, float]
    radius: float

    @staticmethod
    def of(splats: Splats) -> Frame:
        """The frame of `splats`: median position, and distance that INLIERS of the Gaussians lie within."""
        means = splats.means.double().cpu()
        centre = means.median(dim=0).values
        far = (means - centre).norm(dim=-1).sort().values[int(INLIERS * (len(means) - 1))]
        return Frame(tuple(centre.tolist()), max(float(far), 2 * float(splats.scales.median()), 1e-12))

    @staticmethod
    def of_points(points: Tensor) -> Frame:
        """The frame of points (N, 3): the centre of their box, and the distance of the farthest from it."""
        points = points.double().cpu()
        centre = (points.amin(0) + points.amax(0)) / 2
        return Frame(tuple(centre.tolist()), max(float((points - centre).norm(dim=-1).max()), 1e-12))

    @property
    def scale(self) -> float:
        """A length in the cameras' frame over the same length in the splat's own frame."""
        return RADIUS / self.radius

    def enter(self, splats: Splats) -> Splats:
        """From the splat's own frame to the cameras' frame."""
        scales = (splats.scales.double() * self.scale).float()
        return replace(splats, means=self.enter_points(splats.means), scales=scales)

    def enter_points(self, points: Tensor) -> Tensor:
        """Points (N, 3), as `enter` moves the means."""
        return ((points.double() - self._centre(points)) * self.scale).float()

    def leave(self, splats: Splats) -> Splats:
        """The inverse of `enter`, up to rounding."""
        means = splats.means.double() / self.scale + self._centre(splats.means)
        return replace(splats, means=means.float(), scales=(splats.scales.double() / self.scale).float())

    def enter_cameras(self, cameras: Cameras) -> Cameras:
        """The cameras that see in the cameras' frame what `cameras` see in the splat's own frame."""
        viewmats = cameras.viewmats.double().clone()
        viewmats[:, :3, 3] += viewmats[:, :3, :3] @ self._centre(viewmats)
        viewmats[:, :3, 3] *= self.scale
        return replace(cameras, viewmats=viewmats.to(cameras.viewmats))

    def _centre(self, beside: Tensor) -> Tensor:
        return torch.tensor(self.centre, dtype=torch.float64, device=beside.device)
