from comfy_api.latest import IO, UI

from ..lucid_core.cameras import CameraRanges
from ..lucid_core.conditioning.camera_map import camera_map
from ..lucid_core.settings import bounds_of
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidCamerasType

# Inputs added after the first release: optional, because older workflows do not have them.
LATER = ("schedule", "angle_factor", "elevation_min_end_deg", "elevation_max_end_deg")


class LucidCameras(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidCameras",
            display_name="Lucid Cameras",
            category=CATEGORY,
            search_aliases=["training cameras", "camera range", "orbit range", "camera poses"],
            description="Ranges from which Lucid Dream samples its training cameras. All cameras orbit the "
            "origin.",
            inputs=[
                *inputs_of(CameraRanges, *(name for name in bounds_of(CameraRanges) if name not in LATER)),
                *inputs_of(CameraRanges, *LATER, optional=True),
            ],
            outputs=[
                LucidCamerasType.Output(display_name="cameras", tooltip="Camera ranges for Lucid Dream."),
                IO.Image.Output(
                    display_name="preview",
                    tooltip="Map of sampled cameras, from above and from the side. Red = start of the run, "
                    "blue = end.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **ranges) -> IO.NodeOutput:
        with errors_of(cls):
            cameras = CameraRanges(**ranges)
            image = camera_map(cameras)[None]
            return IO.NodeOutput(cameras, image, ui=UI.PreviewImage(image, cls=cls))
