"""Radiance fields: the start, renders, and the way to a splat or a mesh."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial

import torch
from comfy_api.latest import IO

from ..lucid_core.cameras import orbit
from ..lucid_core.field.grid import Field, FieldStart, require_memory
from ..lucid_core.field.render import render
from ..lucid_core.field.surface import VIEWS, Skin, Surface, find_surface, to_mesh, to_splats
from ..lucid_core.optimize.radiance import fit_splats_to_field
from ..lucid_core.rasterize import device_for, require_usable
from . import host
from .inputs import CATEGORY, DEVICE, backend_input, errors_of, fold_seed, hex_color, inputs_of, seed_input
from .render import draw_frames, turn, view_inputs, view_outputs
from .types import LucidFieldType

log = logging.getLogger(__name__)


class LucidField(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidField",
            display_name="Lucid Field",
            category=CATEGORY,
            search_aliases=["nerf", "radiance field", "voxel field", "init nerf"],
            description="Creates a radiance field (NeRF) in a simple shape around the origin, as a starting "
            "point for Lucid Dream Field.",
            inputs=[
                *inputs_of(FieldStart, "shape", "size", "extent", "resolution"),
                IO.Color.Input(
                    "color",
                    default="#808080",
                    tooltip="Colour of the shape. Grey lets the model choose the colours.",
                ),
                *inputs_of(FieldStart, "fill", optional=True),
            ],
            outputs=[
                LucidFieldType.Output(display_name="field", tooltip="Density and colour on a grid of voxels.")
            ],
        )

    @classmethod
    def execute(cls, shape, size, extent, resolution, color, fill=FieldStart.fill) -> IO.NodeOutput:
        with errors_of(cls):
            start = FieldStart(shape, size, extent, resolution, hex_color(color), fill)
            require_memory(resolution, host.memory_of(device_for("auto")))
            return IO.NodeOutput(start.field())


class LucidRenderField(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidRenderField",
            display_name="Lucid Render Field",
            category=CATEGORY,
            search_aliases=["render nerf", "nerf turntable", "field depth"],
            description="Renders a radiance field: one image or a turntable, with mask and depth.",
            inputs=[
                LucidFieldType.Input("field", tooltip="Field to render."),
                *view_inputs("the ball inside the field's cube"),
                backend_input(DEVICE),
            ],
            outputs=view_outputs("angle"),
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        field,
        width,
        height,
        frames,
        azimuth,
        elevation,
        fov,
        background,
        camera_info=None,
        backend="auto",
    ) -> IO.NodeOutput:
        with errors_of(cls):
            require_usable(backend)
            device = device_for(backend)
            shown, color = field.to(device), torch.tensor(hex_color(background), device=device)
            camera, centre = camera_of(field.extent, elevation, fov, width, height), torch.zeros(3)
            if camera_info is not None:
                camera, centre = host.camera_of(camera_info, width, height)
            cameras = turn(camera, centre, azimuth, frames)
            draw = partial(render, shown, background=color)
            shots = draw_frames(draw, cameras, width, height, device, host.Progress(frames))
            images, masks, depths = map(torch.cat, zip(*shots))
            if not masks.any():
                note = "The field is not visible: it is empty, or no camera looks at it."
                log.warning("Lucid Render Field: %s", note)
                host.show_text(host.node_of_page(cls.hidden), note)
            return IO.NodeOutput(images, masks, depths)


def camera_of(extent: float, elevation_deg: float, fov_deg: float, width: int, height: int):
    """A camera (1) at the front that sees the ball within a cube of side `extent`."""
    half, one = math.radians(fov_deg) / 2, torch.ones(1)
    distance = extent / 2 / math.sin(half)
    return orbit(0 * one, math.radians(elevation_deg) * one, distance * one, 2 * half * one, width, height)


class LucidFieldToSplat(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidFieldToSplat",
            display_name="Lucid Field to Splat",
            category=CATEGORY,
            search_aliases=["nerf to splat", "nerf to gaussian", "convert field", "field surface"],
            description="Covers the surface of a radiance field with flat Gaussians in its colours.",
            inputs=[
                LucidFieldType.Input("field", tooltip="Field from Lucid Dream Field."),
                *inputs_of(Surface),
                IO.Int.Input(
                    "fit_steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Steps of a fit to renders of the field from all around, which also adds "
                    "Gaussians. 0 = no fit.",
                ),
                seed_input(),
                backend_input(),
            ],
            outputs=[
                IO.Splat.Output(display_name="splat", tooltip="The splat, at the field's position and scale.")
            ],
        )

    @classmethod
    def execute(cls, field, cells, min_opacity, smoothing, fit_steps, seed, backend="auto") -> IO.NodeOutput:
        with errors_of(cls), torch.inference_mode(False), torch.enable_grad():
            require_usable(backend)
            progress = host.Progress(VIEWS + fit_steps)
            field = replace(field, grid=torch.clone(field.grid))
            config = Surface(cells, min_opacity, smoothing)
            with torch.no_grad():
                splats = to_splats(find_skin(field, config, backend, progress))
            if fit_steps:
                for step in fit_splats_to_field(splats, field, fit_steps, fold_seed(seed), backend):
                    host.check_interrupt()
                    progress.update(VIEWS + step.step)
                splats = step.splats.map(torch.Tensor.cpu)
            return IO.NodeOutput(host.from_splats(splats))


class LucidFieldToMesh(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidFieldToMesh",
            display_name="Lucid Field to Mesh",
            category=CATEGORY,
            search_aliases=["nerf to mesh", "marching cubes", "surface nets", "field surface"],
            description="Makes a closed mesh with vertex colours from the surface of a radiance field.",
            inputs=[
                LucidFieldType.Input("field", tooltip="Field from Lucid Dream Field."),
                *inputs_of(Surface),
            ],
            outputs=[
                IO.Mesh.Output(
                    display_name="mesh", tooltip="The mesh, upright in the viewer, at the field's scale."
                )
            ],
        )

    @classmethod
    def execute(cls, field, cells, min_opacity, smoothing) -> IO.NodeOutput:
        with errors_of(cls), torch.inference_mode(False), torch.no_grad():
            field = replace(field, grid=torch.clone(field.grid))
            config = Surface(cells, min_opacity, smoothing)
            skin = find_skin(field, config, "auto", host.Progress(VIEWS))
            return IO.NodeOutput(host.from_mesh(to_mesh(skin)))


def find_skin(field: Field, config: Surface, backend: str, progress: host.Progress) -> Skin:
    """`find_surface` on the backend's device, with progress and cancel."""

    def show(views: int) -> None:
        host.check_interrupt()
        progress.update(views)

    return find_surface(field.to(device_for(backend)), config, show)
