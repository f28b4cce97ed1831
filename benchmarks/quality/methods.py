"""What `python -m benchmarks quality` compares: the shipped recipe, ISM as the preset cpu has it, its rivals, and both with one
thing changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from lucid_core.densify import NO_GROWTH, Densify
from lucid_core.dream import PRESETS as DREAMS
from lucid_core.ism import PRESETS
from lucid_core.methods import METHODS as RIVALS
from lucid_core.score import Distillation, Guidance
from lucid_core.targets import PRESETS as TARGETS
from lucid_core.targets import ImageTargets

CPU = PRESETS["cpu"]
# The rivals look at the noise levels that ISM looks at, where they draw them as it does: the score is what differs.
LEVELS = {f.name: getattr(CPU, f.name) for f in fields(Distillation)}
# SDS has its own besides: its pull on what a view shows wrong is strong at little noise (`python -m benchmarks pull`), where
# its push away from a true view is least.
SDS_LEVELS = LEVELS | {"t_min": 0.02, "t_max": 0.3}
STEPS, SHARE = 1400, 0.68  # of the shipped recipe: its steps, and the part of them that is of image targets
GROWING = replace(DREAMS["cpu"].densify, grow_grad2d=Densify().grow_grad2d)


@dataclass(frozen=True)
class Method:
    """A guidance, what follows it, and what it changes in the DreamConfig `cpu` and in the workflow's ViewBlend.

    surface: image targets in the share `surface_share` of the steps, at their end. view_words: False asks for the bare prompt
    from everywhere.
    """

    guidance: Guidance
    surface: ImageTargets | None = None
    surface_share: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    blend: dict[str, Any] = field(default_factory=dict)
    view_words: bool = True


def _rival(name: str, **settings: Any) -> Method:
    return Method(RIVALS[name](**settings))


def _ism(**changes: Any) -> Method:
    return Method(replace(CPU, **changes))


def _recipe(shape: Guidance = CPU, steps: int = STEPS, share: float = SHARE, **changes: Any) -> Method:
    """Steps of one view: first by `shape`, then by image targets with `changes`."""
    return Method(shape, replace(TARGETS["cpu"], **changes), share, {"steps": steps, "views": 1})


METHODS = {
    "default": _recipe(),
    # About as many evaluations as the recipe has.
    "targets": _recipe(share=1.0, fits=48, t=0.6, cfg=4.0),
    "sds_then_targets": _recipe(RIVALS["SDS"](cfg=7.5, **SDS_LEVELS), steps=1848, share=0.515),
    "default_no_growth": _recipe(grow_grad2d=NO_GROWTH),
    "default_prune_0.005": _recipe(prune_opacity=0.005),  # as Lucid Optimizer has it
    "default_no_inversion": _recipe(inversion_steps=0),
    "default_24_views": _recipe(views=24, fits=310, kept=48),
    "default_kept_48": _recipe(kept=48),
    "default_t_0.36": _recipe(t=0.36, t_last=0.15, cfg=4.0, cfg_last=2.5),
    "default_no_squares": _recipe(square_weight=0.0),
    "default_edges": _recipe(edge_weight=1.0),
    "default_entropy": _recipe(entropy_weight=0.01),
    "default_aspect": _recipe(aspect_weight=0.03),
    "default_scale": _recipe(scale_weight=0.3),
    "ism": _ism(),
    "sds": _rival("SDS", cfg=7.5, **SDS_LEVELS),
    "sds_high": _rival("SDS", cfg=30.0, **SDS_LEVELS),  # the paper's 100 is for a model over a hundred times the size
    "sds_100": _rival("SDS", cfg=100.0, **SDS_LEVELS),
    "sds_same_levels": _rival("SDS", cfg=7.5, **LEVELS),
    "csd": _rival("CSD", **LEVELS),
    "sdi": _rival("SDI"),
    "isd": _rival("ISD", **LEVELS),
    "sctd": _rival("SCTD", **LEVELS),
    "tsm": _rival("TSM", **asdict(CPU)),
    "ism_fast": Method(PRESETS["fast"]),
    "ism_official": Method(PRESETS["official"]),
    "ism_delta_t_0.02": _ism(delta_t=0.02, delta_t_start=0.02),
    "ism_delta_t_0.2": _ism(delta_t=0.2, delta_t_start=0.2),
    "ism_inversion_0": _ism(inversion_steps=0),
    "ism_inversion_5": _ism(inversion_steps=5, delta_s=0.2),  # the official ones
    "ism_cfg_2.5": _ism(cfg=2.5, cfg_start=0.0),  # the same all the time
    "ism_cfg_7.5": _ism(cfg=7.5, cfg_start=0.0),
    "ism_cfg_15": _ism(cfg=15.0, cfg_start=0.0),
    "ism_hard_views": Method(CPU, blend={"blend_deg": 0.0}),
    "ism_no_views": Method(CPU, view_words=False),
    "ism_perp_neg": Method(CPU, blend={"perp_neg": 2.0}),  # the official strength
    "ism_growth": Method(CPU, config={"densify": GROWING}),
    "ism_soft_views": Method(CPU, blend={"blend_deg": 90.0, "overhead_deg": 90.0}),  # the official words
    "ism_soft_views_overhead": Method(CPU, blend={"blend_deg": 90.0, "overhead_deg": 60.0}),  # from 15 degrees on
    "ism_residual": Method(CPU, config={"image_residual": True}),
    "sds_residual": Method(RIVALS["SDS"](cfg=7.5, **SDS_LEVELS), config={"image_residual": True}),
    "ism_average_8": Method(CPU, config={"pixel_average": 8}),
    "ism_limit": Method(CPU, config={"pixel_limit": 0.05}),
    "ism_1_view": Method(CPU, config={"views": 1}),
    "ism_2_views": Method(CPU, config={"views": 2}),
    "ism_fast_2_views": Method(PRESETS["fast"], config={"views": 2}),
    "sds_2_views": Method(RIVALS["SDS"](cfg=7.5, **SDS_LEVELS), config={"views": 2}),
    "ism_3_views_no_inversion": Method(replace(CPU, inversion_steps=0), config={"views": 3}),
}
