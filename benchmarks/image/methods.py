"""The methods that `python -m benchmarks image` compares beside the text model's workflow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lucid_core.guidance.base import Guidance
from lucid_core.guidance.image_targets import PRESETS as TARGETS
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import Mix

Model = Literal["camera", "text"]


@dataclass(frozen=True)
class Method:
    """Guidances of the two models, and how each is mixed with all before it.

    config: changes to the DreamConfig `cpu`.
    """

    guidances: tuple[tuple[Model, Guidance | ImageTargets], ...]
    mixes: tuple[Mix, ...]
    steps: int
    config: dict[str, Any] = field(default_factory=dict)


# The camera model's views agree in shape even from pure noise, so its targets begin there: the first rounds
# make the shape, and the renders of later ones keep more of it.
SHAPE = replace(
    TARGETS["cpu"],
    views=12,
    fits=40,
    kept=24,
    cfg=2.5,
    cfg_last=1.5,
    t=1.0,
    t_last=0.35,
    t_spread=0.0,
    fall=0.8,
    inversion_steps=0,
    sampling_steps=6,
    last=0.1,
)
# At low noise levels the text model predicts better: it was trained for longer.
DETAIL = replace(
    TARGETS["cpu"],
    cfg=2.0,
    cfg_last=2.0,
    t=0.25,
    t_last=0.25,
    t_spread=0.0,
    inversion_steps=2,
    sampling_steps=4,
)

METHODS = {
    "camera": Method((("camera", SHAPE),), (), steps=640, config={"views": 1}),
    "both": Method(
        (("camera", SHAPE), ("text", DETAIL)),
        (Mix("add", 1.0),),
        steps=640,
        config={"views": 1},
    ),
}
