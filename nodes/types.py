"""The socket types of the pack and the data they carry."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from comfy_api.latest import IO

from ..lucid_core.cameras import CameraRanges, SizedCameras
from ..lucid_core.conditioning.control_images import Hint
from ..lucid_core.conditioning.picture import Picture
from ..lucid_core.conditioning.picture_prompt import PicturePrompt
from ..lucid_core.conditioning.view_prompts import VIEWS, Prompts, ViewBlend
from ..lucid_core.field.grid import Field
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

    def prompts(self, conds: dict[str, Any]) -> Prompts:
        """The prompts of a guidance source, with the `conditionings` as its prior reads them."""
        views, hints = tuple(conds[view] for view in VIEWS), tuple(each.hint for each in self.controls)
        return Prompts(views, conds["negative"], conds["inverse"], self.blend, hints)

    def contents(self) -> list:
        """What a run depends on besides text and controls."""
        return [self.views, self.negative, self.inverse, asdict(self.blend)]


@dataclass(frozen=True)
class LucidPictureData:
    """A picture as prompt, for models that are told the camera.

    cameras: its CONDITIONINGs as in `PicturePrompt`. negative: without picture and camera, also for the DDIM
    inversion.
    """

    cameras: tuple[Conditioning, ...] = field(repr=False)
    negative: Conditioning = field(repr=False)
    picture: Picture = field(repr=False)
    text: ClassVar[str] = ""
    controls: ClassVar[tuple[Control, ...]] = ()

    def conditionings(self) -> dict[str, Conditioning]:
        """All conditionings by name."""
        cameras = {f"camera {k}": cond for k, cond in enumerate(self.cameras)}
        return {**cameras, "negative": self.negative, "inverse": self.negative}

    def prompts(self, conds: dict[str, Any]) -> PicturePrompt:
        """See LucidPromptData."""
        cameras = tuple(conds[f"camera {k}"] for k in range(len(self.cameras)))
        return PicturePrompt(cameras, conds["negative"], conds["inverse"], self.picture)

    def contents(self) -> list:
        """See LucidPromptData."""
        picture = self.picture
        pixels = [picture.rgb, picture.alpha, picture.disparity]
        return [self.cameras, self.negative, pixels, asdict(picture.view)]


@dataclass(frozen=True)
class LucidGuidanceData:
    """A guidance method with the MODEL, VAE and prompt that it uses."""

    model: Any = field(repr=False)
    vae: Any = field(repr=False)
    prompt: LucidPromptData | LucidPictureData
    method: Guidance | ImageTargets


@dataclass(frozen=True)
class LucidMixData:
    """Two guidance sources; each may itself be a mix. Raises BadSetting if the mode does not support them."""

    first: LucidGuidanceData | LucidMixData
    second: LucidGuidanceData | LucidMixData
    mix: Mix

    def __post_init__(self) -> None:
        require_mode(self.mix, methods_of(self))

    @property
    def makes_targets(self) -> bool:
        """Whether both models make one set of image targets together."""
        return self.mix.mode == "add" and isinstance(methods_of(self)[0], ImageTargets)


@dataclass(frozen=True)
class LucidTexts:
    """A prompt, and other texts that it is compared with, by name: CONDITIONINGs for each of VIEWS."""

    prompt: LucidPromptData
    others: dict[str, tuple[Conditioning, ...]] = field(repr=False)
    controls: ClassVar[tuple[Control, ...]] = ()

    def conditionings(self) -> dict[str, Conditioning]:
        """All conditionings by name."""
        named = {
            f"{text}, {view}": cond for text, conds in self.others.items() for view, cond in zip(VIEWS, conds)
        }
        return {**named, **self.prompt.conditionings()}

    def prompts(self, conds: dict[str, Any]) -> tuple[Prompts, dict[str, Prompts]]:
        """The prompt and the other texts, with the `conditionings` as a prior reads them."""
        own = self.prompt.prompts(conds)
        others = {
            text: Prompts(tuple(conds[f"{text}, {view}"] for view in VIEWS), own.negative, own.inverse)
            for text in self.others
        }
        return own, others


@dataclass(frozen=True)
class LucidJudgeData:
    """The MODEL and VAE that judge a splat by texts."""

    model: Any = field(repr=False)
    vae: Any = field(repr=False)
    prompt: LucidTexts


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
LucidFieldType = IO.Custom("LUCID_FIELD")
LucidPromptType.Type = LucidPromptData | LucidPictureData
LucidGuidanceType.Type = LucidGuidanceData | LucidMixData
LucidCamerasType.Type = CameraRanges
LucidOptimizerType.Type = OptimizerConfig
LucidSelectionType.Type = Selection
LucidViewsType.Type = SizedCameras
LucidFieldType.Type = Field
