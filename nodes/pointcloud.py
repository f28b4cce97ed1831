from comfy_api.latest import IO

from ..lucid_core.starts.shapes import SHAPES, PointCloud
from . import host
from .inputs import CATEGORY, errors_of, fold_seed, hex_color, inputs_of, seed_input


class LucidPointCloud(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidPointCloud",
            display_name="Lucid Point Cloud",
            category=CATEGORY,
            search_aliases=["init splat", "random splat", "gaussian initialisation", "empty splat"],
            description="Creates a splat of random Gaussians in a simple shape around the origin, as a "
            "starting point for Lucid Dream.",
            inputs=[
                IO.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    tooltip="Shape filled with points; for sphere, only its surface.",
                ),
                *inputs_of(PointCloud, "count", "size"),
                IO.Color.Input(
                    "color",
                    default="#808080",
                    tooltip="Mean colour of the points. Grey lets the model choose the colours.",
                ),
                seed_input(),
                *inputs_of(PointCloud, "color_noise", "opacity"),
            ],
            outputs=[
                IO.Splat.Output(
                    display_name="splat",
                    tooltip="Isotropic Gaussians at the points, to start Lucid Dream from.",
                )
            ],
        )

    @classmethod
    def execute(cls, shape, count, size, color, seed, color_noise, opacity) -> IO.NodeOutput:
        with errors_of(cls):
            cloud = PointCloud(shape, count, size, hex_color(color), color_noise, opacity)
            return IO.NodeOutput(host.from_splats(cloud.splats(fold_seed(seed))))
