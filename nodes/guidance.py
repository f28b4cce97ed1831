from comfy_api.latest import IO

from ..lucid_core.checks import bounds_of
from ..lucid_core.ism import ISM, PRESETS
from ..lucid_core.methods import METHODS
from ..lucid_core.score import Guidance
from . import host
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidGuidanceData, LucidGuidanceType, LucidPromptType


def options_of(choices: dict[str, Guidance]) -> list[IO.DynamicCombo.Option]:
    """An option for each choice that brings its settings with its values, the common ones first."""
    common_first = lambda method: sorted(bounds_of(method), key=lambda name: bounds_of(method)[name].rare)
    return [IO.DynamicCombo.Option(name, inputs_of(method, *common_first(method))) for name, method in choices.items()]


def sources() -> list[IO.Input]:
    return [
        IO.Model.Input("model", tooltip="Any image model, with its LoRAs and patches."),
        IO.Vae.Input("vae", tooltip="The VAE of that model."),
        LucidPromptType.Input("prompt", tooltip="From Lucid Prompt."),
    ]


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
                    tooltip="Sets every value below; each can then be changed. official: the paper's. fast: half its model "
                    "calls. cpu: few, bold steps.",
                ),
            ],
            outputs=[LucidGuidanceType.Output(display_name="guidance")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, prompt, preset) -> IO.NodeOutput:
        with errors_of(cls):
            settings = {name: value for name, value in preset.items() if name != "preset"}
            host.require_image_model(model, vae)
            return IO.NodeOutput(LucidGuidanceData(model, vae, prompt, ISM(**settings)))


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
            outputs=[LucidGuidanceType.Output(display_name="guidance")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, prompt, method) -> IO.NodeOutput:
        with errors_of(cls):
            settings = {name: value for name, value in method.items() if name != "method"}
            host.require_image_model(model, vae)
            return IO.NodeOutput(LucidGuidanceData(model, vae, prompt, METHODS[method["method"]](**settings)))
