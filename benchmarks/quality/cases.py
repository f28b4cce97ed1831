"""The cases of the comparison: one method, object and seed each. All methods get the same number of model
evaluations, except those that end in image targets.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from demo import world
from demo.checkpoint import PRIOR
from demo.prior import DemoPrior
from lucid_core.cameras import CameraRanges
from lucid_core.conditioning.view_prompts import Prompts, ViewBlend
from lucid_core.diffusion.prior import Prior
from lucid_core.guidance.base import Guidance
from lucid_core.guidance.image_targets import PRESETS as TARGETS
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import GuidanceSource, Mix, MixedSource
from lucid_core.optimize.config import PRESETS, Budget, DreamConfig
from lucid_core.settings import bounds_of, replace_settings, require
from lucid_core.starts.shapes import PointCloud

from .methods import METHODS, Method

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "api" / "text_to_splat.json"
DRAWS = 400  # steps in which model evaluations are counted; gives the mean to about 1%
THINGS = f"a thing of the demo world: one of {', '.join(world.KINDS)} in one of {', '.join(world.COLORS)}"


@dataclass(frozen=True)
class Case:
    """All settings that a splat depends on; `label` is the name of its method."""

    label: str
    prompt: str
    seed: int
    guidance: Guidance
    surface: ImageTargets | None  # replaces the guidance in the last fraction `surface_share` of the steps
    surface_share: float
    config: DreamConfig
    blend: ViewBlend
    view_words: bool
    cameras: CameraRanges
    start: PointCloud
    start_seed: int

    @property
    def key(self) -> str:
        """A file name. Its hash covers all settings except the label, and the prior, so cases with the same
        settings share it.
        """
        return key_of(self.prompt, self.seed, repr(replace(self, label="")) + hash_of(PRIOR))

    def source(self) -> GuidanceSource | MixedSource:
        """What guides the run."""
        prior = text_prior()
        prompts = prior.prompts(self.prompt, blend=self.blend)
        if not self.view_words:
            prompts = replace(prompts, views=(prior.caption(self.prompt),) * 4)
        source = GuidanceSource(prior, self.guidance, prompts)
        if self.surface is None:
            return source
        surface = GuidanceSource(prior, self.surface, prompts)
        return MixedSource(source, surface, Mix("sequence", self.surface_share))


def key_of(prompt: str, seed: int, settings: str) -> str:
    words = "-".join(re.findall("[a-z0-9]+", prompt.lower()))[:60]
    return f"{words}-{seed}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


@lru_cache
def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache
def text_prior() -> DemoPrior:
    return DemoPrior()


def workflow() -> Case:
    """The settings of the shipped workflow, as a case with the label "default"."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    settings = lambda kind, node: {
        name: inputs[node][key]
        for name in bounds_of(kind)
        for key in (name, f"preset.{name}")
        if key in inputs[node]
    }
    cloud, run, ism = inputs["LucidPointCloud"], inputs["LucidDream"], inputs["LucidISM"]
    color = tuple(byte / 255 for byte in bytes.fromhex(cloud["color"].removeprefix("#")))
    return Case(
        label="default",
        prompt=inputs["LucidPrompt"]["text"],
        seed=run["seed"],
        guidance=ISM(**{name: ism[f"preset.{name}"] for name in bounds_of(ISM) if f"preset.{name}" in ism}),
        surface=TARGETS[ism["preset"]],
        surface_share=ism["surface_share"],
        config=replace_settings(PRESETS[run["preset"]], **settings(Budget, "LucidDream")),
        blend=ViewBlend(**settings(ViewBlend, "LucidPrompt")),
        view_words=True,
        cameras=CameraRanges(**settings(CameraRanges, "LucidCameras")),
        start=PointCloud(shape=cloud["shape"], color=color, **settings(PointCloud, "LucidPointCloud")),
        start_seed=cloud["seed"],
    )


def with_method(case: Case, method: Method) -> Case:
    preset = PRESETS["cpu"].budget
    return replace(
        case,
        guidance=method.guidance,
        surface=method.surface,
        surface_share=method.surface_share,
        config=replace_settings(
            case.config, **{"steps": preset.steps, "views": preset.views, **method.config}
        ),
        blend=replace(case.blend, **method.blend),
        view_words=method.view_words,
    )


def plan(
    prompts: Sequence[str], seeds: Sequence[int], methods: Sequence[str], budgets: Sequence[float]
) -> list[Case]:
    """All cases, ordered by object, so that an unfinished table still compares the same objects.

    A budget is a fraction of the model evaluations that "ism" needs for the steps of Lucid Dream's preset
    cpu. A method with fewer evaluations per step gets more steps; schedules are fractions of the run and
    scale with it. Methods that end in image targets have their own number of steps, of which the budget is a
    fraction. Raises ValueError for invalid arguments.
    """
    for prompt in prompts:
        require(world.parse(prompt) is not None, "prompts", repr(prompt), THINGS)
    for seed in seeds:
        require(0 <= seed < 2**63, "seeds", seed, "0 to 2^63 - 1")
    for name in methods:
        require(name in METHODS, "methods", repr(name), f"one of {', '.join(METHODS)}")
    for budget in budgets:
        require(0 < budget < math.inf, "budget", budget, "above 0")
    base = workflow()
    ism = with_method(base, METHODS["ism"])
    evaluations = ism.config.budget.steps * evaluations_a_step(ism)
    templates = []
    for name in methods:
        case = with_method(base, METHODS[name])
        steps = case.config.budget.steps if case.surface else evaluations / evaluations_a_step(case)
        for budget in budgets:
            label = name if budget == 1 else f"{name}@{budget:g}"
            templates.append(
                replace(
                    case,
                    label=label,
                    config=replace_settings(case.config, steps=max(round(budget * steps), 1)),
                )
            )
    return [
        replace(case, prompt=prompt, seed=seed) for seed in seeds for prompt in prompts for case in templates
    ]


def evaluations_a_step(case: Case) -> float:
    """Mean number of model evaluations (latents times conditionings) in a step of `case`."""
    prior, generator = _Counter(), torch.Generator().manual_seed(0)
    prompts = Prompts((None,) * 4, None, None, case.blend)
    for i in range(DRAWS):
        progress = i / DRAWS
        views = case.cameras.sample(case.config.budget.views, progress, 8, 8, generator)
        conds = prompts.at(prior, views.azimuth_rad, views.elevation_rad)
        case.guidance.gradient(
            prior, torch.zeros(case.config.budget.views, 4, 1, 1), conds, progress, generator
        )
    return prior.evaluations / DRAWS


class _Counter(Prior):
    """A prior without a model, which counts evaluations."""

    def __init__(self) -> None:
        self.evaluations = 0

    def encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma(self, t: float) -> float:
        return t / (1.001 - t)

    def blend(self, conds: list[None], weights: Tensor) -> None:
        return None

    def denoise(self, z: Tensor, sigma: float, conds: list[None]) -> list[Tensor]:
        self.evaluations += len(z) * len(conds)
        return [z] * len(conds)
