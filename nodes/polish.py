import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from comfy_api.latest import IO

from ..lucid_core.cameras import CameraRanges
from ..lucid_core.errors import BadInput
from ..lucid_core.guidance.image_targets import ImageTargets
from ..lucid_core.io import glb
from ..lucid_core.io.atomic import atomic_path
from ..lucid_core.optimize.polish import Polish, Polished, polish, require_textured
from ..lucid_core.rasterize import require_usable
from ..lucid_core.settings import bounds_of
from ..lucid_core.starts.points import AXES
from . import host
from .bake import textured_output, textured_outputs
from .inputs import (
    CATEGORY,
    UNFINISHED,
    backend_input,
    errors_of,
    fold_seed,
    inputs_of,
    replace_from_widgets,
    seed_input,
)
from .types import LucidCamerasType, LucidGuidanceData, LucidGuidanceType

log = logging.getLogger(__name__)
TITLE = "Lucid Polish Texture"


class LucidPolishTexture(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        common = ("steps", "views", "resolution")
        rest = [name for name in bounds_of(Polish) if name not in common]
        return IO.Schema(
            node_id="LucidPolishTexture",
            display_name=TITLE,
            category=CATEGORY,
            search_aliases=["refine texture", "texture mesh", "paint mesh", "retexture", "sharpen texture"],
            description="Fits the texture of a mesh to pictures that your model makes of its views, for "
            "clean, sharp colours. The shape stays as it is.",
            inputs=[
                IO.Mesh.Input(
                    "mesh", tooltip="A single mesh with UVs and a texture, as from Lucid Bake Texture."
                ),
                # lazy, so that `check_lazy_status` can check the settings before a model is loaded
                LucidGuidanceType.Input(
                    "guidance", lazy=True, tooltip="Model, prompt and settings from Lucid Image Targets."
                ),
                LucidCamerasType.Input(
                    "cameras",
                    optional=True,
                    tooltip="Cameras of the pictures, at their late ranges. Empty = the official ranges. The "
                    "mesh is centred and scaled into their view.",
                ),
                *inputs_of(Polish, *common),
                seed_input("texture"),
                *inputs_of(Polish, *rest, optional=True),
                backend_input(),
            ],
            outputs=textured_outputs(),
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, guidance=None, backend="auto", **others):
        with errors_of(cls):
            replace_from_widgets(Polish(), others)
            require_usable(backend)
            return [] if guidance else ["guidance"]

    @classmethod
    def execute(cls, mesh, guidance, seed, cameras=None, backend="auto", **settings) -> IO.NodeOutput:
        with errors_of(cls):
            config = replace_from_widgets(Polish(), settings)
            require_targets(guidance)
            start = require_textured(host.to_mesh(mesh).rotate(AXES["y up"]))
            report = Report(config, host.node_of_page(cls.hidden))
            seed, cameras = fold_seed(seed), cameras or CameraRanges()
            run = lambda source: report.follow(polish(start, source, cameras, config, seed, backend))
            with report.rescue_on_stop():
                host.with_source(guidance, config.views, config.resolution, run)
            return textured_output(report.last.mesh())


def require_targets(guidance: object) -> None:
    """Raise BadInput unless `guidance` is that of Lucid Image Targets alone."""
    if not (isinstance(guidance, LucidGuidanceData) and isinstance(guidance.method, ImageTargets)):
        raise BadInput("guidance", "makes no pictures to fit a texture to; connect Lucid Image Targets")


class Report:
    """What the user sees of a run: progress, views, the file of a stopped run. node_id: None = no page."""

    def __init__(self, config: Polish, node_id: str | None) -> None:
        self.steps, self.node_id, self.progress = config.steps, node_id, host.Progress(config.steps)
        self.last: Polished | None = None

    def follow(self, steps: Iterable[Polished]) -> None:
        """Report all `steps`. Raises if the user cancels the run."""
        for step in steps:
            self.last = step
            self.progress.update(step.step, step.picture)
            text = f"step {step.step} of {self.steps}, pixels {step.loss:.3g}, {step.evaluations} evaluations"
            host.show_text(self.node_id, text)
            host.check_interrupt()
        log.info("%s: %s", TITLE, text)

    @contextmanager
    def rescue_on_stop(self) -> Iterator[None]:
        """Save what there is if the run is cancelled or fails."""
        try:
            yield
        except BaseException:
            self.rescue()
            raise

    def rescue(self) -> None:
        """Save the texture of a cancelled or failed run; show and log the file's name."""
        if self.last is None:
            return
        try:
            path, entry = host.output_path(UNFINISHED, "glb")
            with atomic_path(path) as part:
                part.write_bytes(glb.encode(self.last.mesh().rotate(AXES["y up"].T)))
        except OSError as error:  # a full disk must not hide the error that stopped the run
            text = f"The mesh could not be saved: {error}"
        else:
            text = f"The mesh: {host.name_of(entry)}"
        text = f"Stopped at step {self.last.step} of {self.steps}. {text}"
        log.warning("%s: %s", TITLE, text)
        host.show_text(self.node_id, text)
