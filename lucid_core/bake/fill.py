"""Colours of texels that no view shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..optional import load

NEIGHBOURS = 4


def fill_unseen(colors: Tensor, points: Tensor, seen: Tensor) -> Tensor:
    """Colours (T, 3), those not `seen` (T,) replaced by the mean of the nearest seen ones on the surface.

    points (T, 3). The mean is weighted by 1 / distance. At least one texel must be seen.
    """
    if bool(seen.all()):
        return colors
    known = colors[seen]
    near = min(NEIGHBOURS, len(known))
    tree = load("scipy.spatial", "scipy").cKDTree(points[seen].numpy())
    distance, index = tree.query(points[~seen].numpy(), k=near)
    weights = torch.from_numpy(1 / np.maximum(distance, 1e-12).reshape(-1, near)).float()
    weights = weights / weights.sum(-1, keepdim=True)
    filled = colors.clone()
    filled[~seen] = (weights[..., None] * known[torch.from_numpy(index).reshape(-1, near)]).sum(1)
    return filled


def nearest_texels(index: Tensor, width: int, height: int) -> Tensor:
    """For each texel of a (height, width) texture, flattened, which of the texels `index` (T,) is nearest.

    A texture filled in this way shows the gaps between charts neither to bilinear filtering nor to mip maps.
    """
    cv2 = load("cv2", "opencv-python-headless")
    empty = np.ones(height * width, np.uint8)
    empty[index.numpy()] = 0
    nearest = cv2.distanceTransformWithLabels(
        empty.reshape(height, width), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )[1].reshape(-1)
    owner = np.zeros(nearest.max() + 1, np.int64)
    owner[nearest[index.numpy()]] = np.arange(len(index))
    return torch.from_numpy(owner[nearest])
