import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from comfy_api.latest import IO
from torch import Tensor

from ..lucid_core.cameras import Cameras, frame_splats, from_viewing_distance, rotate, why_unseen
from ..lucid_core.io.video import depth_image
from ..lucid_core.rasterize import Render, device_for, rasterize, slowdown, to_device
from . import host
from .inputs import CATEGORY, backend_input, errors_of, hex_color

log = logging.getLogger(__name__)


class LucidRender(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidRender",
            display_name="Lucid Render",
            category=CATEGORY,
            search_aliases=["render splat", "turntable", "splat depth", "splat mask", "gaussian rasterizer"],
            description="Renders a splat with the rasterizer of Lucid Dream: one image or a turntable, "
            "with mask and depth.",
            inputs=[
                IO.Splat.Input("splat", tooltip="Splat to render, or a batch of splats."),
                *view_inputs("the whole splat"),
                backend_input(),
            ],
            outputs=view_outputs("splat"),
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        splat,
        width,
        height,
        frames,
        azimuth,
        elevation,
        fov,
        background,
        camera_info=None,
        backend="auto",
    ):
        with errors_of(cls):
            device = device_for(backend)
            color = torch.tensor(hex_color(background), device=device)
            shots, notes = [], []
            items = host.to_splats(splat)
            progress = host.Progress(len(items) * frames)
            for item in items:
                if camera_info is None:
                    shown, camera = frame_splats(
                        item, math.radians(elevation), math.radians(fov), width, height
                    )
                else:
                    shown, camera = from_viewing_distance(item, *host.camera_of(camera_info, width, height))
                draw = partial(
                    rasterize, shown.map(lambda x: x.to(device)), background=color, backend=backend
                )
                cameras = turn(camera, torch.zeros(3), azimuth, frames)
                shots += draw_frames(draw, cameras, width, height, device, progress, len(shots))
                if not any(mask.any() for _, mask, _ in shots[-frames:]):
                    notes.append(f"The splat is not visible: {why_unseen(item)}.")
                    log.warning("Lucid Render: %s", notes[-1])
            if slowdown() or notes:
                host.show_text(host.node_of_page(cls.hidden), "\n".join(filter(None, (*notes, slowdown()))))
            return IO.NodeOutput(*map(torch.cat, zip(*shots)))


def turn(camera: Cameras, centre: Tensor, azimuth_deg: float, frames: int) -> list[Cameras]:
    """`camera` (1) at `frames` places of a full turn about `centre` (3,), from the azimuth on."""
    angles = math.radians(azimuth_deg) + torch.arange(frames) * (2 * math.pi / frames)
    return [rotate(camera, angle[None], centre) for angle in angles]


def draw_frames(
    draw: Callable[[Cameras, int, int], Render],
    cameras: list[Cameras],
    width: int,
    height: int,
    device: torch.device,
    progress: host.Progress,
    done: int = 0,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Image (1, H, W, 3), mask (1, H, W) and depth image (1, H, W, 3) of each camera, on the CPU.

    done: number of frames before these, for the progress.
    """
    shots = []
    for camera in cameras:
        host.check_interrupt()
        with torch.no_grad():
            view = draw(to_device(camera, device), width, height)
        image, depth = view.rgb.clamp(0, 1).cpu(), depth_image(view.depth, view.alpha).cpu()
        shots.append((image, view.alpha[..., 0].cpu(), depth))
        progress.update(done + len(shots), image[0])
    return shots


def view_inputs(whole: str) -> list[IO.Input]:
    """The size, the number and the camera of the frames; `whole`: what is framed."""
    return [
        IO.Int.Input("width", default=512, min=16, max=4096, step=8, tooltip="Image width in pixels."),
        IO.Int.Input("height", default=512, min=16, max=4096, step=8, tooltip="Image height in pixels."),
        IO.Int.Input(
            "frames",
            default=1,
            min=1,
            max=480,
            tooltip="Number of frames. 1 = one image; more = a turntable of one full turn.",
        ),
        IO.Float.Input(
            "azimuth",
            default=0.0,
            min=-360.0,
            max=360.0,
            step=1.0,
            tooltip="Angle around the object in degrees; 0 = front, 90 = from the viewer's right. Added to "
            "camera_info if that is connected.",
        ),
        IO.Float.Input(
            "elevation",
            default=15.0,
            min=-90.0,
            max=90.0,
            step=1.0,
            tooltip="Camera elevation in degrees above the horizon. Unused if camera_info is connected.",
        ),
        IO.Float.Input(
            "fov",
            default=35.0,
            min=1.0,
            max=120.0,
            step=1.0,
            advanced=True,
            tooltip="Field of view in degrees across the smaller image side. Unused if camera_info "
            "is connected.",
        ),
        IO.Color.Input("background", default="#ffffff", tooltip="Background colour; #ffffff = white."),
        IO.Load3DCamera.Input("camera_info", optional=True, tooltip=f"Camera to use. Empty = frame {whole}."),
    ]


def view_outputs(noun: str) -> list[IO.Output]:
    """Image, mask and depth of the frames."""
    return [
        IO.Image.Output(display_name="image", tooltip=f"Rendered frames, ordered by {noun}."),
        IO.Mask.Output(display_name="mask", tooltip="Accumulated opacity: 1 = opaque, 0 = empty."),
        IO.Image.Output(display_name="depth", tooltip="Depth image: bright = near, black = empty space."),
    ]
