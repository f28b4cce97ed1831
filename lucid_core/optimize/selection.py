"""Optimisation of an existing splat: which Gaussians may change, and the transform to the cameras' frame."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..errors import BadSetting
from ..frames import Frame
from ..settings import check_bounds, require, setting
from ..splats import Splats
from .checkpoint import Checkpoint, Settings


@dataclass(frozen=True)
class Selection:
    """A box, or the ellipsoid inscribed in it, in the splat's own frame; selects Gaussians by their centres.

    Raises BadSetting for a value out of bounds.
    """

    shape: str = "box"
    x: float = setting(0.0, -1e6, 1e6, "Centre along x (to the right), in world units.", advanced=False)
    y: float = setting(0.0, -1e6, 1e6, "Centre along y (down), in world units.", advanced=False)
    z: float = setting(0.0, -1e6, 1e6, "Centre along z (from front to back), in world units.", advanced=False)
    width: float = setting(1.0, 1e-6, 1e6, "Full extent along x, in world units.", advanced=False)
    height: float = setting(1.0, 1e-6, 1e6, "Full extent along y, in world units.", advanced=False)
    depth: float = setting(1.0, 1e-6, 1e6, "Full extent along z, in world units.", advanced=False)

    def __post_init__(self) -> None:
        require(self.shape in ("box", "sphere"), "shape", repr(self.shape), "box or sphere")
        check_bounds(self)

    def mask(self, means: Tensor) -> Tensor:
        """means (N, 3) -> (N,) bool. Raises BadSetting if nothing is selected."""
        half = means.new_tensor([self.width, self.height, self.depth]) / 2
        offset = ((means - means.new_tensor([self.x, self.y, self.z])) / half).abs()
        inside = (offset.amax(-1) if self.shape == "box" else offset.norm(dim=-1)) <= 1
        if not inside.any():
            low, high = means.amin(0).tolist(), means.amax(0).tolist()
            reach = ", ".join(f"{axis} {a:.3g} to {b:.3g}" for axis, a, b in zip("xyz", low, high))
            allowed = f"where the {len(means)} Gaussians of the splat are: {reach}"
            raise BadSetting("selection", "empty", allowed)
        return inside


@dataclass(frozen=True)
class Subject:
    """The splats of a run: `free` ones are optimised, `fixed` ones are only rendered; in the cameras' frame.

    `own` and `rest` are the same two sets in the splat's own frame.
    """

    own: Splats
    rest: Splats | None
    frame: Frame | None  # None = the splat's own frame is the cameras' frame

    @staticmethod
    def of(splats: Splats, selection: Selection | None = None, fit: bool = False) -> Subject:
        """Split `splats` by `selection`; `fit`: normalise the frame.

        Raises BadSetting if nothing is selected.
        """
        return Subject(*divide(splats, selection), Frame.of(splats) if fit else None)

    @property
    def free(self) -> Splats:
        return self.frame.enter(self.own) if self.frame else self.own

    @property
    def fixed(self) -> Splats | None:
        return self.frame.enter(self.rest) if self.frame and self.rest else self.rest

    def whole(self, changed: Splats, freeze_geometry: bool = False) -> Splats:
        """The whole splat in its own frame; `changed` (in the cameras' frame) replaces the free ones.

        The free ones come first. freeze_geometry: take only the colours of `changed`; leaving the frame
        rounds.
        """
        if freeze_geometry:
            own = self.own.map(lambda x: x.to(changed.means.device))
            return join_splats(replace(own, sh=changed.sh), self.rest)
        return join_splats(self.frame.leave(changed) if self.frame else changed, self.rest)

    def kept(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with the fixed splats added, which are not part of the run's own state."""
        rest = {f"rest.{name}": value for name, value in vars(self.rest).items()} if self.rest else {}
        return replace(checkpoint, tensors={**checkpoint.tensors, **rest})


def whole_splat(checkpoint: Checkpoint, settings: Settings) -> Splats:
    """The whole splat, in its own frame, of a checkpoint made by `Subject.kept`; `settings` of its run."""
    frame = (
        Frame(tuple(settings["Frame.centre"]), settings["Frame.radius"])
        if "Frame.radius" in settings
        else None
    )
    changed, rest = checkpoint.splats(), checkpoint.group("rest")
    return Subject(changed, Splats(**rest) if rest else None, frame).whole(changed)


def divide(splats: Splats, selection: Selection | None) -> tuple[Splats, Splats | None]:
    """(free splats, fixed splats or None). Raises BadSetting if none is selected."""
    if selection is None:
        return splats, None
    mask = selection.mask(splats.means)
    return splats.map(lambda x: x[mask]), None if mask.all() else splats.map(lambda x: x[~mask])


def join_splats(first: Splats, second: Splats | None) -> Splats:
    """Both splats in one, on the device of the first; SH bands that one of them lacks are 0."""
    if second is None:
        return first
    second = second.map(lambda x: x.to(first.means.device))
    degree = max(first.sh_degree, second.sh_degree)
    parts = [splats.with_sh_degree(degree) for splats in (first, second)]
    return Splats(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Splats)))
