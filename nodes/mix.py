from comfy_api.latest import IO

from ..lucid_core.teacher import MODES, Mix
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidGuidanceType, LucidMixData


class LucidMix(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidMix",
            display_name="Lucid Mix Guidance",
            category=CATEGORY,
            search_aliases=["two models", "two loras", "combine guidance", "switch model", "blend models", "model mix"],
            description="Lets two models make one splat, each with its own LoRAs, VAE, prompt and method: shape by one and "
            "surface by the other, in turns, or both together.",
            inputs=[
                LucidGuidanceType.Input("first", tooltip="From Lucid ISM, Lucid Baseline or another Lucid Mix Guidance."),
                LucidGuidanceType.Input("second", tooltip="The same; its model may be the first one with other LoRAs."),
                IO.Combo.Input(
                    "mode", options=list(MODES), tooltip="; ".join(f"{mode}: {what}" for mode, what in MODES.items())
                ),
                *inputs_of(Mix),
            ],
            outputs=[LucidGuidanceType.Output(display_name="guidance", tooltip="Both, for Lucid Dream.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, first, second, mode, share) -> IO.NodeOutput:
        with errors_of(cls):
            return IO.NodeOutput(LucidMixData(first, second, Mix(mode, share)))
