"""What every backend takes and returns."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..cameras import Cameras
from ..splats import Splats

# splats, cameras, width and height in pixels, degree of the spherical harmonics, background (B, 3)
Arguments = tuple[Splats, Cameras, int, int, int, Tensor]
# rgb (B, H, W, 3), alpha and depth (B, H, W, 1), means2d (B, N, 2), radii (B, N, 2) int32
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Backend = Callable[[Splats, Cameras, int, int, int, Tensor], Outputs]
