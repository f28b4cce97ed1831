"""View-dependent prompts: how much of "front", "side", "back" and "overhead" each camera sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_bounds, setting
from .prior import Cond, Conds, Prior

VIEWS = ("front", "side", "back", "overhead")


@dataclass(frozen=True)
class ViewBlend:
    """Where one view word gives way to the next.

    The changes lie at azimuth 45 and 135 degrees on both sides, and at `overhead_deg` of elevation; around each the
    weights run linearly over `blend_deg`. 90 is the official front - side - back interpolation, 0 switches at once.
    """

    blend_deg: float = setting(90, 0, 90, "Width in degrees over which one view word blends into the next; 90 = smooth all "
                               "the way, 0 = switch at once.", step=5)  # fmt: skip
    overhead_deg: float = setting(60, 1, 90, "Elevation in degrees at which the overhead word takes over; 90 = half at "
                                  "the pole.", step=1)  # fmt: skip

    def __post_init__(self) -> None:
        check_bounds(self)

    def weights(self, azimuth_rad: Tensor, elevation_rad: Tensor) -> Tensor:
        """(B,) azimuths and elevations -> (B, 4) weights of VIEWS, each row summing to 1."""
        turned = torch.remainder(azimuth_rad + math.pi, 2 * math.pi) - math.pi
        off_front = turned.abs().rad2deg()  # (B,) 0 front, 180 back
        past_front = self._ramp(off_front - 45)
        past_side = self._ramp(off_front - 135)
        overhead = self._ramp(elevation_rad.rad2deg() - self.overhead_deg)
        around = torch.stack([1 - past_front, past_front - past_side, past_side], -1)
        return torch.cat([around * (1 - overhead)[:, None], overhead[:, None]], -1)

    def _ramp(self, past_deg: Tensor) -> Tensor:
        if self.blend_deg == 0:
            return (past_deg > 0).to(past_deg)
        return (past_deg / self.blend_deg + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Prompts:
    """The conditionings of one object: one for each of VIEWS, the negative one and that of the inversion (one row each)."""

    views: tuple[Cond, Cond, Cond, Cond]
    negative: Cond
    inverse: Cond
    blend: ViewBlend = ViewBlend()

    def at(self, prior: Prior, azimuth_rad: Tensor, elevation_rad: Tensor) -> Conds:
        """What to ask the model about B views."""
        y = prior.blend(list(self.views), self.blend.weights(azimuth_rad, elevation_rad))
        return Conds(y, self.negative, self.inverse)
