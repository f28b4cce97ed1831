"""Writes the checkpoint file of a run and deletes those of old runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from ...lucid_core.optimize.checkpoint import Settings, write
from ...lucid_core.optimize.loop import Step
from ...lucid_core.optimize.selection import Subject
from .. import host

log = logging.getLogger(__name__)
PREFIX = "lucid/run"  # under the output folder


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
