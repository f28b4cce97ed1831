"""What differs where a run optimises a field: its result, its size, and what is saved on a stop."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lucid_core.cameras import turntable
from ...lucid_core.errors import UnfinishedStep
from ...lucid_core.field.grid import Field
from ...lucid_core.field.render import render
from ...lucid_core.optimize.checkpoint import Checkpoint, checkpoint_of_field, write
from ...lucid_core.optimize.loop import Step
from ...lucid_core.rasterize import Renderer, to_device
from .. import host
from ..inputs import UNFINISHED
from .preview import SIZE
from .session import Session

log = logging.getLogger(__name__)
TURNS = 36  # previews in one turn of the camera


@dataclass(frozen=True)
class FieldSubject:
    """The field that a run optimises; for fields what `Subject` is for splats."""

    start: Field

    def kept(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as it is written: a field has no fixed part."""
        return checkpoint


class FieldSession(Session):
    """The Session of a field."""

    noun = "field"
    subject: FieldSubject

    def field(self) -> Field:
        """The field after the last step, on the CPU."""
        return self.last.result.to("cpu") if self.last else self.subject.start

    def size_of(self, step: Step) -> str:
        """See Session."""
        return f"{step.result.resolution} grid points a side"

    def size(self) -> dict:
        """See Session."""
        return {"resolution": self.field().resolution}

    def save_unfinished(self) -> str:
        """See Session: the checkpoint holds the field. After an update of the parameters that failed there is
        none, so the field is written alone.
        """
        if not self.checkpoints.enabled:
            return "The field is not saved: save_checkpoint is off."
        try:
            self.last.checkpoint()
        except UnfinishedStep:
            return self.save_field()
        return ""

    def save_field(self) -> str:
        """Write the field alone, for a new run by `resume_field_only`; says where it is, or why it is not."""
        try:
            path, entry = host.output_path(UNFINISHED, "safetensors")
            write(path, checkpoint_of_field(self.field(), self.last.step), {})
        except OSError as error:  # a full disk must not hide the error that stopped the run
            log.error("%s could not save the unfinished field: %s", self.title, error)
            return f"The field could not be saved: {error}"
        return f"Field, for resume with resume_field_only: {host.name_of(entry)}"


def turned_field(field: Field, picture: int, renderer: Renderer) -> Tensor:
    """As `preview.turned_view`, of a field: (SIZE, SIZE, 3) on white, the ball inside the cube in view."""
    around = turntable(TURNS, 15.0, 2.2 * field.extent, 26.0, SIZE, SIZE)
    camera = to_device(around.map(lambda x: x[picture % TURNS, None]), field.grid.device)
    with torch.no_grad():
        return render(field, camera, SIZE, SIZE, field.grid.new_ones(3)).rgb[0].cpu()
