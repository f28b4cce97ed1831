"""What a run starts from, and the checkpoint file that it writes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from ...lucid_core.optimize.checkpoint import Checkpoint, Settings, read, write
from ...lucid_core.optimize.loop import Step
from ...lucid_core.optimize.selection import Subject, whole_splat
from ...lucid_core.splats import Splats
from .. import host

log = logging.getLogger(__name__)
PREFIX = "lucid/run"  # under the output folder


def start_of(splat: Any, resume: str, splat_only: bool) -> tuple[Splats, Checkpoint | None, Settings | None]:
    """The start of a run, the checkpoint to resume and the settings of its run; None = a new run.

    splat: the host's SPLAT. resume: file under the output folder, "" = none. splat_only: start anew from the
    splat of the checkpoint. Raises BadSetting or BadFile for a file that is not a checkpoint.
    """
    start = host.one_splat(splat)
    if not resume:
        return start, None, None
    checkpoint, settings = read(host.output_file("resume", resume))
    if splat_only:
        return whole_splat(checkpoint, settings), None, None
    return start, checkpoint, settings


class CheckpointWriter:
    """Writes the checkpoints of a run to one file; each one overwrites the previous one.

    settings: returns the current settings that the result of the run depends on. enabled: False = write
    nothing. minutes: time between checkpoints, 0 = only at the end. kept: number of checkpoint files to keep,
    including those of earlier runs. resumed: name of the checkpoint that the run was resumed from, which is
    never deleted; "" = none. title: display name of the node, for the log.
    """

    def __init__(
        self,
        subject: Subject,
        settings: Callable[[], Settings],
        enabled: bool,
        minutes: float,
        kept: int,
        resumed: str,
        title: str = "Lucid Dream",
    ) -> None:
        self.title = title
        self.subject = subject
        self.settings = settings
        self.enabled = enabled
        self.kept = kept
        self.resumed = resumed
        self.seconds = 60 * minutes or math.inf
        self.failure = ""  # why the last checkpoint could not be saved; "" = it was saved
        self.saved_step = 0
        self._last, self._file = time.monotonic(), None

    @property
    def name(self) -> str | None:
        """File name under the output folder; None before the first checkpoint."""
        return host.name_of(self._file[1]) if self.saved_step else None

    def is_due(self) -> bool:
        """Whether the checkpoint interval has passed."""
        return time.monotonic() - self._last >= self.seconds

    def write(self, step: Step) -> None:
        """Write the checkpoint of `step`.

        A write error, such as a full disk, does not stop the run: it is logged and stored in `failure`.
        """
        self._last = time.monotonic()
        if not self.enabled or step.step == self.saved_step:
            return
        try:
            self._file = self._file or host.output_path(PREFIX, "safetensors")
            write(self._file[0], self.subject.kept(step.checkpoint()), self.settings())
        except (OSError, RuntimeError) as error:
            log.error("%s could not save its checkpoint: %s", self.title, error)
            self.failure = f"The checkpoint could not be saved: {error}"
            return
        self.failure, self.saved_step = "", step.step
        log.info("%s: checkpoint of step %d: %s", self.title, step.step, self.name)

    def finish(self, step: Step) -> None:
        """Write the checkpoint of the last step and delete the checkpoints of old runs beyond `kept`."""
        self.write(step)
        if self.saved_step:
            host.delete_old(PREFIX, "safetensors", self.kept, self.resumed)
