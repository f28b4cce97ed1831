"""Starting from a splat that is there: which part of it may change, how much, and where the cameras see it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .checkpoint import Checkpoint, Settings
from .checks import check_bounds, require, setting
from .gaussians import Splats
from .score import Guidance
from .targets import ImageTargets

RADIUS = 0.6  # of a fitted splat in the cameras' frame: as the ball of Lucid Point Cloud in the workflows
INLIERS = 0.99  # share of the Gaussians that counts for its size


@dataclass(frozen=True)
class Selection:
    """The Gaussians whose centres lie in a box, or in the ellipsoid that just fits into it, in the splat's own frame."""

    shape: str = "box"
    x: float = setting(0.0, -1e6, 1e6, "Centre along x (to the right) in units of the splat.", rare=False)
    y: float = setting(0.0, -1e6, 1e6, "Centre along y (down).", rare=False)
    z: float = setting(0.0, -1e6, 1e6, "Centre along z (away from one who looks at the front).", rare=False)
    width: float = setting(1.0, 1e-6, 1e6, "Extent along x.", rare=False)
    height: float = setting(1.0, 1e-6, 1e6, "Extent along y.", rare=False)
    depth: float = setting(1.0, 1e-6, 1e6, "Extent along z.", rare=False)

    def __post_init__(self) -> None:
        require(self.shape in ("box", "sphere"), "shape", repr(self.shape), "box or sphere")
        check_bounds(self)

    def mask(self, means: Tensor) -> Tensor:
        """(N, 3) -> (N,) bool. Raises ValueError where nothing is selected."""
        half = means.new_tensor([self.width, self.height, self.depth]) / 2
        offset = ((means - means.new_tensor([self.x, self.y, self.z])) / half).abs()
        inside = (offset.amax(-1) if self.shape == "box" else offset.norm(dim=-1)) <= 1
        if not inside.any():
            low, high = means.amin(0).tolist(), means.amax(0).tolist()
            reach = ", ".join(f"{axis} {a:.3g} to {b:.3g}" for axis, a, b in zip("xyz", low, high))
            raise ValueError(f"the selection holds none of {len(means)} Gaussians; they lie at {reach}")
        return inside


@dataclass(frozen=True)
class Frame:
    """A splat's own place: `centre` becomes the origin of the cameras' frame, `radius` becomes RADIUS."""

    centre: tuple[float, float, float]
    radius: float

    @staticmethod
    def of(splats: Splats) -> Frame:
        means = splats.means.double().cpu()
        centre = means.median(dim=0).values
        far = (means - centre).norm(dim=-1).sort().values[int(INLIERS * (len(means) - 1))]
        return Frame(tuple(centre.tolist()), max(float(far), 2 * float(splats.scales.median()), 1e-12))

    def enter(self, splats: Splats) -> Splats:
        factor = RADIUS / self.radius
        means = (splats.means.double() - self._centre(splats)) * factor
        return replace(splats, means=means.float(), scales=(splats.scales.double() * factor).float())

    def leave(self, splats: Splats) -> Splats:
        """The inverse of `enter`, but for the last bits."""
        factor = self.radius / RADIUS
        means = splats.means.double() * factor + self._centre(splats)
        return replace(splats, means=means.float(), scales=(splats.scales.double() * factor).float())

    def _centre(self, splats: Splats) -> Tensor:
        return torch.tensor(self.centre, dtype=torch.float64, device=splats.means.device)


@dataclass(frozen=True)
class Subject:
    """What a run works on: `free` splats that it may change among `fixed` ones, both in the cameras' frame.

    `own` are the free ones in the splat's own frame, `rest` the fixed ones.
    """

    own: Splats
    rest: Splats | None
    frame: Frame | None  # None: the splat's own is the cameras'

    @staticmethod
    def of(splats: Splats, selection: Selection | None = None, fit: bool = False) -> Subject:
        """Raises ValueError where `selection` holds nothing."""
        return Subject(*divided(splats, selection), Frame.of(splats) if fit else None)

    @property
    def free(self) -> Splats:
        return self.frame.enter(self.own) if self.frame else self.own

    @property
    def fixed(self) -> Splats | None:
        return self.frame.enter(self.rest) if self.frame and self.rest else self.rest

    def whole(self, changed: Splats, freeze_geometry: bool = False) -> Splats:
        """The whole splat in its own frame with `changed` (in the cameras') in the place of the free ones, which come first."""
        back = self.frame.leave(changed) if self.frame else changed
        if freeze_geometry:
            back = replace(back, means=self.own.means.to(back.means), scales=self.own.scales.to(back.scales))
        return joined(back, self.rest)

    def kept(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with the splats that the run itself does not know."""
        rest = {f"rest.{name}": value for name, value in vars(self.rest).items()} if self.rest else {}
        return replace(checkpoint, tensors={**checkpoint.tensors, **rest})


def whole_splat(checkpoint: Checkpoint, settings: Settings) -> Splats:
    """The splat of a checkpoint that `Subject.kept` made, in its own frame; `settings` of its run."""
    frame = Frame(tuple(settings["Frame.centre"]), settings["Frame.radius"]) if "Frame.radius" in settings else None
    changed, rest = checkpoint.splats(), checkpoint.group("rest")
    return Subject(changed, Splats(**rest) if rest else None, frame).whole(changed)


def divided(splats: Splats, selection: Selection | None) -> tuple[Splats, Splats | None]:
    """(what may change, what may not)."""
    if selection is None:
        return splats, None
    mask = selection.mask(splats.means)
    return splats.map(lambda x: x[mask]), None if mask.all() else splats.map(lambda x: x[~mask])


def joined(first: Splats, second: Splats | None) -> Splats:
    """Both, where the first is; the one with fewer bands of colour gets more, which are 0."""
    if second is None:
        return first
    second = second.map(lambda x: x.to(first.means.device))
    bands = max(first.sh.shape[1], second.sh.shape[1])
    grown = [replace(s, sh=torch.nn.functional.pad(s.sh, (0, 0, 0, bands - s.sh.shape[1]))) for s in (first, second)]
    return Splats(*(torch.cat([getattr(s, field.name) for s in grown]) for field in fields(Splats)))


def limited(guidance: Guidance | ImageTargets, strength: float) -> Guidance | ImageTargets:
    """`guidance` that adds only `strength` of the noise that it would add at most."""
    below = lambda t: guidance.t_min + strength * (t - guidance.t_min)
    if strength == 1:
        return guidance
    if isinstance(guidance, ImageTargets):
        return guidance.limited(strength)
    if not hasattr(guidance, "t_max_start"):
        return replace(guidance, t_max=below(guidance.t_max))
    top = below(guidance.t_max_start)
    last = min(guidance.t_max, top)
    most = {"t_max_start": top, "t_max": last, **guidance.reach(top, last)}
    return replace(guidance, **{name: min(getattr(guidance, name), t) for name, t in most.items()})
