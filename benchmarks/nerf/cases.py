"""The cases of `python -m benchmarks nerf`: those of `benchmarks quality`, on splats or on a field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.quality import cases as quality
from benchmarks.quality.cases import Case, hash_of, key_of
from demo import world
from demo.checkpoint import PRIOR
from demo.world import COLORS, Thing
from lucid_core.field.grid import FieldStart
from lucid_core.field.surface import Surface
from lucid_core.optimize.radiance import PRESETS, FieldConfig
from lucid_core.settings import replace_settings

REPRESENTATIONS = ("field", "splats")
CONVERTED = "field_to_splat"  # the splat of a field, as the workflow text_to_field_to_splat makes it
KINDS_OF_PROMPT = ("closed", "open")
COLOR_OF = {  # if the prompt is closed
    **{"mug": "green", "house": "purple", "mushroom": "red", "snowman": "blue"},
    **{"torus": "orange", "cone": "yellow", "cube": "pink"},
}
THINGS = ("mug", "house", "mushroom", "snowman")  # of the comparison
START = FieldStart(resolution=64, size=1.2, extent=2.4)  # the size of the splats' ball
SURFACE, FIT_STEPS = Surface(cells=64), 400  # of the workflow


@dataclass(frozen=True)
class FieldCase:
    """A case of `benchmarks quality`. field: start and settings of a field; None = optimise a splat.
    surface: how the field becomes a splat; None = it stays a field.
    """

    case: Case
    field: tuple[FieldStart, FieldConfig] | None
    surface: Surface | None = None

    @property
    def representation(self) -> str:
        if self.surface:
            return CONVERTED
        return "field" if self.field else "splats"

    @property
    def prompt_kind(self) -> str:
        return "closed" if world.parse(self.case.prompt) else "open"

    @property
    def name(self) -> str:
        return f"{self.representation} {self.case.label} {self.prompt_kind}"

    @property
    def key(self) -> str:
        """A file name. Its hash covers all settings except the label, and the prior."""
        conversion = (self.surface, FIT_STEPS) if self.surface else ()
        settings = repr((replace(self.case, label=""), self.field, *conversion)) + hash_of(PRIOR)
        return key_of(self.case.prompt, self.case.seed, settings)

    def things(self) -> list[Thing]:
        """The right answers: one object, or for an open prompt that of each colour."""
        closed = world.parse(self.case.prompt)
        if closed:
            return [closed]
        kind = self.case.prompt.split()[-1]
        return [Thing(kind, color, rgb) for color, rgb in COLORS.items()]


def plan(
    things: Sequence[str],
    seeds: Sequence[int],
    methods: Sequence[str],
    representations: Sequence[str],
    kinds: Sequence[str],
    budget: float,
) -> list[FieldCase]:
    """All cases; a method with fewer model evaluations a step gets more steps. Raises ValueError."""
    templates = quality.plan(["a green mug"], seeds, methods, [budget])[: len(methods)]
    prompts = [described(thing) if kind == "closed" else f"a {thing}" for kind in kinds for thing in things]
    return [
        of_representation(replace(case, prompt=prompt, seed=seed), representation)
        for seed in seeds
        for prompt in prompts
        for case in templates
        for representation in representations
    ]


def described(thing: str) -> str:
    """The closed prompt of a thing, which names its colour."""
    color = COLOR_OF[thing]
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {thing}"


def of_representation(case: Case, representation: str) -> FieldCase:
    """A field has its preset's gradient at the images, whatever the method."""
    if representation == "splats":
        return FieldCase(case, None)
    preset, settings = PRESETS["cpu"]
    residual = preset.optimizer.pixels.image_residual
    case = replace(case, config=replace_settings(case.config, image_residual=residual))
    return FieldCase(case, (START, settings), SURFACE if representation == CONVERTED else None)
