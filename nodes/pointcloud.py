from comfy_api.latest import IO

from ..lucid_core.pointcloud import SHAPES, PointCloud
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
            description="A simple solid of random Gaussians about the origin: the empty canvas of Lucid Dream.",
            inputs=[
                IO.Combo.Input("shape", options=list(SHAPES), tooltip="Solid to fill with points (sphere: its surface)."),
                *inputs_of(PointCloud, "count", "size"),
                IO.Color.Input("color", default="#808080", tooltip="Mean colour. Grey leaves the choice to the model."),
                seed_input(),
                *inputs_of(PointCloud, "color_noise", "opacity"),
            ],
            outputs=[IO.Splat.Output(display_name="splat", tooltip="The points as round Gaussians: what to start from.")],
        )

    @classmethod
    def execute(cls, shape, count, size, color, seed, color_noise, opacity) -> IO.NodeOutput:
        with errors_of(cls):
            cloud = PointCloud(shape, count, size, hex_color(color), color_noise, opacity)
            return IO.NodeOutput(host.from_splats(cloud.splats(fold_seed(seed))))
