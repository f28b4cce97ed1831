from comfy_api.latest import IO

from ..lucid_core.guidance.mixing import CONSTANT, MODES, Mix
from .host import require_same_latents
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidGuidanceType, LucidMixData


class LucidMix(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidMix",
            display_name="Lucid Mix Guidance",
            category=CATEGORY,
            search_aliases=[
                "two models",
                "two loras",
                "combine guidance",
                "switch model",
                "blend models",
                "model mix",
            ],
            description="Combines two guidance sources for one splat, each with its own model, LoRAs, VAE, "
            "prompt and method: one after the other, alternating, or with their gradients added.",
            inputs=[
                LucidGuidanceType.Input(
                    "first",
                    tooltip="First guidance source: Lucid ISM, Lucid Baseline, Lucid Image Targets or "
                    "another Lucid Mix Guidance.",
                ),
                LucidGuidanceType.Input(
                    "second",
                    tooltip="Second guidance source. It may use the same model with other LoRAs.",
                ),
                IO.Combo.Input(
                    "mode",
                    options=list(MODES),
                    tooltip="; ".join(f"{mode}: {what}" for mode, what in MODES.items()),
                ),
                *inputs_of(Mix, "share"),
                *inputs_of(Mix, "share_last", optional=True),
            ],
            outputs=[
                LucidGuidanceType.Output(
                    display_name="guidance", tooltip="The combined guidance, for Lucid Dream."
                )
            ],
        )

    @classmethod
    def execute(cls, first, second, mode, share, share_last=CONSTANT) -> IO.NodeOutput:
        with errors_of(cls):
            mixed = LucidMixData(first, second, Mix(mode, share, share_last))
            if mixed.makes_targets:
                require_same_latents(first.model, second.model)
            return IO.NodeOutput(mixed)
