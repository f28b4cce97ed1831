"""Depth images from all around, fused into the signed distance to a closed surface."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..cameras import Cameras

DOUBT = 0.1  # share of the views; a point that fewer see is inside
POINTS = 1 << 21  # at a time


class Fusion:
    """Signed distances of points (N, 3) to the surface that depth images show, averaged over the views.

    cell: unit and limit of the distances, in world units. min_opacity: of a pixel that shows the surface.
    """

    def __init__(self, points: Tensor, cell: float, min_opacity: float) -> None:
        self._points, self._cell, self._min_opacity = points, cell, min_opacity
        self._behind, self._seen = points.new_zeros(len(points)), points.new_zeros(len(points))
        self._views = 0

    def add(self, camera: Cameras, picture: Tensor) -> None:
        """Add the view of `camera` (1). picture: opacity, and depth times opacity (px, px, 2)."""
        parts = (x.split(POINTS) for x in (self._points, self._behind, self._seen))
        for points, behind, seen in zip(*parts):
            depth = _depth_behind(points, camera, picture, self._min_opacity) / self._cell
            near = depth < 1
            behind += torch.where(near, depth.clamp_min(-1), 0)
            seen += near
        self._views += 1

    def distances(self) -> Tensor:
        """Signed distances (N,) in cells, in [-1, 1], positive inside."""
        mean = self._behind / self._seen.clamp_min(1)
        return torch.where(self._seen < DOUBT * self._views, 1.0, mean)


def _depth_behind(points: Tensor, camera: Cameras, picture: Tensor, min_opacity: float) -> Tensor:
    """How far points (N, 3) lie behind what `picture` shows, in world units (N,).

    -inf outside of the picture and where its opacity is below `min_opacity`.
    """
    pose, K = camera.viewmats[0], camera.Ks[0]
    seen = points @ pose[:3, :3].T + pose[:3, 3]
    pixel = seen[:, :2] / seen[:, 2:] * K.diagonal()[:2] + K[:2, 2]
    grid = (pixel / len(picture) * 2 - 1)[None, None]
    opacity, depth = grid_sample(picture.movedim(-1, 0)[None], grid, align_corners=False)[0, :, 0]
    return torch.where(opacity >= min_opacity, seen[:, 2] - depth / opacity.clamp_min(1e-6), -torch.inf)
