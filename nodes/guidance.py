from comfy_api.latest import IO

from ..lucid_core.ism import ISM
from . import host
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidGuidanceData, LucidGuidanceType, LucidPromptType


class LucidISM(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidISM",
            display_name="Lucid ISM",
            category=CATEGORY,
            search_aliases=["interval score matching", "luciddreamer", "score distillation", "sds", "guidance"],
            description="Interval Score Matching: tells Lucid Dream what the model would change about a view. The defaults "
            "are the official settings.",
            inputs=[
                IO.Model.Input("model", tooltip="Any image model, with its LoRAs and patches."),
                IO.Vae.Input("vae", tooltip="The VAE of that model."),
                LucidPromptType.Input("prompt", tooltip="From Lucid Prompt."),
                *inputs_of(ISM),
            ],
            outputs=[LucidGuidanceType.Output(display_name="guidance")],
        )

    @classmethod
    def execute(cls, model, vae, prompt, **settings) -> IO.NodeOutput:
        with errors_of(cls):
            host.require_image_model(model, vae)
            return IO.NodeOutput(LucidGuidanceData(model, vae, prompt, ISM(**settings)))
