from dataclasses import replace
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.guidance.base import Guidance
from ..lucid_core.guidance.baselines import METHODS
from ..lucid_core.guidance.image_targets import PRESETS as TARGETS
from ..lucid_core.guidance.image_targets import ImageTargets
from ..lucid_core.guidance.ism import ISM, PRESETS
from ..lucid_core.guidance.mixing import Mix
from ..lucid_core.settings import bounds_of
from . import host
from .inputs import CATEGORY, chosen_of, errors_of, inputs_of
from .types import (
    LucidGuidanceData,
    LucidGuidanceType,
    LucidMixData,
    LucidPictureData,
    LucidPromptData,
    LucidPromptType,
)


def options_of(choices: dict[str, Guidance | ImageTargets]) -> list[IO.DynamicCombo.Option]:
    """One option per choice, with its settings as widgets and its values as defaults; advanced ones last."""
    common_first = lambda method: sorted(bounds_of(method), key=lambda name: bounds_of(method)[name].advanced)
    return [
        IO.DynamicCombo.Option(name, inputs_of(method, *common_first(method)))
        for name, method in choices.items()
    ]


def sources() -> list[IO.Input]:
    """Inputs model, vae and prompt. They are lazy so that `check_lazy_status` can check the settings before a
    model is loaded.
    """
    return [
        IO.Model.Input(
            "model",
            lazy=True,
            tooltip="Text-to-image diffusion model, or Stable Zero123, with any LoRAs and patches.",
        ),
        IO.Vae.Input("vae", lazy=True, tooltip="VAE of the model."),
        LucidPromptType.Input(
            "prompt",
            lazy=True,
            tooltip="Prompt that describes the object, from Lucid Prompt or Lucid Prompt From Conditioning; "
            "for Stable Zero123 from Lucid Image Prompt.",
        ),
    ]


def guidance_output() -> IO.Output:
    return LucidGuidanceType.Output(
        display_name="guidance",
        tooltip="Guidance method with its model and prompt, for Lucid Dream.",
    )


def missing(sources: dict[str, Any]) -> list[str]:
    """Names of the lazy inputs to evaluate next: the prompt first, because its text may be rejected, then
    model and VAE.
    """
    names = [name for name, value in sources.items() if value is None]
    return ["prompt"] if "prompt" in names else names


class GuidanceNode(IO.ComfyNode):
    """A node that gives a guidance method its model, VAE and prompt.

    COMBO: name of the dynamic combo. KINDS: the class of the method for each of its options.
    """

    COMBO = "preset"
    KINDS: dict[str, type[Guidance | ImageTargets]]

    @classmethod
    def method_of(cls, chosen: dict[str, Any] | None) -> Guidance | ImageTargets:
        """The chosen method with its widget values. Raises BadSetting if one is invalid."""
        chosen = chosen_of(cls.COMBO, cls.KINDS, chosen)
        kind = cls.KINDS[chosen[cls.COMBO]]
        return kind(**{name: value for name, value in chosen.items() if name != cls.COMBO})

    @classmethod
    def check_lazy_status(cls, model=None, vae=None, prompt=None, **widgets):
        with errors_of(cls):
            cls.method_of(widgets.get(cls.COMBO))
            return missing({"model": model, "vae": vae, "prompt": prompt})

    @classmethod
    def execute(cls, model, vae, prompt, **widgets) -> IO.NodeOutput:
        with errors_of(cls):
            method = cls.method_of(widgets[cls.COMBO])
            return IO.NodeOutput(guidance_of(model, vae, prompt, method, cls.hidden))


def guidance_of(
    model: Any,
    vae: Any,
    prompt: LucidPromptData | LucidPictureData,
    method: Guidance | ImageTargets,
    hidden: Any,
) -> LucidGuidanceData:
    """Combine method, model, VAE and prompt. Raises BadInput if they do not work together."""
    host.require_image_model(model, vae)
    if isinstance(method, ImageTargets):
        host.require_invertible(model)
    host.require_loras(model, hidden.dynprompt, hidden.unique_id)
    host.require_prompt_of(model, prompt)
    host.log_needs(model, method.pixel_limit)
    return LucidGuidanceData(model, vae, prompt, method)


class LucidISM(GuidanceNode):
    KINDS = dict.fromkeys(PRESETS, ISM)

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidISM",
            display_name="Lucid ISM",
            category=CATEGORY,
            search_aliases=[
                "interval score matching",
                "luciddreamer",
                "score distillation",
                "sds",
                "guidance",
            ],
            description="Interval Score Matching (LucidDreamer): computes the gradient by which Lucid "
            "Dream moves a rendered view towards the prompt.",
            inputs=[
                *sources(),
                IO.DynamicCombo.Input(
                    "preset",
                    options=options_of(PRESETS),
                    tooltip="Sets all values below, which can then be edited. official: values of the "
                    "paper. fast: one inversion step; with 2 views in Lucid Dream less than half the cost. "
                    "cpu: for small models and few steps; no inversion.",
                ),
                IO.Float.Input(
                    "surface_share",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Final share of the run that uses Lucid Image Targets instead of ISM: cleaner "
                    "colours, sharper edges, and most steps need no model evaluation. Its cfg is that of its "
                    "preset, but not above the larger one of cfg and cfg_start. 0 = ISM only.",
                ),
            ],
            outputs=[guidance_output()],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, vae, prompt, preset, surface_share=0.0) -> IO.NodeOutput:
        shape = super().execute(model, vae, prompt, preset=preset)
        if not surface_share:
            return shape
        with errors_of(cls):
            host.require_invertible(model)
            ism = shape.args[0].method
            targets = TARGETS.get(preset["preset"], TARGETS["official"])
            surface = replace(shape.args[0], method=targets.limit_cfg(max(ism.cfg, ism.cfg_start)))
            return IO.NodeOutput(LucidMixData(shape.args[0], surface, Mix("sequence", surface_share)))


class LucidTargets(GuidanceNode):
    KINDS = dict.fromkeys(TARGETS, ImageTargets)

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTargets",
            display_name="Lucid Image Targets",
            category=CATEGORY,
            search_aliases=[
                "pseudo ground truth",
                "dataset update",
                "refine texture",
                "sharpen",
                "microdreamer",
                "sdedit",
            ],
            description="Fits the splat to images that the model generates from its rendered views, for "
            "clean colours and sharp edges. Use it after Lucid ISM (Lucid Mix Guidance), or alone to "
            "refine a splat.",
            inputs=[
                *sources(),
                IO.DynamicCombo.Input(
                    "preset",
                    options=options_of(TARGETS),
                    tooltip="Sets all values below, which can then be edited. official: for large models. "
                    "cpu: for small models.",
                ),
            ],
            outputs=[guidance_output()],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )


class LucidBaseline(GuidanceNode):
    COMBO = "method"
    KINDS = METHODS

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidBaseline",
            display_name="Lucid Baseline",
            category=CATEGORY,
            search_aliases=[
                *METHODS,
                *(method.TITLE for method in METHODS.values()),
                "score distillation",
                "dreamfusion",
            ],
            description="Other score distillation methods (SDS, CSD, SDI, ISD, SCTD, TSM) to compare with "
            "Lucid ISM.",
            inputs=[
                *sources(),
                IO.DynamicCombo.Input(
                    "method",
                    options=options_of({name: kind() for name, kind in METHODS.items()}),
                    tooltip="; ".join(f"{name}: {kind.TITLE}" for name, kind in METHODS.items()),
                ),
            ],
            outputs=[guidance_output()],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )
