from comfy_api.latest import IO

from ..lucid_core.optimize.selection import Selection
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
            description="Selects the region of a splat that Lucid Dream may change. Gaussians outside it "
            "stay bit-identical.",
            inputs=[
                IO.Combo.Input(
                    "shape",
                    options=["box", "sphere"],
                    tooltip="box, or sphere = the ellipsoid inscribed in that box.",
                ),
                *inputs_of(Selection),
            ],
            outputs=[
                LucidSelectionType.Output(
                    display_name="selection", tooltip="The selected region, for Lucid Dream."
                )
            ],
        )

    @classmethod
    def execute(cls, **settings) -> IO.NodeOutput:
        with errors_of(cls):
            return IO.NodeOutput(Selection(**settings))
