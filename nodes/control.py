import dataclasses

from comfy_api.latest import IO

from ..lucid_core.conditioning.control_images import KINDS, Hint
from ..lucid_core.errors import BadInput
from ..lucid_core.settings import require
from . import host
from .inputs import CATEGORY, errors_of
from .types import Control, LucidPictureData, LucidPromptData, LucidPromptType


class LucidControlNet(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidControlNet",
            display_name="Lucid ControlNet",
            category=CATEGORY,
            search_aliases=[
                "apply controlnet 3d",
                "controlnet splat",
                "depth controlnet",
                "avatar",
                "multiview controlnet",
            ],
            description="Applies a ControlNet or T2I-Adapter during optimisation. Its control image is "
            "rendered for each view from the current splat or from a guide splat. Chain several nodes to "
            "combine controls.",
            inputs=[
                LucidPromptType.Input(
                    "prompt",
                    tooltip="Prompt to control. The control applies to its view prompts and its negative "
                    "prompt.",
                ),
                IO.MultiType.Input(
                    "control_net",
                    [IO.ControlNet, IO.ModelPatch],
                    optional=True,
                    tooltip="From Load ControlNet Model or Load Model Patch (Z-Image Fun, Qwen-Image "
                    "DiffSynth, Anima LLLite), for the same model family. Empty = use the ControlNets that "
                    "Apply ControlNet added to the conditionings, with their strength and range; only "
                    "their image is replaced.",
                ),
                IO.Combo.Input(
                    "hint",
                    options=list(KINDS),
                    tooltip="Type of control image. depth: white = near (MiDaS). normal: red = left, green "
                    "= up, blue = towards the viewer (NormalBae). canny: edges. image: the render itself, "
                    "for tile ControlNets, or a guide: the skeleton of Lucid Body, or a splat in DensePose "
                    "or segmentation colours.",
                ),
                IO.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the control; 0 = off, 1 = as trained. Unused without control_net.",
                ),
                IO.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Start of the active part of the noise schedule; 0 = highest noise level. "
                    "Unused without control_net.",
                ),
                IO.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="End of the active part of the noise schedule; 1 = lowest noise level. Unused "
                    "without control_net.",
                ),
                IO.Splat.Input(
                    "guide",
                    optional=True,
                    tooltip="Splat to render the control images from, at the same position and scale as "
                    "the optimised splat. Empty = the optimised splat itself, in its current state.",
                ),
            ],
            outputs=[
                LucidPromptType.Output(display_name="prompt", tooltip="The prompt with the control added.")
            ],
        )

    @classmethod
    def execute(
        cls, prompt, hint, strength, control_net=None, start_percent=0.0, end_percent=1.0, guide=None
    ) -> IO.NodeOutput:
        with errors_of(cls):
            require(
                start_percent <= end_percent,
                "start_percent",
                start_percent,
                f"at most end_percent ({end_percent})",
            )
            if isinstance(prompt, LucidPictureData):
                raise BadInput(
                    "prompt", "is a picture, whose model takes no ControlNet; connect a Lucid Prompt"
                )
            shown = Hint(hint, None if guide is None else host.one_splat(guide))
            if control_net is None:
                require_free_controls(prompt)
                return IO.NodeOutput(with_controls(prompt, Control(shown, None), *prompt.controls))
            if strength == 0:  # same as the Apply ControlNet node
                return IO.NodeOutput(prompt)
            host.require_control(control_net)
            control = Control(shown, control_net, strength, start_percent, end_percent)
            return IO.NodeOutput(with_controls(prompt, *prompt.controls, control))


def with_controls(prompt: LucidPromptData, *controls: Control) -> LucidPromptData:
    """Copy of the prompt with its controls replaced by these."""
    return dataclasses.replace(prompt, controls=controls)


def require_free_controls(prompt: LucidPromptData) -> None:
    """Raise BadInput unless the prompt's conditionings carry ControlNets whose hint is not set yet."""
    if not host.carries_control([*prompt.views, prompt.negative, prompt.inverse]):
        raise BadInput(
            "control_net", "is empty, and no conditioning of the prompt has a ControlNet; connect one"
        )
    if any(control.net is None for control in prompt.controls):
        raise BadInput(
            "control_net",
            "is empty, and an earlier Lucid ControlNet already sets the hint of the prompt's ControlNets; "
            "remove one of the two nodes",
        )
