from __future__ import annotations

import math
from typing import Any

import torch
from comfy_api.latest import IO

from ..lucid_core.cameras import Cameras, orbit
from ..lucid_core.errors import BadInput
from ..lucid_core.optimize.checkpoint import digest, require_same, settings_of
from ..lucid_core.optimize.config import Budget, Task
from ..lucid_core.optimize.selection import Subject, divide, join_splats
from ..lucid_core.optimize.views import (
    PRESETS,
    PosedImages,
    ViewFit,
    fit_views,
    frame_of,
    score_views,
)
from ..lucid_core.rasterize import Renderer, require_usable
from ..lucid_core.settings import require
from . import host
from .dream.checkpoints import CheckpointWriter, start_of
from .dream.inputs import checkpoint_inputs, preview_input, resume_inputs, setting_inputs
from .dream.preview import Preview, beside_pictures
from .dream.session import Session
from .inputs import (
    CATEGORY,
    backend_input,
    chosen_of,
    config_of,
    errors_of,
    fold_seed,
    hex_color,
    inputs_of,
    number_list,
    replace_from_widgets,
    seed_input,
)
from .types import LucidViewsType

TITLE = "Lucid Fit Views"
OF_PRESET = ("steps", "views")  # settings that a preset sets on the node
MOST_CAMERAS = 100  # of the host's growing inputs


class LucidFit(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidFit",
            display_name=TITLE,
            category=CATEGORY,
            search_aliases=[
                "views to splat",
                "multiview to splat",
                "train gaussian splatting",
                "photogrammetry",
                "3dgs",
                "images to splat",
            ],
            description="Fits a splat to pictures with known cameras, without a diffusion model: pictures of "
            "a multi-view model, renders or photos.",
            inputs=[
                IO.Splat.Input(
                    "splat",
                    tooltip="Splat to start from, where the cameras look: from Lucid Load Views, Lucid Point "
                    "Cloud or any other node.",
                ),
                IO.Image.Input("image", tooltip="The pictures, one per camera, in the order of the cameras."),
                camera_input(),
                IO.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A mask per picture, 1 = object, as from Lucid Load Views or Lucid Render. "
                    "Invert that of Load Image. `mask_use` says what it does.",
                ),
                IO.Image.Input(
                    "depth",
                    optional=True,
                    tooltip="A depth image per picture, bright = near, of any scale.",
                ),
                *setting_inputs(),
                IO.DynamicCombo.Input(
                    "preset",
                    options=[
                        IO.DynamicCombo.Option(name, inputs_of(own.budget, *OF_PRESET))
                        for name, own in PRESETS.items()
                    ],
                    tooltip="Sets steps and views, which can then be edited, and learning rates and "
                    "densification. official: values of 3D Gaussian Splatting, for a GPU. cpu: fewer steps "
                    "with higher learning rates.",
                ),
                seed_input(),
                IO.Color.Input(
                    "background",
                    default="#ffffff",
                    tooltip="Colour of the pictures where there is no object; the splat is rendered on it.",
                ),
                *inputs_of(ViewFit, "held_out", "mask_use"),
                backend_input(),
                *resume_inputs(),
                *inputs_of(Budget, "max_minutes", optional=True),
                *inputs_of(Task, "freeze_geometry", "freeze_color", optional=True),
                *inputs_of(
                    ViewFit,
                    "ssim_weight",
                    "mask_weight",
                    "depth_weight",
                    "scale_weight",
                    "entropy_weight",
                    "aspect_weight",
                    "grow_grad2d",
                    "prune_opacity",
                    optional=True,
                ),
                preview_input(),
                *checkpoint_inputs(),
            ],
            outputs=[
                IO.Splat.Output(display_name="splat", tooltip="The fitted splat, in the cameras' world."),
                IO.Float.Output(
                    display_name="psnr",
                    tooltip="Mean PSNR in dB of the held-out views; of all views where none are held out.",
                ),
                IO.Float.Output(display_name="ssim", tooltip="Mean SSIM of the same views; 1 = equal."),
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, resume="", **others):
        return host.output_stamp(resume) if resume else ""

    @classmethod
    def execute(
        cls,
        splat,
        image,
        cameras,
        preset,
        seed,
        mask=None,
        depth=None,
        optimizer=None,
        selection=None,
        background="#ffffff",
        backend="auto",
        resume="",
        resume_splat_only=False,
        checkpoint_minutes=5.0,
        preview_seconds=2.0,
        save_checkpoint=True,
        checkpoints_kept=10,
        **settings,
    ) -> IO.NodeOutput:
        with errors_of(cls), torch.inference_mode(False), torch.enable_grad():
            require_usable(backend)
            config = config_of(PRESETS, preset, optimizer, settings)
            fit = replace_from_widgets(ViewFit(background=hex_color(background)), settings)
            views = host.posed_images(image, mask, depth, cameras_of(cameras, image))
            start, checkpoint, saved = start_of(splat, resume, resume_splat_only)
            subject = Subject(*divide(start, selection), frame_of(start, views))
            parts = filter(None, (selection, subject.frame))
            hashed = digest(*views.tensors().values())
            depends_on = settings_of(start, fold_seed(seed), config, fit, *parts, views=hashed)
            if checkpoint:
                require_same(saved, depends_on)

            fitted, held_out = views.enter(subject.frame).divide(fit.held_out)
            writer = CheckpointWriter(
                subject,
                lambda: depends_on,
                save_checkpoint,
                checkpoint_minutes,
                checkpoints_kept,
                resume,
                TITLE,
            )
            shown = beside_pictures(held_out or fitted, fit)
            preview = Preview(preview_seconds, False, subject.fixed, Renderer(backend), shown)
            session = Session(config, subject, preview, writer, "", host.node_of_page(cls.hidden), TITLE)
            seed = fold_seed(seed)
            with session.rescue_on_stop():
                session.follow(
                    fit_views(subject.free, fitted, fit, config, seed, backend, checkpoint, subject.fixed)
                )
            score = score_session(session, held_out or fitted, fit, backend, bool(held_out))
            summary = {**session.summary(), "score": score}
            splat = host.from_splats(session.splats())
            return IO.NodeOutput(splat, score["psnr"], score["ssim"], ui={"lucid": [summary]})


