from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import IO

from ...lucid_core.cameras import CameraRanges
from ...lucid_core.field.grid import require_memory
from ...lucid_core.optimize.checkpoint import FIELD, changing, read, require_same, settings_of
from ...lucid_core.optimize.config import Budget, DreamConfig, Task
from ...lucid_core.optimize.radiance import PRESETS, FieldConfig, distil_field
from ...lucid_core.rasterize import Renderer, require_usable
from .. import host
from ..inputs import (
    CATEGORY,
    DEVICE,
    backend_input,
    chosen_of,
    errors_of,
    fold_seed,
    inputs_of,
    replace_from_widgets,
    seed_input,
)
from ..types import LucidFieldType
from .checkpoints import CheckpointWriter
from .field_session import FieldSession, FieldSubject, turned_field
from .inputs import checkpoint_inputs, guidance_inputs, preview_input, resume_inputs, x0_preview_input
from .node import OF_PRESET
from .preview import Preview

TITLE = "Lucid Dream Field"
# settings of a preset
PLAIN, RESIDUAL = ("lr_density", "lr_color", "entropy_weight", "opaque_weight"), "image_residual"


class LucidDreamField(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidDreamField",
            display_name=TITLE,
            category=CATEGORY,
            search_aliases=["text to nerf", "nerf", "radiance field", "score distillation", "text to 3d"],
            description="Optimises a radiance field (NeRF) so that it matches the prompt from every view, as "
            "Lucid Dream does a splat. A field can form holes and handles that the starting shape lacks.",
            inputs=[
                LucidFieldType.Input("field", tooltip="Field to start from, from Lucid Field."),
                *guidance_inputs(),
                IO.DynamicCombo.Input(
                    "preset",
                    options=[
                        IO.DynamicCombo.Option(
                            name,
                            [
                                *inputs_of(config.budget, *OF_PRESET),
                                *inputs_of(field, *PLAIN, optional=True),
                                *inputs_of(config.optimizer.pixels, RESIDUAL, optional=True),
                            ],
                        )
                        for name, (config, field) in PRESETS.items()
                    ],
                    tooltip="Sets the values below it, which can then be edited, and the augmentation. "
                    "official: as many steps as for splats, for a GPU. cpu: fewer steps with higher "
                    "learning rates.",
                ),
                seed_input("field"),
                backend_input(DEVICE),
                *resume_inputs("field"),
                *inputs_of(Budget, "max_minutes", optional=True),
                *inputs_of(Task, optional=True),
                *inputs_of(
                    FieldConfig,
                    "levels",
                    "tv_weight",
                    "late",
                    "sparsity_weight",
                    "orient_weight",
                    optional=True,
                ),
                preview_input(),
                x0_preview_input("field"),
                *checkpoint_inputs("is lost"),
            ],
            outputs=[LucidFieldType.Output(display_name="field", tooltip="The optimised field.")],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, resume="", **others):
        return host.output_stamp(resume) if resume else ""

    @classmethod
    def check_lazy_status(cls, preset=None, guidance=None, backend="auto", resume="", **others):
        with errors_of(cls):
            configs_of(chosen_of("preset", PRESETS, preset), others)
            require_usable(backend)
            if resume:
                host.output_file("resume", resume)
            return [] if guidance else ["guidance"]

    @classmethod
    def execute(
        cls,
        field,
        guidance,
        preset,
        seed,
        cameras=None,
        backend="auto",
        resume="",
        resume_field_only=False,
        checkpoint_minutes=5.0,
        preview_seconds=2.0,
        preview_wanted=False,
        save_checkpoint=True,
        checkpoints_kept=10,
        **settings,
    ) -> IO.NodeOutput:
        with errors_of(cls):
            config, own = configs_of(chosen_of("preset", PRESETS, preset), settings)
            ranges, seed = cameras or CameraRanges(), fold_seed(seed)
            with torch.inference_mode(False):
                start, checkpoint, saved = field.detach(), None, None
            if resume:
                checkpoint, saved = read(host.output_file("resume", resume), FIELD)
                if resume_field_only:
                    start, checkpoint = checkpoint.field(), None
            free = host.memory_of(Renderer(backend).device)
            require_memory(start.resolution, free, "the field's resolution")
            depends_on = settings_of(start, seed, config, own, ranges, **host.depends_on(guidance))
            if checkpoint:
                require_same(saved, depends_on)

            subject = FieldSubject(start)
            current = lambda: changing(depends_on, host.held_by_patches(guidance))
            files = (save_checkpoint, checkpoint_minutes, checkpoints_kept, resume)
            writer = CheckpointWriter(subject, current, *files, TITLE)
            preview = Preview(preview_seconds, preview_wanted, None, Renderer(backend), turned_field)
            node_id = host.node_of_page(cls.hidden)
            session = FieldSession(config, subject, preview, writer, "", node_id, TITLE)

            def run(source):
                steps = distil_field(start, source, ranges, config, own, seed, backend, checkpoint)
                session.follow(steps, source)

            with session.rescue_on_stop():
                host.with_source(guidance, config.budget.views, config.budget.resolution, run)
            return IO.NodeOutput(session.field(), ui={"lucid": [session.summary()]})


def configs_of(preset: dict[str, Any], widgets: dict[str, Any]) -> tuple[DreamConfig, FieldConfig]:
    """The settings of a run: those of the preset and the values of the widgets.

    Raises BadSetting if a value is invalid.
    """
    base, field = PRESETS[preset["preset"]]
    # an optional widget of a dynamic combo that is absent is None
    values = {name: value for name, value in {**preset, **widgets}.items() if value is not None}
    budget, task = replace_from_widgets(base.budget, values), replace_from_widgets(base.task, widgets)
    pixels = replace_from_widgets(base.optimizer.pixels, values)
    config = DreamConfig(budget, task, replace(base.optimizer, pixels=pixels))
    return config, replace_from_widgets(field, values)
