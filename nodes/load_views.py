from __future__ import annotations

import torch
from comfy_api.latest import IO

from ..lucid_core.io import captures
from ..lucid_core.starts.views import start_of_views
from . import host
from .inputs import CATEGORY, errors_of, fold_seed, hex_color, seed_input
from .types import LucidViewsType


class LucidLoadViews(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidLoadViews",
            display_name="Lucid Load Views",
            category=CATEGORY,
            search_aliases=["colmap", "transforms.json", "nerf dataset", "load multiview", "load cameras"],
            description="Loads pictures with their cameras from a folder: a COLMAP model, or transforms.json "
            "(NeRF synthetic, nerfstudio), with a splat to start from.",
            inputs=[
                IO.Combo.Input(
                    "folder",
                    options=host.view_folders(),
                    tooltip="Folder in the input folder that holds transforms.json, transforms_train.json, "
                    "or sparse/0 and images of COLMAP. Distorted pictures have to be undistorted first.",
                ),
                IO.Combo.Input(
                    "split",
                    options=list(captures.SPLITS),
                    optional=True,
                    tooltip="Which transforms_….json to read, where there are several. Otherwise unused.",
                ),
                IO.Int.Input(
                    "max_size",
                    default=800,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Longest side of the pictures in pixels; larger ones are reduced. 0 = keep the "
                    "size.",
                ),
                IO.Int.Input(
                    "max_views",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Maximum number of pictures, taken evenly from all. 0 = all.",
                ),
                IO.Int.Input(
                    "count",
                    default=100_000,
                    min=4,
                    max=5_000_000,
                    tooltip="Maximum number of Gaussians of the splat to start from.",
                ),
                seed_input(),
                IO.Color.Input(
                    "background",
                    default="#ffffff",
                    tooltip="Colour behind transparent pictures; give Lucid Fit Views the same.",
                ),
            ],
            outputs=[
                IO.Image.Output(display_name="image", tooltip="The pictures, ordered as the cameras."),
                IO.Mask.Output(display_name="mask", tooltip="Their opacity: 1 = object, 0 = transparent."),
                LucidViewsType.Output(display_name="views", tooltip="The cameras, for Lucid Fit Views."),
                IO.Splat.Output(
                    display_name="splat",
                    tooltip="Gaussians at the points of the COLMAP model; without points a grey ball where "
                    "the cameras look.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder):
        try:
            host.view_folder(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, **others):
        return host.view_stamp(folder)

    @classmethod
    def execute(
        cls, folder, max_size, max_views, count, seed, background, split=captures.SPLITS[0]
    ) -> IO.NodeOutput:
        with errors_of(cls):
            color = torch.tensor(hex_color(background))
            capture = captures.read(host.view_folder(folder), split).thin(max_views)
            images, masks, cameras = captures.load_images(capture, max_size, color)
            start = start_of_views(cameras, capture.points, capture.colors, count, fold_seed(seed))
            return IO.NodeOutput(images, masks, cameras, host.from_splats(start))
