"""The methods that `python -m benchmarks quality` compares: the shipped recipe, ISM with the preset cpu,
baselines, and variants with one change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from lucid_core.guidance.base import Distillation, Guidance
from lucid_core.guidance.baselines import METHODS as BASELINES
from lucid_core.guidance.image_targets import PRESETS as TARGETS
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.ism import PRESETS
from lucid_core.optimize.config import PRESETS as DREAMS
from lucid_core.optimize.densify import Densify
from lucid_core.settings import NO_GROWTH

CPU = PRESETS["cpu"]
# Baselines that draw noise levels like ISM get the same range, so that only the gradient differs.
LEVELS = {f.name: getattr(CPU, f.name) for f in fields(Distillation)}
# SDS also has its own range: at low noise its correction of defects is strong and its gradient at true views
# is smallest (`python -m benchmarks pull`).
SDS_LEVELS = LEVELS | {"t_min": 0.02, "t_max": 0.3}
STEPS, SHARE = 1300, 0.7  # the shipped recipe: steps, and the fraction of them with image targets
STRIDE = {"inversion_steps": 1, "delta_s": 1.0}  # of the preset fast
GROWING = replace(DREAMS["cpu"].optimizer.densify, grow_grad2d=Densify().grow_grad2d)


@dataclass(frozen=True)
class Method:
    """A guidance, optional image targets after it, and changes to the DreamConfig `cpu` and the workflow's
    ViewBlend.

    surface: image targets in the last fraction `surface_share` of the steps. view_words: False uses the
    prompt without view words for all views.
    """

    guidance: Guidance
    surface: ImageTargets | None = None
    surface_share: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    blend: dict[str, Any] = field(default_factory=dict)
    view_words: bool = True


def _baseline(name: str, **settings: Any) -> Method:
    return Method(BASELINES[name](**settings))


def _ism(**changes: Any) -> Method:
    return Method(replace(CPU, **changes))


def _recipe(shape: Guidance = CPU, steps: int = STEPS, share: float = SHARE, **changes: Any) -> Method:
    """Steps of one view: first with the guidance `shape`, then with image targets, changed by `changes`."""
    return Method(shape, replace(TARGETS["cpu"], **changes), share, {"steps": steps, "views": 1})


METHODS = {
    "default": _recipe(),
    # About as many evaluations as the recipe.
    "targets": _recipe(share=1.0, fits=43, t_last=0.08),
    "sds_then_targets": _recipe(BASELINES["SDS"](cfg=7.5, **SDS_LEVELS), steps=1496, share=0.608),
    "default_no_growth": _recipe(grow_grad2d=NO_GROWTH),
    "default_prune_0.005": _recipe(prune_opacity=0.005),  # the value of Lucid Optimizer
    "default_inversion": _recipe(replace(CPU, **STRIDE), inversion_steps=2, sampling_steps=4),
    "default_24_views": _recipe(views=24, fits=72, kept=48),
    "default_kept_48": _recipe(kept=48),
    "default_t_0.2": _recipe(fits=155, t=0.2, t_last=0.08, cfg=2.0),
    "default_60_fits": _recipe(fits=60),
    "default_long": _recipe(steps=2000, share=0.8, fits=29),  # of text_to_field_to_splat
    "default_no_squares": _recipe(square_weight=0.0),
    "default_edges": _recipe(edge_weight=1.0),
    "default_entropy": _recipe(entropy_weight=0.01),
    "default_aspect": _recipe(aspect_weight=0.03),
    "default_scale": _recipe(scale_weight=0.3),
    "ism": _ism(),
    "sds": _baseline("SDS", cfg=7.5, **SDS_LEVELS),
    # The paper's cfg of 100 is for a model over a hundred times as large.
    "sds_high": _baseline("SDS", cfg=30.0, **SDS_LEVELS),
    "sds_100": _baseline("SDS", cfg=100.0, **SDS_LEVELS),
    "sds_same_levels": _baseline("SDS", cfg=7.5, **LEVELS),
    "csd": _baseline("CSD", **LEVELS),
    "sdi": _baseline("SDI"),
    "isd": _baseline("ISD", **LEVELS),
    "sctd": _baseline("SCTD", **LEVELS),
    "tsm": _baseline("TSM", **asdict(CPU) | STRIDE),
    "ism_fast": Method(PRESETS["fast"]),
    "ism_official": Method(PRESETS["official"]),
    "ism_delta_t_0.02": _ism(delta_t=0.02, delta_t_start=0.02),
    "ism_delta_t_0.2": _ism(delta_t=0.2, delta_t_start=0.2),
    "ism_inversion_1": _ism(**STRIDE),
    "ism_inversion_5": _ism(inversion_steps=5),  # the official value
    "ism_cfg_2.5": _ism(cfg=2.5, cfg_start=0.0),  # constant
    "ism_cfg_7.5": _ism(cfg=7.5, cfg_start=0.0),
    "ism_cfg_15": _ism(cfg=15.0, cfg_start=0.0),
    "ism_hard_views": Method(CPU, blend={"blend_deg": 0.0}),
    "ism_no_views": Method(CPU, view_words=False),
    "ism_perp_neg": Method(CPU, blend={"perp_neg": 2.0}),  # the official strength
    "ism_growth": Method(CPU, config={"densify": GROWING}),
    "ism_soft_views": Method(CPU, blend={"blend_deg": 90.0, "overhead_deg": 90.0}),  # the official words
    "ism_soft_views_overhead": Method(
        CPU, blend={"blend_deg": 90.0, "overhead_deg": 60.0}
    ),  # from 15 degrees on
    "ism_residual": Method(CPU, config={"image_residual": True}),
    "sds_residual": Method(BASELINES["SDS"](cfg=7.5, **SDS_LEVELS), config={"image_residual": True}),
    "ism_average_8": Method(CPU, config={"pixel_average": 8}),
    "ism_limit": Method(CPU, config={"pixel_limit": 0.05}),
    "ism_1_view": Method(CPU, config={"views": 1}),
    "ism_2_views": Method(CPU, config={"views": 2}),
    "ism_fast_2_views": Method(PRESETS["fast"], config={"views": 2}),
    "sds_2_views": Method(BASELINES["SDS"](cfg=7.5, **SDS_LEVELS), config={"views": 2}),
    "ism_3_views": Method(CPU, config={"views": 3}),
}
