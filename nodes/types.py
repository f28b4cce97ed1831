"""Our socket types and what travels through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.cameras import CameraRanges
from ..lucid_core.dream import DreamConfig
from ..lucid_core.hints import Hint
from ..lucid_core.refine import Selection
from ..lucid_core.score import Guidance
from ..lucid_core.targets import ImageTargets
from ..lucid_core.teacher import Mix, require_mode
from ..lucid_core.views import VIEWS, ViewBlend

Conditioning = list  # the host's CONDITIONING: [[embedding, options], ...]


@dataclass(frozen=True)
class Control:
    """A CONTROL_NET and the hint that it is shown of every view, with the settings of the host's Apply ControlNet.

    Without a `net` it stands for the ControlNets that the CONDITIONINGs bring along; strength and range are then theirs.
    """

    hint: Hint = field(repr=False)
    net: Any | None = field(repr=False)
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class LucidPromptData:
    """One CONDITIONING for each of VIEWS, the negative one and that of the inversion, and what controls them."""

    text: str
    views: tuple[Conditioning, Conditioning, Conditioning, Conditioning] = field(repr=False)  # reprs go into error reports
    negative: Conditioning = field(repr=False)
    inverse: Conditioning = field(repr=False)
    blend: ViewBlend
    controls: tuple[Control, ...] = ()

    def conditionings(self) -> dict[str, Conditioning]:
        """All of them by their names."""
        return {**dict(zip(VIEWS, self.views)), "negative": self.negative, "inverse": self.inverse}


@dataclass(frozen=True)
class LucidGuidanceData:
    """A method with the host's MODEL and VAE that it asks."""

    model: Any = field(repr=False)
    vae: Any = field(repr=False)
    prompt: LucidPromptData
    method: Guidance | ImageTargets


@dataclass(frozen=True)
class LucidMixData:
    """Two guidances, each of which may be a mix again."""

    first: LucidGuidanceData | LucidMixData
    second: LucidGuidanceData | LucidMixData
    mix: Mix

    def __post_init__(self) -> None:
        require_mode(self.mix, methods_of(self))


def methods_of(guidance: LucidGuidanceData | LucidMixData) -> list[Guidance | ImageTargets]:
    if isinstance(guidance, LucidMixData):
        return [*methods_of(guidance.first), *methods_of(guidance.second)]
    return [guidance.method]


LucidPromptType = IO.Custom("LUCID_PROMPT")
LucidGuidanceType = IO.Custom("LUCID_GUIDANCE")
LucidCamerasType = IO.Custom("LUCID_CAMERAS")
LucidOptimizerType = IO.Custom("LUCID_OPTIMIZER")
LucidSelectionType = IO.Custom("LUCID_SELECTION")
LucidPromptType.Type = LucidPromptData
LucidGuidanceType.Type = LucidGuidanceData | LucidMixData
LucidCamerasType.Type = CameraRanges
LucidOptimizerType.Type = DreamConfig
LucidSelectionType.Type = Selection
