import logging
import math

import torch
from comfy_api.latest import IO

from ..lucid_core.cameras import frame_splats, from_viewing_distance, rotate, why_unseen
from ..lucid_core.io.video import depth_image
from ..lucid_core.rasterize import device_for, rasterize, slowdown, to_device
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
            angles = math.radians(azimuth) + torch.arange(frames) * (2 * math.pi / frames)
            color = torch.tensor(hex_color(background), device=device)
            images, masks, depths, notes = [], [], [], []
            items = host.to_splats(splat)
            progress = host.Progress(len(items) * frames)
            for item in items:
                if camera_info is None:
                    shown, camera = frame_splats(
                        item, math.radians(elevation), math.radians(fov), width, height
                    )
                else:
                    shown, camera = from_viewing_distance(item, *host.camera_of(camera_info, width, height))
                shown = shown.map(lambda x: x.to(device))
                for angle in angles:
                    host.check_interrupt()
                    around = to_device(rotate(camera, angle[None], torch.zeros(3)), device)
                    with torch.no_grad():
                        view = rasterize(shown, around, width, height, background=color, backend=backend)
                    images.append(view.rgb.clamp(0, 1).cpu())
                    masks.append(view.alpha[..., 0].cpu())
                    depths.append(depth_image(view.depth, view.alpha).cpu())
                    progress.update(len(images), images[-1][0])
                if not any(mask.any() for mask in masks[-frames:]):
                    notes.append(f"The splat is not visible: {why_unseen(item)}.")
                    log.warning("Lucid Render: %s", notes[-1])
            if slowdown() or notes:
                host.show_text(host.node_of_page(cls.hidden), "\n".join(filter(None, (*notes, slowdown()))))
            return IO.NodeOutput(torch.cat(images), torch.cat(masks), torch.cat(depths))


def view_inputs(whole: str) -> list[IO.Input]:
    """The size, the number and the camera of the frames, and what draws them; `whole`: what is framed."""
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
            tooltip="Angle around the object in degrees; 0 = front. Added to camera_info if that "
            "is connected.",
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
        backend_input(),
    ]


def view_outputs(noun: str) -> list[IO.Output]:
    """Image, mask and depth of the frames."""
    return [
        IO.Image.Output(display_name="image", tooltip=f"Rendered frames, ordered by {noun}."),
        IO.Mask.Output(display_name="mask", tooltip="Accumulated opacity: 1 = opaque, 0 = empty."),
        IO.Image.Output(display_name="depth", tooltip="Depth image: bright = near, black = empty space."),
    ]
