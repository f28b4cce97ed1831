from dataclasses import replace

from comfy_api.latest import IO, UI

from ..lucid_core.cameras import CameraRanges, CloseUp
from ..lucid_core.conditioning.camera_map import camera_map
from ..lucid_core.errors import BadInput
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
            "origin; Lucid Close-Up lets a share of them look closer at another point.",
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


class LucidCloseUp(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidCloseUp",
            display_name="Lucid Close-Up",
            category=CATEGORY,
            search_aliases=["face zoom", "zoom cameras", "look at", "detail cameras", "portrait"],
            description="Lets a share of the training cameras look closer at one point, such as the face of "
            "a body.",
            inputs=[
                *inputs_of(CloseUp),
                LucidCamerasType.Input(
                    "cameras", optional=True, tooltip="From Lucid Cameras. Empty = the official ranges."
                ),
            ],
            outputs=[
                LucidCamerasType.Output(
                    display_name="cameras",
                    tooltip="The same cameras, of which a share orbits the point, for Lucid Dream.",
                )
            ],
        )

    @classmethod
    def execute(cls, cameras=None, **settings) -> IO.NodeOutput:
        with errors_of(cls):
            cameras = cameras or CameraRanges()
            if cameras.close_up:
                raise BadInput("cameras", "have a close-up already; remove one of the two Lucid Close-Ups")
            return IO.NodeOutput(replace(cameras, close_up=CloseUp(**settings)))
