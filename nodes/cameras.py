from comfy_api.latest import IO, UI

from ..lucid_core.camera_map import camera_map
from ..lucid_core.cameras import CameraRanges
from ..lucid_core.checks import bounds_of
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidCamerasType

LATER = ("schedule", "angle_factor", "elevation_min_end_deg", "elevation_max_end_deg")  # not in every saved workflow


class LucidCameras(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidCameras",
            display_name="Lucid Cameras",
            category=CATEGORY,
            search_aliases=["training cameras", "camera range", "orbit range", "camera poses"],
            description="Where Lucid Dream looks from while it works: ranges that cameras are drawn from, about the origin.",
            inputs=[
                *inputs_of(CameraRanges, *(name for name in bounds_of(CameraRanges) if name not in LATER)),
                *inputs_of(CameraRanges, *LATER, optional=True),
            ],
            outputs=[
                LucidCamerasType.Output(display_name="cameras", tooltip="The ranges, for Lucid Dream."),
                IO.Image.Output(
                    display_name="preview",
                    tooltip="Cameras at the start (red) and the end (blue) of a run, from above and from the side.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **ranges) -> IO.NodeOutput:
        with errors_of(cls):
            cameras = CameraRanges(**ranges)
            image = camera_map(cameras)[None]
            return IO.NodeOutput(cameras, image, ui=UI.PreviewImage(image, cls=cls))
