"""The socket types of the pack and the data they carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.cameras import CameraRanges, SizedCameras
from ..lucid_core.conditioning.control_images import Hint
from ..lucid_core.conditioning.view_prompts import VIEWS, ViewBlend
from ..lucid_core.guidance.base import Guidance
from ..lucid_core.guidance.image_targets import ImageTargets
from ..lucid_core.guidance.mixing import Mix, require_mode
from ..lucid_core.optimize.config import OptimizerConfig
from ..lucid_core.optimize.selection import Selection

Conditioning = list  # ComfyUI's CONDITIONING: [[embedding, options], ...]


@dataclass(frozen=True)
class Control:
    """A CONTROL_NET, the hint rendered for it from each view, and the settings of the Apply ControlNet node.

    net: None = the ControlNets attached to the CONDITIONINGs, which keep their own strength and range.
    strength: 0 = off. start, end: active part of the noise schedule; 0 = highest noise level, 1 = lowest.
    """

    hint: Hint = field(repr=False)
    net: Any | None = field(repr=False)
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class LucidPromptData:
    """A positive CONDITIONING for each of VIEWS, the negative one, the inversion one, and their controls.

    text: the prompt as entered; "" if made from CONDITIONINGs. inverse: conditioning of the DDIM inversion.
    blend: how neighbouring views are blended.
    """

    text: str
    # not in the repr, because error reports contain it
    views: tuple[Conditioning, Conditioning, Conditioning, Conditioning] = field(repr=False)
    negative: Conditioning = field(repr=False)
    inverse: Conditioning = field(repr=False)
    blend: ViewBlend
    controls: tuple[Control, ...] = ()

    def conditionings(self) -> dict[str, Conditioning]:
        """All conditionings by name: VIEWS, negative and inverse."""
        return {**dict(zip(VIEWS, self.views)), "negative": self.negative, "inverse": self.inverse}


@dataclass(frozen=True)
class LucidGuidanceData:
    """A guidance method with the MODEL, VAE and prompt that it uses."""

    model: Any = field(repr=False)
    vae: Any = field(repr=False)
    prompt: LucidPromptData
    method: Guidance | ImageTargets


@dataclass(frozen=True)
class LucidMixData:
    """Two guidance sources; each may itself be a mix. Raises BadSetting if the mode does not support them."""

    first: LucidGuidanceData | LucidMixData
    second: LucidGuidanceData | LucidMixData
    mix: Mix

    def __post_init__(self) -> None:
        require_mode(self.mix, methods_of(self))


def methods_of(guidance: LucidGuidanceData | LucidMixData) -> list[Guidance | ImageTargets]:
    """The methods of all guidance sources, in order."""
    if isinstance(guidance, LucidMixData):
        return [*methods_of(guidance.first), *methods_of(guidance.second)]
    return [guidance.method]


LucidPromptType = IO.Custom("LUCID_PROMPT")
LucidGuidanceType = IO.Custom("LUCID_GUIDANCE")
LucidCamerasType = IO.Custom("LUCID_CAMERAS")
LucidOptimizerType = IO.Custom("LUCID_OPTIMIZER")
LucidSelectionType = IO.Custom("LUCID_SELECTION")
LucidViewsType = IO.Custom("LUCID_VIEWS")
LucidPromptType.Type = LucidPromptData
LucidGuidanceType.Type = LucidGuidanceData | LucidMixData
LucidCamerasType.Type = CameraRanges
LucidOptimizerType.Type = OptimizerConfig
LucidSelectionType.Type = Selection
LucidViewsType.Type = SizedCameras
