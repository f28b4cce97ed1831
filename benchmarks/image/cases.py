"""The cases of the comparison: one picture to a splat with the camera model, the text model, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from demo import score, world
from demo.checkpoint import CAMERA_PRIOR, PRIOR
from demo.prior import DemoCameraPrior
from lucid_core.cameras import CameraRanges
from lucid_core.conditioning.picture import Picture, PictureView
from lucid_core.conditioning.view_prompts import ViewBlend
from lucid_core.guidance.base import Guidance
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource, Mix, MixedSource
from lucid_core.optimize.config import PRESETS, DreamConfig
from lucid_core.settings import replace_settings, require
from lucid_core.starts.shapes import PointCloud

from ..quality.cases import Case, hash_of, key_of, text_prior
from ..quality.cases import plan as plan_quality
from .methods import METHODS, Model

TEXT = "text"  # the label of the text model's workflow, which sees no picture
ELEVATIONS_DEG = 15.0, 30.0  # of the picture, for even and odd seeds
RADIUS = 5.3  # of all cameras, in world units


@dataclass(frozen=True)
class PictureCase:
    """All settings that a splat depends on; see `quality.cases.Case` and `methods.Method`. elevation_deg: of
    the picture.
    """

    label: str
    prompt: str
    seed: int
    elevation_deg: float
    guidances: tuple[tuple[Model, Guidance | ImageTargets], ...]
    mixes: tuple[Mix, ...]
    config: DreamConfig
    blend: ViewBlend
    cameras: CameraRanges
    start: PointCloud
    start_seed: int

    @property
    def key(self) -> str:
        settings = repr(replace(self, label="")) + hash_of(PRIOR) + hash_of(CAMERA_PRIOR)
        return key_of(self.prompt, self.seed, settings)

    def source(self) -> GuidanceSource | MixedSource:
        """What guides the run."""
        camera, text = camera_prior(), text_prior()
        shown = picture(world.parse(self.prompt), self.elevation_deg).at(self.config.budget.resolution)
        prompts = camera.prompts(shown)
        prior_of = {
            "camera": lambda guidance: GuidanceSource(camera, guidance, prompts),
            "text": lambda guidance: GuidanceSource(
                text, guidance, text.prompts(self.prompt, blend=self.blend)
            ),
        }
        first, *others = [prior_of[model](guidance) for model, guidance in self.guidances]
        for other, mix in zip(others, self.mixes, strict=True):
            first = MixedSource(first, other, mix)
        return first


@lru_cache
def camera_prior() -> DemoCameraPrior:
    return DemoCameraPrior()


def picture(thing: world.Thing, elevation_deg: float) -> Picture:
    """The true view of the front at `elevation_deg`, framed as by the score's cameras."""
    front = score.truth(thing, 1, elevation_deg)
    return Picture(front.rgb[0], front.mask[0, ..., None], PictureView(elevation_deg=elevation_deg))


def elevation_of(seed: int) -> float:
    """Elevation of the picture in degrees."""
    return ELEVATIONS_DEG[seed % len(ELEVATIONS_DEG)]


def plan(prompts: Sequence[str], seeds: Sequence[int], methods: Sequence[str]) -> list[PictureCase | Case]:
    """All cases, ordered by object. Raises BadSetting for invalid arguments."""
    for name in methods:
        require(name in (TEXT, *METHODS), "methods", repr(name), f"one of {', '.join((TEXT, *METHODS))}")
    base = plan_quality(prompts, seeds, ["default"], [1.0])
    return [case_of(case, name) for case in base for name in methods]


def case_of(base: Case, name: str) -> PictureCase | Case:
    """The case of one method on the object, seed, start and cameras of `base`."""
    if name == TEXT:
        return replace(base, label=TEXT)
    method = METHODS[name]
    fixed = {"radius_min": RADIUS, "radius_max": RADIUS, "fovy_min_deg": score.FOVY_DEG}
    fixed |= {"fovy_max_deg": score.FOVY_DEG} | {
        f"{of}_end{unit}": value
        for of, unit, value in (
            ("radius_min", "", RADIUS),
            ("radius_max", "", RADIUS),
            ("fovy_min", "_deg", score.FOVY_DEG),
            ("fovy_max", "_deg", score.FOVY_DEG),
        )
    }
    return PictureCase(
        label=name,
        prompt=base.prompt,
        seed=base.seed,
        elevation_deg=elevation_of(base.seed),
        guidances=method.guidances,
        mixes=method.mixes,
        config=replace_settings(PRESETS["cpu"], steps=method.steps, **method.config),
        blend=base.blend,
        cameras=replace(base.cameras, **fixed),
        start=base.start,
        start_seed=base.start_seed,
    )
