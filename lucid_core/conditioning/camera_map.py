"""Plots of the camera positions from above and from the side, with the regions of the view words."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..cameras import CameraRanges
from ..optional import load
from .view_prompts import VIEWS, ViewBlend

SIZE, SAMPLES = 320, 160  # size of each plot in pixels; cameras drawn for the start and for the end
# RGB of VIEWS
REGIONS = np.array([(255, 214, 204), (214, 236, 214), (209, 222, 245), (246, 237, 200)], np.float32)
EARLY, LATE, INK = (216, 90, 60), (40, 90, 190), (70, 70, 70)


def camera_map(ranges: CameraRanges, blend: ViewBlend | None = None) -> Tensor:
    """Plot cameras at the start (red) and the end (blue) of a run -> (SIZE, 2 * SIZE, 3) sRGB in [0, 1].

    The background shows the regions of the view words. Left: from above, front at the bottom. Right: from the
    side, horizontal distance from the axis to the right, height upwards.
    """
    blend, generator = blend or ViewBlend(), Generator().manual_seed(0)
    drawn = [ranges.sample(SAMPLES, progress, 64, 64, generator).cameras.viewmats for progress in (0.0, 1.0)]
    positions = [-(pose[:, :3, :3].mT @ pose[:, :3, 3:])[..., 0] for pose in drawn]  # (SAMPLES, 3) world each
    reach = 1.12 * max(float(position.norm(dim=-1).max()) for position in positions)
    above = _picture(lambda x, y: blend.weights(torch.atan2(x, -y), torch.zeros_like(x)), reach, (0.5, 0.5))
    beside = _picture(lambda x, y: _from_the_side(blend, torch.atan2(y, x)), reach, (0.1, 0.5))
    for position, color in zip(positions, (EARLY, LATE)):
        _dots(above, position[:, [0, 2]], reach, (0.5, 0.5), color)  # the front (-z) is at the bottom
        _dots(beside, _side(position), reach, (0.1, 0.5), color)
    for x, y, word in ((140, 312, "front"), (6, 150, "side"), (140, 14, "back")):
        _write(above, word, x, y)
    _write(beside, "overhead", 6, 14)
    _write(beside, "start", SIZE - 92, SIZE - 10, EARLY)
    _write(beside, "end", SIZE - 42, SIZE - 10, LATE)
    return torch.from_numpy(np.concatenate([above, beside], 1) / 255).float()


def _side(positions: Tensor) -> Tensor:
    """World positions (N, 3) -> distance from the axis and height (N, 2)."""
    return torch.stack([positions[:, [0, 2]].norm(dim=-1), -positions[:, 1]], -1)


def _from_the_side(blend: ViewBlend, elevation_rad: Tensor) -> Tensor:
    """Weights of VIEWS (N, 4) by elevation (N,); everything not overhead counts as side."""
    return blend.weights(torch.full_like(elevation_rad, math.pi / 2), elevation_rad)


def _picture(
    weights: Callable[[Tensor, Tensor], Tensor], reach: float, origin: tuple[float, float]
) -> NDArray[np.uint8]:
    """Region colours blended by `weights(x, y)` (N, 4) -> (SIZE, SIZE, 3) uint8.

    x to the right and y upwards in world units from `origin`, given in fractions of the plot.
    """
    pixel = (torch.arange(SIZE) + 0.5) / SIZE
    x, y = torch.meshgrid((pixel - origin[0]) * 2 * reach, (1 - pixel - origin[1]) * 2 * reach, indexing="xy")
    colors = weights(x.flatten(), y.flatten()).numpy() @ REGIONS[: len(VIEWS)]
    return np.ascontiguousarray(colors.reshape(SIZE, SIZE, 3).astype(np.uint8))


def _dots(
    picture: NDArray[np.uint8],
    points: Tensor,
    reach: float,
    origin: tuple[float, float],
    color: tuple[int, int, int],
) -> None:
    """Draw points (N, 2) in world units, and the object as a circle at the origin."""
    cv2 = load("cv2", "opencv-python-headless")

    def place(x: float, y: float) -> tuple[int, int]:
        across, down = x / (2 * reach) + origin[0], 1 - origin[1] - y / (2 * reach)
        return round(across * SIZE), round(down * SIZE)

    for x, y in points.tolist():
        cv2.circle(picture, place(x, y), 2, color, -1, cv2.LINE_AA)
    cv2.circle(picture, place(0, 0), round(0.5 / (2 * reach) * SIZE), INK, 1, cv2.LINE_AA)


def _write(picture: NDArray[np.uint8], word: str, x: int, y: int, color: tuple[int, int, int] = INK) -> None:
    cv2 = load("cv2", "opencv-python-headless")
    cv2.putText(picture, word, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
