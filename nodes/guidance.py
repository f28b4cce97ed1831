from dataclasses import replace
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.checks import bounds_of
from ..lucid_core.ism import ISM, PRESETS
from ..lucid_core.methods import METHODS
from ..lucid_core.score import Guidance
from ..lucid_core.targets import PRESETS as TARGETS
from ..lucid_core.targets import ImageTargets
from ..lucid_core.teacher import Mix
from . import host
from .inputs import CATEGORY, chosen_of, errors_of, inputs_of
from .types import LucidGuidanceData, LucidGuidanceType, LucidMixData, LucidPromptData, LucidPromptType


def options_of(choices: dict[str, Guidance | ImageTargets]) -> list[IO.DynamicCombo.Option]:
    """An option for each choice that brings its settings with its values, the common ones first."""
    common_first = lambda method: sorted(bounds_of(method), key=lambda name: bounds_of(method)[name].rare)
    return [IO.DynamicCombo.Option(name, inputs_of(method, *common_first(method))) for name, method in choices.items()]


def sources() -> list[IO.Input]:
    """Lazy, so that the host asks `check_lazy_status` about the settings before it loads a model."""
    return [
        IO.Model.Input("model", lazy=True, tooltip="Any text-to-image model, with its LoRAs and patches."),
        IO.Vae.Input("vae", lazy=True, tooltip="The VAE of that model."),
        LucidPromptType.Input(
            "prompt", lazy=True, tooltip="From Lucid Prompt or Lucid Prompt From Conditioning: what the splat is to show."
        ),
    ]


def guidance_output() -> IO.Output:
    return LucidGuidanceType.Output(
        display_name="guidance", tooltip="The method with the model and the prompt that it asks, for Lucid Dream."
    )


def missing(sources: dict[str, Any]) -> list[str]:
    """What to ask the host for: the prompt first, whose text may be refused, then model and VAE."""
    names = [name for name, value in sources.items() if value is None]
    return ["prompt"] if "prompt" in names else names


def method_of(
    kinds: dict[str, type[Guidance | ImageTargets]], combo: str, chosen: dict[str, Any] | None
) -> Guidance | ImageTargets:  # fmt: skip
    """The method with the values of a dynamic combo's widgets."""
    chosen = chosen_of(combo, kinds, chosen)
    return kinds[chosen[combo]](**{name: value for name, value in chosen.items() if name != combo})


def guidance_of(
    model: Any, vae: Any, prompt: LucidPromptData, method: Guidance | ImageTargets, hidden: Any
) -> LucidGuidanceData:  # fmt: skip
    """Raises ValueError unless the method can ask this model about this prompt."""
    host.require_image_model(model, vae)
    if isinstance(method, ImageTargets):
        host.require_invertible(model)
    host.require_loras(model, hidden.dynprompt, hidden.unique_id)
    host.require_text_of(model, prompt.conditionings())
    host.log_needs(model, method.pixel_limit)
    return LucidGuidanceData(model, vae, prompt, method)


class LucidISM(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidISM",
            display_name="Lucid ISM",
            category=CATEGORY,
            search_aliases=["interval score matching", "luciddreamer", "score distillation", "sds", "guidance"],
            description="Interval Score Matching: tells Lucid Dream what the model would change about a view.",
            inputs=[
                *sources(),
                IO.DynamicCombo.Input(
                    "preset", options=options_of(PRESETS),
                    tooltip="Sets every value below; each can then be changed. official: the paper's. fast: one inversion "
                    "stride; with 2 views in Lucid Dream under half the cost. cpu: few, bold steps.",
                ),
                IO.Float.Input(
                    "surface_share", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="Share of the run, at its end, whose steps fit the splat to finished pictures that the model makes "
                    "of it (Lucid Image Targets): clean colours and sharp edges, and most steps do not ask the model. "
                    "0 = ISM alone.",
                ),
            ],
            outputs=[guidance_output()],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, preset=None, surface_share=0.0, **sources):
        with errors_of(cls):
            method_of(dict.fromkeys(PRESETS, ISM), "preset", preset)
            return missing(sources)

    @classmethod
    def execute(cls, model, vae, prompt, preset, surface_share=0.0) -> IO.NodeOutput:
        with errors_of(cls):
            method = method_of(dict.fromkeys(PRESETS, ISM), "preset", preset)
            shape = guidance_of(model, vae, prompt, method, cls.hidden)
            if not surface_share:
                return IO.NodeOutput(shape)
            targets = TARGETS.get(preset["preset"], TARGETS["official"])
            host.require_invertible(model)
            surface = replace(shape, method=targets)
            return IO.NodeOutput(LucidMixData(shape, surface, Mix("sequence", surface_share)))


class LucidTargets(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTargets",
            display_name="Lucid Image Targets",
            category=CATEGORY,
            search_aliases=["pseudo ground truth", "dataset update", "refine texture", "sharpen", "microdreamer", "sdedit"],
            description="Fits the splat to finished pictures that the model makes of its views: clean colours and sharp edges. "
            "Put it behind Lucid ISM with Lucid Mix Guidance, or use it alone on a splat that exists.",
            inputs=[
                *sources(),
                IO.DynamicCombo.Input(
                    "preset", options=options_of(TARGETS),
                    tooltip="Sets every value below; each can then be changed. official: a large model. cpu: a small one.",
                ),
            ],
            outputs=[guidance_output()],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, preset=None, **sources):
        with errors_of(cls):
            method_of(dict.fromkeys(TARGETS, ImageTargets), "preset", preset)
            return missing(sources)

    @classmethod
    def execute(cls, model, vae, prompt, preset) -> IO.NodeOutput:
        with errors_of(cls):
            method = method_of(dict.fromkeys(TARGETS, ImageTargets), "preset", preset)
            return IO.NodeOutput(guidance_of(model, vae, prompt, method, cls.hidden))


class LucidBaseline(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidBaseline",
            display_name="Lucid Baseline",
            category=CATEGORY,
            search_aliases=[*METHODS, *(method.TITLE for method in METHODS.values()), "score distillation", "dreamfusion"],
            description="The rivals of Lucid ISM in the same place of the graph, for comparison.",
            inputs=[
                *sources(),
                IO.DynamicCombo.Input(
                    "method", options=options_of({name: kind() for name, kind in METHODS.items()}),
                    tooltip="; ".join(f"{name}: {kind.TITLE}" for name, kind in METHODS.items()),
                ),
            ],
            outputs=[guidance_output()],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, method=None, **sources):
        with errors_of(cls):
            method_of(METHODS, "method", method)
            return missing(sources)

    @classmethod
    def execute(cls, model, vae, prompt, method) -> IO.NodeOutput:
        with errors_of(cls):
            return IO.NodeOutput(guidance_of(model, vae, prompt, method_of(METHODS, "method", method), cls.hidden))
