"""A LUCID_GUIDANCE, mixed or not, as lucid_core's Teacher while the host holds its models ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ...lucid_core.checkpoint import Settings, fields_of
from ...lucid_core.teacher import Teacher, Teachers
from ..types import LucidGuidanceData, LucidMixData
from .models import identity, patch_values, with_prior

T = TypeVar("T")


def with_teacher(
    guidance: LucidGuidanceData | LucidMixData, views: int, resolution: int, body: Callable[[Teacher | Teachers], T]
) -> T:
    """Run `body` inside the host's sampling call of the guidance's model; of a mix, inside those of all its models, nested.

    Which of them is in the GPU's memory is the host's to decide: each is loaded again when it is asked.
    """
    if isinstance(guidance, LucidMixData) and are_of_one_model(guidance.first, guidance.second):
        first, second = guidance.first, guidance.second
        teachers = lambda prior, prompts: (Teacher(prior, one.method, prompts) for one in (first, second))
        views = max(views_of(first, views), views_of(second, views))
        return with_prior(first, views, resolution, lambda *asked: body(Teachers(*teachers(*asked), guidance.mix)))
    if isinstance(guidance, LucidMixData):
        both = lambda first, second: body(Teachers(first, second, guidance.mix))
        within = lambda first: with_teacher(guidance.second, views, resolution, lambda second: both(first, second))
        return with_teacher(guidance.first, views, resolution, within)
    views = views_of(guidance, views)
    return with_prior(guidance, views, resolution, lambda prior, prompts: body(Teacher(prior, guidance.method, prompts)))


def are_of_one_model(first: LucidGuidanceData | LucidMixData, second: LucidGuidanceData | LucidMixData) -> bool:
    """Two methods that ask one model about one prompt: its VAE is then copied once."""
    if not (isinstance(first, LucidGuidanceData) and isinstance(second, LucidGuidanceData)):
        return False
    return first.model is second.model and first.vae is second.vae and first.prompt is second.prompt


def views_of(guidance: LucidGuidanceData, views: int) -> int:
    """How many views its model is asked about at a time; `views` where its method does not say."""
    return getattr(guidance.method, "views", views)


def depends_on(guidance: LucidGuidanceData | LucidMixData) -> Settings:
    """What a run depends on in its guidance: method, prompt, model and VAE, of each one in a mix."""
    if not isinstance(guidance, LucidMixData):
        return fields_of(guidance.method) | identity(guidance)
    return fields_of(guidance.mix) | _named(depends_on(guidance.first), depends_on(guidance.second))


def held_by_patches(guidance: LucidGuidanceData | LucidMixData) -> Settings:
    """Those of `depends_on` that the models' patches may change as they work."""
    if not isinstance(guidance, LucidMixData):
        return dict(patch_values(guidance))
    return _named(held_by_patches(guidance.first), held_by_patches(guidance.second))


def _named(first: Settings, second: Settings) -> Settings:
    parts = {"first": first, "second": second}
    return {f"{place}.{name}": value for place, part in parts.items() for name, value in part.items()}
