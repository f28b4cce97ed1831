import dataclasses

from comfy_api.latest import IO

from ..lucid_core.checks import require
from ..lucid_core.hints import KINDS, Hint
from . import host
from .inputs import CATEGORY, errors_of
from .types import Control, LucidPromptData, LucidPromptType


class LucidControlNet(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidControlNet",
            display_name="Lucid ControlNet",
            category=CATEGORY,
            search_aliases=["apply controlnet 3d", "controlnet splat", "depth controlnet", "avatar", "multiview controlnet"],
            description="Holds the model to a shape: a ControlNet or T2I-Adapter is shown a hint of every view, made anew from "
            "the splat as it grows, or from a guide. Chain several for several hints.",
            inputs=[
                LucidPromptType.Input("prompt", tooltip="What is controlled: its views and the negative prompt."),
                IO.MultiType.Input(
                    "control_net", [IO.ControlNet, IO.ModelPatch], optional=True,
                    tooltip="From Load ControlNet Model, or from Load Model Patch (Z-Image Fun, Qwen-Image DiffSynth, Anima "
                    "LLLite); of the model's family. Empty = the ControlNets that Apply ControlNet put on the conditionings of "
                    "the prompt, with their own strength and range: the hint takes the place of their image.",
                ),
                IO.Combo.Input(
                    "hint", options=list(KINDS),
                    tooltip="What the ControlNet is trained on. depth: near is white (MiDaS). normal: red = left, green = up, "
                    "blue = to the viewer (NormalBae). canny: edges. image: the picture itself, for tile ControlNets, or for a "
                    "guide painted in the colours of DensePose or a segmentation. Poses, line art and the like cannot be made.",
                ),
                IO.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="How strongly it holds; 0 = off. Unused without control_net.",
                ),
                IO.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, optional=True, advanced=True,
                    tooltip="Where it sets in, as a share of the model's schedule from all noise to none; 0 = the most noise. "
                    "Unused without control_net.",
                ),
                IO.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, optional=True, advanced=True,
                    tooltip="Where it ends; 1 = the least noise. Unused without control_net.",
                ),
                IO.Splat.Input(
                    "guide", optional=True,
                    tooltip="The shape to hold to, in the place and size of the splat. Empty = the splat itself, as it is in "
                    "every step.",
                ),
            ],
            outputs=[LucidPromptType.Output(display_name="prompt", tooltip="The prompt with the control on it.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, prompt, hint, strength, control_net=None, start_percent=0.0, end_percent=1.0, guide=None
    ) -> IO.NodeOutput:  # fmt: skip
        with errors_of(cls):
            require(start_percent <= end_percent, "start_percent", start_percent, f"at most end_percent ({end_percent})")
            shown = Hint(hint, None if guide is None else host.one_splat(guide))
            if control_net is None:
                require_free_controls(prompt)
                return IO.NodeOutput(with_controls(prompt, Control(shown, None), *prompt.controls))
            if strength == 0:  # as the host's Apply ControlNet
                return IO.NodeOutput(prompt)
            host.require_control(control_net)
            control = Control(shown, control_net, strength, start_percent, end_percent)
            return IO.NodeOutput(with_controls(prompt, *prompt.controls, control))


def with_controls(prompt: LucidPromptData, *controls: Control) -> LucidPromptData:
    return dataclasses.replace(prompt, controls=controls)


def require_free_controls(prompt: LucidPromptData) -> None:
    """Raise ValueError unless conditionings of the prompt bring ControlNets that have no hint yet."""
    if not host.carries_control([*prompt.views, prompt.negative, prompt.inverse]):
        raise ValueError("control_net is empty, and the prompt brings no ControlNet along; connect one")
    if any(control.net is None for control in prompt.controls):
        raise ValueError("control_net is empty, and an earlier Lucid ControlNet already shows its hint to those of the prompt")
