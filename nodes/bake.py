import io
import logging

from comfy_api.latest import IO, Types

from ..lucid_core.bake.solid import VIEWS, Solid, solidify
from ..lucid_core.bake.texture import Bake, Baked, bake
from ..lucid_core.io import glb
from ..lucid_core.rasterize import Renderer
from ..lucid_core.starts.mesh import Mesh
from ..lucid_core.starts.points import AXES
from . import host
from .inputs import CATEGORY, backend_input, errors_of, inputs_of

log = logging.getLogger(__name__)
SHARED = 0.02  # fraction of overlapping UVs that is worth a warning


class LucidSolidSplat(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidSolidSplat",
            display_name="Lucid Solid Splat",
            category=CATEGORY,
            search_aliases=["clean splat", "splat to mesh", "remove fog", "remove floaters", "watertight"],
            description="Fills the space that a splat encloses with opaque Gaussians on a grid, so that "
            "Extract Mesh from Splat finds one closed surface, without fog, holes and inner walls.",
            inputs=[
                IO.Splat.Input("splat", tooltip="A single splat. Its colours are not kept."),
                *inputs_of(Solid),
                backend_input(),
            ],
            outputs=[
                IO.Splat.Output(
                    display_name="solid",
                    tooltip="The filled shape in one colour, for Extract Mesh from Splat.",
                )
            ],
        )

    @classmethod
    def execute(cls, splat, cells, min_opacity, backend="auto") -> IO.NodeOutput:
        with errors_of(cls):
            progress = host.Progress(VIEWS)

            def show(done):
                host.check_interrupt()
                progress.update(done)

            item, config = host.one_splat(splat), Solid(cells, min_opacity)
            return IO.NodeOutput(host.from_splats(solidify(item, config, Renderer(backend), show)))


class LucidBakeTexture(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidBakeTexture",
            display_name="Lucid Bake Texture",
            category=CATEGORY,
            search_aliases=[
                "splat to textured mesh",
                "bake texture",
                "splat to glb",
                "uv unwrap",
                "game asset",
            ],
            description="Bakes the colours of a splat into the texture of its mesh. A mesh without UVs is "
            "simplified and unwrapped first, which needs the packages xatlas and fast-simplification.",
            inputs=[
                IO.Splat.Input("splat", tooltip="A single splat, whose colours become the texture."),
                IO.Mesh.Input(
                    "mesh",
                    tooltip="A single mesh of the same object in the same place, such as from Extract Mesh "
                    "from Splat. Its colours and texture are replaced.",
                ),
                *inputs_of(Bake),
                backend_input(),
            ],
            outputs=textured_outputs(),
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, splat, mesh, size, faces, views, angle_power, backend="auto") -> IO.NodeOutput:
        with errors_of(cls):
            config = Bake(size, faces, views, angle_power)
            progress = host.Progress(2 * views)

            def show(done, picture):
                host.check_interrupt()
                progress.update(done, picture)

            surface = host.to_mesh(mesh).rotate(AXES["y up"])
            baked = bake(host.one_splat(splat), surface, config, Renderer(backend), show)
            text = text_of(baked)
            log.info("Lucid Bake Texture: %s", text)
            host.show_text(host.node_of_page(cls.hidden), text)
            return textured_output(baked.mesh)


def textured_outputs() -> list[IO.Output]:
    """The outputs that `textured_output` fills."""
    return [
        IO.File3DGLB.Output(
            display_name="model_3d",
            tooltip="The textured mesh as .glb with an unlit material, for Save 3D Model and Preview 3D. It "
            "looks as the splat does.",
        ),
        IO.Mesh.Output(
            display_name="mesh",
            tooltip="The textured mesh, for other mesh nodes. ComfyUI saves it with a lit material.",
        ),
        IO.Image.Output(display_name="texture", tooltip="The texture (sRGB), for Save Image."),
    ]


def textured_output(mesh: Mesh) -> IO.NodeOutput:
    """The textured `mesh`, in the splat's frame, as .glb, MESH and IMAGE."""
    textured = mesh.rotate(AXES["y up"].T)
    made = host.from_mesh(textured)
    file = Types.File3D(io.BytesIO(glb.encode(textured)), file_format="glb")
    return IO.NodeOutput(file, made, made.texture)


def text_of(baked: Baked) -> str:
    """What the node says about a finished bake."""
    said = [f"{len(baked.mesh.faces)} faces, {baked.texels} texels, {baked.seen:.1%} of them seen."]
    if baked.left_out:
        said.append(f"{baked.left_out} Gaussians outside the mesh's box were left out.")
    if baked.overlap > SHARED:
        said.append(f"{baked.overlap:.0%} of the UVs overlap: these faces share their texels.")
    return " ".join(said)
