from comfy_api.latest import IO

from ..lucid_core.refine import Selection
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidSelectionType


class LucidSelection(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidSelection",
            display_name="Lucid Selection",
            category=CATEGORY,
            search_aliases=["splat mask", "splat region", "select gaussians", "inpaint splat"],
            description="A part of a splat, for Lucid Dream to change: what lies outside stays as it is, bit for bit.",
            inputs=[
                IO.Combo.Input(
                    "shape",
                    options=["box", "sphere"],
                    tooltip="A box, or the sphere (ellipsoid) that just fits into it.",
                ),
                *inputs_of(Selection),
            ],
            outputs=[LucidSelectionType.Output(display_name="selection", tooltip="The part that may change, for Lucid Dream.")],
        )

    @classmethod
    def execute(cls, **settings) -> IO.NodeOutput:
        with errors_of(cls):
            return IO.NodeOutput(Selection(**settings))
