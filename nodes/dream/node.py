from __future__ import annotations

from comfy_api.latest import IO

from ...lucid_core.cameras import CameraRanges
from ...lucid_core.optimize.checkpoint import changing, require_same, settings_of
from ...lucid_core.optimize.config import PRESETS, Budget, Task
from ...lucid_core.optimize.guards import view_note
from ...lucid_core.optimize.loop import distil
from ...lucid_core.optimize.selection import Subject, join_splats
from ...lucid_core.rasterize import Renderer, require_usable
from .. import host
from ..inputs import (
    CATEGORY,
    backend_input,
    config_of,
    errors_of,
    fold_seed,
    inputs_of,
    seed_input,
)
from .checkpoints import CheckpointWriter, start_of
from .inputs import (
    checkpoint_inputs,
    guidance_inputs,
    preview_input,
    resume_inputs,
    setting_inputs,
    x0_preview_input,
)
from .preview import Preview
from .session import Session

OF_PRESET = ("steps", "views", "resolution")  # settings that a preset sets on the node


class LucidDream(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidDream",
            display_name="Lucid Dream",
            category=CATEGORY,
            search_aliases=[
                "text to splat",
                "text to 3d",
                "ksampler splat",
                "gaussian optimiser",
                "score distillation",
            ],
            description="Optimises a splat so that it matches the prompt from every view. It has the role "
            "that KSampler has for images.",
            inputs=[
                IO.Splat.Input(
                    "splat", tooltip="Splat to start from: Lucid Point Cloud, or any other splat."
                ),
                *guidance_inputs(),
                *setting_inputs(),
                IO.DynamicCombo.Input(
                    "preset",
                    options=[
                        IO.DynamicCombo.Option(name, inputs_of(own.budget, *OF_PRESET))
                        for name, own in PRESETS.items()
                    ],
                    tooltip="Sets steps, views and resolution, which can then be edited, and learning "
                    "rates, densification and regularisers (see Lucid Optimizer). official: values of the "
                    "paper, for a GPU. cpu: fewer steps with higher learning rates.",
                ),
                seed_input(),
                backend_input(),
                *resume_inputs(),
                *inputs_of(Budget, "max_minutes", optional=True),
                *inputs_of(Task, optional=True),
                IO.Boolean.Input(
                    "fit_to_view",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Centre the splat and scale it to the camera view during optimisation, then "
                    "restore its position and scale. Off = use it as it is; it should be centred at the "
                    "origin.",
                ),
                preview_input(),
                x0_preview_input("splat"),
                *checkpoint_inputs(),
            ],
            outputs=[
                IO.Splat.Output(
                    display_name="splat",
                    tooltip="The optimised splat, at the position and scale of the input splat.",
                )
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, resume="", **others):
        return host.output_stamp(resume) if resume else ""

    @classmethod
    def check_lazy_status(
        cls, preset=None, guidance=None, optimizer=None, backend="auto", resume="", **others
    ):
        with errors_of(cls):
            config_of(PRESETS, preset, optimizer, others)
            require_usable(backend)
            if resume:
                host.output_file("resume", resume)
            return [] if guidance else ["guidance"]

    @classmethod
    def execute(
        cls,
        splat,
        guidance,
        preset,
        seed,
        cameras=None,
        optimizer=None,
        selection=None,
        backend="auto",
        resume="",
        resume_splat_only=False,
        checkpoint_minutes=5.0,
        fit_to_view=False,
        preview_seconds=2.0,
        preview_wanted=False,
        save_checkpoint=True,
        checkpoints_kept=10,
        **settings,
    ) -> IO.NodeOutput:
        with errors_of(cls):
            config = config_of(PRESETS, preset, optimizer, settings)
            ranges, seed = cameras or CameraRanges(), fold_seed(seed)
            start, checkpoint, saved = start_of(splat, resume, resume_splat_only)
            subject = Subject.of(start, selection, fit_to_view)
            parts = filter(None, (selection, subject.frame))
            depends_on = settings_of(start, seed, config, ranges, *parts, **host.depends_on(guidance))
            if checkpoint:
                require_same(saved, depends_on)

            current = lambda: changing(depends_on, host.held_by_patches(guidance))
            writer = CheckpointWriter(
                subject, current, save_checkpoint, checkpoint_minutes, checkpoints_kept, resume
            )
            preview = Preview(preview_seconds, preview_wanted, subject.fixed, Renderer(backend))
            note = view_note(join_splats(subject.free, subject.fixed), ranges)
            session = Session(config, subject, preview, writer, note, host.node_of_page(cls.hidden))

            def run(source):
                source = source.map(lambda one: one.move_to_frame(subject.frame))
                steps = distil(subject.free, source, ranges, config, seed, backend, checkpoint, subject.fixed)
                session.follow(steps, source)

            with session.rescue_on_stop():
                host.with_source(guidance, config.budget.views, config.budget.resolution, run)
            return IO.NodeOutput(host.from_splats(session.splats()), ui={"lucid": [session.summary()]})
