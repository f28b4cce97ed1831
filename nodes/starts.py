import logging

import torch
from comfy_api.latest import IO

from ..lucid_core.io import point_files
from ..lucid_core.settings import require
from ..lucid_core.starts.depth import ENCODINGS, Relief
from ..lucid_core.starts.mesh import sample_surface, to_linear
from ..lucid_core.starts.points import AXES, Start
from . import host
from .inputs import CATEGORY, errors_of, fold_seed, hex_color, inputs_of, seed_input

log = logging.getLogger(__name__)
SPLAT_TOOLTIP = "Gaussians at the points, scaled to the point spacing, to start Lucid Dream from."


class LucidPointsFromMesh(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidPointsFromMesh",
            display_name="Lucid Points from Mesh",
            category=CATEGORY,
            search_aliases=[
                "mesh to splat",
                "mesh to point cloud",
                "sample mesh surface",
                "init splat from mesh",
            ],
            description="Places Gaussians evenly on the surface of a mesh, with its colours, as a starting "
            "point for Lucid Dream.",
            inputs=[
                IO.Mesh.Input(
                    "mesh",
                    tooltip="A single mesh. Its front faces +z and +y is up, as in ComfyUI's 3D viewer.",
                ),
                *inputs_of(Start, "count", "size"),
                IO.Color.Input(
                    "color",
                    default="#808080",
                    tooltip="Colour if the mesh has none. Grey lets the model choose the colours.",
                ),
                seed_input(),
                *inputs_of(Start, "opacity", "thickness"),
            ],
            outputs=[IO.Splat.Output(display_name="splat", tooltip=SPLAT_TOOLTIP)],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, mesh, count, size, color, seed, opacity, thickness) -> IO.NodeOutput:
        with errors_of(cls):
            start, seed = Start(count, size, opacity, thickness), fold_seed(seed)
            surface = (
                host.to_mesh(mesh).rotate(AXES["y up"]).fill_color(to_linear(torch.tensor(hex_color(color))))
            )
            points, colors, normals = sample_surface(surface, count, torch.Generator().manual_seed(seed))
            say_strays(cls, start, points)
            return IO.NodeOutput(host.from_splats(start.splats(points, colors, seed, normals)))


class LucidPointsFromDepth(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidPointsFromDepth",
            display_name="Lucid Points from Depth",
            category=CATEGORY,
            search_aliases=[
                "image to splat",
                "depth to splat",
                "depth to point cloud",
                "rgbd to splat",
                "unproject depth",
            ],
            description="Places Gaussians on the visible side of an object from an image and its depth "
            "map. Lucid Dream then generates the other sides.",
            inputs=[
                IO.Image.Input("image", tooltip="A single image. It becomes the front view (azimuth 0)."),
                IO.MultiType.Input(
                    "depth",
                    types=[IO.Image, IO.Mask],
                    tooltip="Depth map of the image, for example from Depth Anything, MiDaS or MoGe.",
                ),
                IO.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 = object, 0 = background, which is removed (invert the mask of Load Image). "
                    "Empty = keep all pixels.",
                ),
                IO.Combo.Input(
                    "encoding",
                    options=list(ENCODINGS),
                    tooltip="disparity: bright = near, linear in 1 / distance (Depth Anything, MiDaS, "
                    "MoGe). linear: bright = near, linear in distance (Lucid Render). distance: values are "
                    "distances in any unit.",
                ),
                *inputs_of(Relief),
                *inputs_of(Start, "count", "size"),
                seed_input(),
                *inputs_of(Start, "opacity"),
            ],
            outputs=[
                IO.Splat.Output(display_name="splat", tooltip=SPLAT_TOOLTIP),
                IO.Load3DCamera.Output(
                    display_name="camera_info",
                    tooltip="Camera of the image. Lucid Render reproduces the same view with it.",
                ),
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, image, depth, encoding, fov_deg, depth_share, count, size, seed, opacity, mask=None
    ) -> IO.NodeOutput:
        with errors_of(cls):
            relief, start = Relief(encoding, fov_deg, depth_share), Start(count, size, opacity)
            for name, value in (("image", image), ("depth", depth), ("mask", mask)):
                n = 1 if value is None else len(value)
                require(n == 1, name, f"a batch of {n}", "a single image")
            grey = depth[0].float().cpu()
            grey = grey[..., :3].mean(-1) if grey.ndim == 3 else grey
            kept = mask[0].float().cpu() if mask is not None else None
            picture = image[0, ..., :3].float().cpu()
            say_strays(cls, start, relief.cloud(picture, grey, kept)[0])
            splats, camera = relief.splats(picture, grey, kept, start, fold_seed(seed))
            position = -camera.viewmats[0, :3, 3]
            distance = float((splats.means - position)[:, 2].mean())
            target = position + torch.tensor([0.0, 0.0, distance])
            return IO.NodeOutput(host.from_splats(splats), host.camera_info_of(position, target, fov_deg))


class LucidPointsFromFile(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidPointsFromFile",
            display_name="Lucid Points from File",
            category=CATEGORY,
            search_aliases=[
                "load point cloud",
                "ply to splat",
                "npz to splat",
                "point cloud to splat",
                "import points",
            ],
            description="Places Gaussians at the points of a .ply or .npz file, with their colours, as a "
            "starting point for Lucid Dream.",
            inputs=[
                IO.Combo.Input(
                    "file",
                    options=host.point_files(),
                    tooltip="A .ply file (points, or a mesh whose surface is sampled) or .npz file "
                    "(points, colors) in the input folder or input/3d. For a Gaussian splat, use Load 3D "
                    "(Advanced) and Get Splat instead.",
                ),
                IO.Combo.Input(
                    "axes",
                    options=list(AXES),
                    tooltip="Axis convention of the file. y up: meshes, front at +z. z up: Blender and "
                    "scanners, front at -y. y down: splats and COLMAP, front at -z.",
                ),
                *inputs_of(Start, "count", "size"),
                seed_input(),
                *inputs_of(Start, "opacity"),
                *inputs_of(Start, "copies", "scatter", optional=True),
            ],
            outputs=[IO.Splat.Output(display_name="splat", tooltip=SPLAT_TOOLTIP)],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file):
        return (
            host.input_exists(file) or f"file is {file!r}; it must be the name of a file in the input folder"
        )

    @classmethod
    def fingerprint_inputs(cls, file, **others):
        return host.input_stamp(file)

    @classmethod
    def execute(cls, file, axes, count, size, seed, opacity, **copies) -> IO.NodeOutput:
        with errors_of(cls):
            start, seed = Start(count, size, opacity, **copies), fold_seed(seed)
            points, colors = point_files.read(host.input_file(file), count, seed)
            points = points @ AXES[axes].to(points).T
            say_strays(cls, start, points)
            return IO.NodeOutput(host.from_splats(start.splats(points, colors, seed)))


def say_strays(node: type[IO.ComfyNode], start: Start, points: torch.Tensor) -> None:
    """Show on the node and log how many of `points` (N, 3) are removed as outliers, if any."""
    strays = int(start.strays(points).sum())
    if strays:
        text = f"{strays} of {len(points)} points are removed as outliers: they lie far from all others."
        log.warning("%s: %s", node.define_schema().display_name, text)
        host.show_text(host.node_of_page(node.hidden), text)
