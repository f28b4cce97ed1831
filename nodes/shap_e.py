import torch
from comfy_api.latest import IO

from ..lucid_core.starts import shap_e
from ..lucid_core.starts.mesh import sample_surface
from ..lucid_core.starts.points import Start
from ..lucid_core.starts.shap_e import ShapE
from . import host
from .inputs import CATEGORY, errors_of, fold_seed, inputs_of, seed_input
from .starts import SPLAT_TOOLTIP


class LucidShapE(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidShapE",
            display_name="Lucid Shap-E",
            category=CATEGORY,
            search_aliases=["text to 3d", "shap-e", "shape", "text to point cloud", "init splat from text"],
            description="Generates a rough coloured shape from a text with Shap-E, as a starting point for "
            "Lucid Dream. Needs the diffusers package and the openai/shap-e weights; nothing is downloaded.",
            inputs=[
                IO.String.Input(
                    "text",
                    multiline=True,
                    tooltip="Text that describes the object. Short descriptions work best: a red chair.",
                ),
                IO.Combo.Input(
                    "model",
                    options=host.shap_e_models(),
                    tooltip="Shap-E weights: a folder in models/diffusers. openai/shap-e = the copy in the "
                    "Hugging Face cache.",
                ),
                *inputs_of(Start, "count", "size"),
                *inputs_of(ShapE, "steps", "guidance_scale"),
                seed_input(),
                *inputs_of(Start, "opacity", "thickness"),
                *inputs_of(ShapE, "grid"),
            ],
            outputs=[IO.Splat.Output(display_name="splat", tooltip=SPLAT_TOOLTIP)],
        )

    @classmethod
    def execute(
        cls, text, model, count, size, steps, guidance_scale, seed, opacity, thickness, grid
    ) -> IO.NodeOutput:
        with errors_of(cls):
            config = ShapE(steps, guidance_scale, grid)
            start = Start(count, size, opacity, thickness)
            seed = fold_seed(seed)
            progress = host.Progress(config.evaluations)

            def advance(done: int) -> None:
                host.check_interrupt()
                progress.update(done)

            pipeline = shap_e.load(host.shap_e_folder(model), host.half_is_faster())
            with host.on_device(shap_e.networks_of(pipeline), config.working_bytes):
                mesh = config.mesh(pipeline, text, seed, advance)
            points, colors, normals = sample_surface(mesh, count, torch.Generator().manual_seed(seed))
            return IO.NodeOutput(host.from_splats(start.splats(points, colors, seed, normals)))
