import logging
import math
import os

import numpy as np
import torch
from comfy_api.latest import IO, Types

from ..lucid_core.cameras import frame_splats, framing, orbit, rotate, why_unseen
from ..lucid_core.io import ply, video
from ..lucid_core.rasterize import device_for, rasterize, to_device
from ..lucid_core.splats import Splats
from . import host
from .inputs import CATEGORY, errors_of

log = logging.getLogger(__name__)
FPS = 24
ELEVATION_DEG, FOV_DEG = 15.0, 30.0
VIEWER_FOV_DEG, VIEWER_AZIMUTH_DEG = 35.0, 20.0  # the field of view is the one of the host's viewer


class LucidSave(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidSave",
            display_name="Lucid Save",
            category=CATEGORY,
            search_aliases=["save splat", "export splat", "save ply", "turntable video"],
            description="Saves a splat to the output folder as a standard 3DGS .ply file with a turntable "
            "video. Connect model_3d and camera_info to Preview Splat to view it from the front.",
            is_output_node=True,
            inputs=[
                IO.Splat.Input("splat", tooltip="Splat to save. Each splat of a batch gets its own files."),
                IO.String.Input(
                    "filename_prefix",
                    default="lucid/splat",
                    tooltip="Path and file name prefix under the output folder, as in Save Image.",
                ),
                IO.Int.Input(
                    "turntable_frames",
                    default=72,
                    min=0,
                    max=480,
                    tooltip=f"Number of video frames, at {FPS} frames per second. 0 = no video.",
                ),
                IO.Int.Input(
                    "turntable_size",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    advanced=True,
                    tooltip="Width and height of the video in pixels.",
                ),
            ],
            outputs=[
                IO.File3DSplatAny.Output(
                    display_name="model_3d", tooltip="The saved .ply file; the first one for a batch."
                ),
                IO.Load3DCamera.Output(
                    display_name="camera_info",
                    tooltip="A camera that shows the whole splat, from the front and a little from the side "
                    "and above, for Preview Splat.",
                ),
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, splat, filename_prefix, turntable_frames, turntable_size) -> IO.NodeOutput:
        with errors_of(cls):
            items = host.to_splats(splat)
            files, videos, paths = [], [], []
            for item in items:
                path, entry = host.output_path(filename_prefix, "ply", "mp4")
                ply.write(path, item)
                paths.append(path)
                files.append(entry)
                if turntable_frames:
                    beside = os.path.splitext(entry["filename"])[0] + ".mp4"  # with the number of the splat
                    frames, seen = turntable_of(item, turntable_frames, turntable_size)
                    if not seen:
                        note = f"The splat is not visible in the video: {why_unseen(item)}."
                        log.warning("Lucid Save: %s", note)
                        host.show_text(host.node_of_page(cls.hidden), note)
                    video.write_mp4(os.path.join(os.path.dirname(path), beside), frames, FPS)
                    videos.append(entry | {"filename": beside})
            ui = {"3d": files, "images": videos, "animated": (True,)} if videos else {"3d": files}
            return IO.NodeOutput(Types.File3D(paths[0], file_format="ply"), front_camera(items[0]), ui=ui)


def front_camera(splats: Splats) -> dict:
    """The camera_info of a view of all of `splats` from the front, a little from the right and above."""
    target, distance = framing(splats, math.radians(VIEWER_FOV_DEG))
    angles = (torch.tensor([math.radians(deg)]) for deg in (VIEWER_AZIMUTH_DEG, ELEVATION_DEG))
    camera = orbit(*angles, torch.tensor([distance]), torch.ones(1), 1, 1)
    return host.camera_info_of(target + camera.positions()[0], target, VIEWER_FOV_DEG)


def turntable_of(splats: Splats, frames: int, size: int) -> tuple[list[np.ndarray], bool]:
    """Render one full turn around the splat on a white background.

    Returns the frames (size, size, 3) in sRGB, uint8, and whether the splat is visible in any.
    """
    splats, camera = frame_splats(splats, math.radians(ELEVATION_DEG), math.radians(FOV_DEG), size, size)
    device = device_for("auto")
    splats, white = splats.map(lambda x: x.to(device)), torch.ones(3, device=device)
    progress = host.Progress(frames)
    views, seen = [], False
    for i in range(frames):
        host.check_interrupt()
        around = to_device(rotate(camera, torch.tensor([2 * math.pi * i / frames]), torch.zeros(3)), device)
        with torch.no_grad():
            view = rasterize(splats, around, size, size, background=white)
        views.append(video.to_uint8(view.rgb[0]))
        seen = seen or bool(view.alpha.any())
        progress.update(i + 1)
    return views, seen