def score_session(
    session: Session, views: PosedImages, fit: ViewFit, backend: str, held_out: bool
) -> dict[str, Any]:
    """Score the splat after the last step, in the frame of the fit, and show the score on the node."""
    subject = session.subject
    last = session.last.splats.map(torch.Tensor.cpu) if session.last else subject.free
    score = score_views(join_splats(last, subject.fixed), views, fit, backend)
    which = "held-out" if held_out else "fitted"
    session.add_note(f"{score.views} {which} views: PSNR {score.psnr:.2f} dB, SSIM {score.ssim:.4f}")
    return {**vars(score), "held_out": held_out}


def camera_input() -> IO.DynamicCombo.Input:
    """The three ways to give the cameras of the pictures."""
    info = IO.Load3DCamera.Input("camera_info", tooltip="Camera of a picture, or a list of cameras.")
    return IO.DynamicCombo.Input(
        "cameras",
        options=[
            # orbit is first: the page cannot make a node whose first option has a socket
            IO.DynamicCombo.Option("orbit", orbit_inputs()),
            IO.DynamicCombo.Option(
                "views", [LucidViewsType.Input("views", tooltip="Cameras from Lucid Load Views.")]
            ),
            IO.DynamicCombo.Option(
                "camera_info",
                [
                    IO.Autogrow.Input(
                        "camera_infos",
                        template=IO.Autogrow.TemplatePrefix(
                            info, prefix="camera_info", min=1, max=MOST_CAMERAS
                        ),
                        tooltip="A camera_info per picture, in their order, as from Create Camera Info.",
                    )
                ],
            ),
        ],
        tooltip="Cameras of the pictures. orbit: by azimuth and elevation around the origin, as of a "
        "multi-view model; views: of Lucid Load Views; camera_info: one socket per picture.",
    )


def orbit_inputs() -> list[IO.Input]:
    """Cameras that look at the origin, by their angles."""
    return [
        IO.String.Input(
            "azimuths",
            default="0, 60, 120, 180, 240, 300",
            tooltip="Azimuth of each picture in degrees, separated by commas; 0 = front, 90 = the viewer's "
            "right.",
        ),
        IO.String.Input(
            "elevations",
            default="0",
            tooltip="Elevation of each picture in degrees, separated by commas, or one for all; 90 = from "
            "above.",
        ),
        IO.Float.Input(
            "radius",
            default=5.0,
            min=0.01,
            max=1000.0,
            step=0.1,
            tooltip="Distance of the cameras from the origin in world units.",
        ),
        IO.Float.Input(
            "fov",
            default=35.0,
            min=0.5,
            max=120.0,
            step=0.5,
            tooltip="Field of view in degrees across the smaller image side.",
        ),
    ]


def cameras_of(chosen: dict[str, Any], image: torch.Tensor) -> Cameras:
    """The cameras of `image` (V, H, W, C) from the value of `camera_input`.

    Raises BadSetting or BadInput, which name the widget, for cameras that do not fit the pictures.
    """
    chosen = chosen_of("cameras", ("views", "orbit", "camera_info"), chosen)
    views, height, width = image.shape[:3]
    if chosen["cameras"] == "views":
        if chosen.get("views") is None:
            raise BadInput("views", "is not connected; connect Lucid Load Views, or choose other cameras")
        return chosen["views"].for_size(width, height)
    if chosen["cameras"] == "camera_info":
        infos = (chosen.get("camera_infos") or {}).values()
        return host.cameras_of([info for info in infos if info is not None], width, height)
    azimuths = number_list("azimuths", chosen["azimuths"])
    elevations = number_list("elevations", chosen["elevations"])
    counts = f"{views} numbers, one per picture"
    require(len(azimuths) == views, "azimuths", f"{len(azimuths)} numbers", counts)
    require(len(elevations) in (1, views), "elevations", f"{len(elevations)} numbers", f"{counts}, or one")
    angles = [
        torch.tensor(degrees).deg2rad().expand(views).contiguous() for degrees in (azimuths, elevations)
    ]
    sizes = torch.full((views,), chosen["radius"]), torch.full((views,), math.radians(chosen["fov"]))
    return orbit(*angles, *sizes, width, height)
