"""The methods that `python -m benchmarks image` compares beside the text model's workflow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lucid_core.guidance.base import Guidance
from lucid_core.guidance.image_targets import PRESETS as TARGETS
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.ism import PRESETS as ISM
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


# The camera model has seen white backgrounds alone.
WHITE = {"views": 1, "background_share": 0.0}
COARSE = replace(
    TARGETS["cpu"], cfg=2.0, cfg_last=2.0, t=1.0, t_last=0.4, t_spread=0.0, views=8, kept=24, fits=100
)
FINE = replace(TARGETS["cpu"], cfg=1.5, cfg_last=1.0, t=0.4, t_last=0.15)

METHODS = {
    "camera": Method((("camera", COARSE),), (), 1400, WHITE),
    "both": Method(
        (("camera", COARSE), ("text", TARGETS["cpu"])), (Mix("sequence", 0.4),), 1400, {"views": 1}
    ),
}
_ = ISM
