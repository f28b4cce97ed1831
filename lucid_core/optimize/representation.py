"""What a run optimises, behind one interface: the loop does not know whether it is a splat or a field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Adam

from ..cameras import CameraRanges, Cameras
from ..rasterize import Render

Value = TypeVar("Value")


class PictureLoss(Protocol):
    """The loss of a fit to pictures, and its thresholds of growth; see `ImageTargets` and `ViewFit`."""

    @property
    def grow_grad2d(self) -> float: ...
    @property
    def prune_opacity(self) -> float: ...
    @property
    def scale_weight(self) -> float: ...
    @property
    def entropy_weight(self) -> float: ...
    @property
    def aspect_weight(self) -> float: ...
    def difference(self, image: Tensor, picture: Tensor) -> Tensor: ...


class Representation(ABC, Generic[Value]):
    """Named parameters, the optimisers of those that may change, and how cameras see them.

    A Value (Splats, Field) is what the parameters stand for. darkest_target: darkest grey (sRGB) behind the
    views from which image targets are made.
    """

    darkest_target: float

    params: dict[str, Parameter]
    optimizers: dict[str, Adam]

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @abstractmethod
    def value(self) -> Value:
        """The value, differentiable in the parameters."""

    @abstractmethod
    def result(self) -> Value:
        """A copy of the value without autograd history."""

    @abstractmethod
    def render(
        self,
        value: Value,
        cameras: Cameras,
        width: int,
        height: int,
        sh_degree: int,
        background: Tensor,
        generator: Generator | None = None,
    ) -> Render:
        """Render `value` on backgrounds (B, 3).

        generator: draws the random changes of training; None = none.
        """

    @abstractmethod
    def require_seen(self, value: Value, render: Render, cameras: CameraRanges) -> None:
        """Raise BadInput if no camera of `cameras` can see `value`, so that there would be no gradient."""

    @abstractmethod
    def set_rates(self, progress: float, multiplier: float = 1.0) -> None:
        """Set the learning rates for `progress` (0 to 1)."""

    @abstractmethod
    def regularisers(
        self, value: Value, render: Render, cameras: Cameras, disparity: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """The weighted losses (scalars) beside a guidance, by name; see `losses.disparity`."""

    @abstractmethod
    def picture_terms(
        self, value: Value, render: Render, cameras: Cameras, loss: PictureLoss
    ) -> dict[str, Tensor]:
        """The weighted losses (scalars) beside the difference to pictures, by name."""

    @abstractmethod
    def named_values(self) -> dict[str, Tensor]:
        """What has to stay finite, by its name in an error."""

    def before_backward(self, step: int, render: Render) -> None:
        """Called before the backward pass of `step` (from 1)."""

    def growth(self, render: Render) -> Any:
        """What `after_update` reads of a render, after its backward pass."""
        return None

    def after_update(
        self, before: int, at: int, growth: Any, generator: Generator, fitting: tuple[float, float] | None
    ) -> None:
        """Called after the optimisers' step from schedule step `before` to `at`; see `Gradients`."""

    def forget_gradients(self) -> None:
        """Forget statistics of gradients, for a loss of another gradient scale."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside parameters and moments, by name."""
        return {}

    def restore_state(self, state: dict[str, Tensor]) -> None:
        """Set what `state` gives; on the device of the parameters."""
