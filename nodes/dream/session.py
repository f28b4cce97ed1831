"""The user-facing side of a Lucid Dream run: progress, previews, checkpoints and what is saved on a stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from ...lucid_core.errors import NotFinite
from ...lucid_core.guidance.mixing import GuidanceSource, MixedSource
from ...lucid_core.io import ply
from ...lucid_core.optimize.config import DreamConfig
from ...lucid_core.optimize.loop import Step
from ...lucid_core.optimize.selection import Subject
from ...lucid_core.optimize.time_left import TimeLeft
from ...lucid_core.splats import Splats
from .. import host
from ..inputs import UNFINISHED
from .checkpoints import CheckpointWriter
from .preview import Preview

log = logging.getLogger(__name__)
LOG_STEPS = 50


class Session:
    """Reports each step of a run, on the node and in the log; `note` is shown with every report.

    subject: the optimised and fixed Gaussians. node_id: the node on the page; None = there is no page. title:
    display name of the node, for the log.
    """

    noun = "splat"  # what the run gives

    def __init__(
        self,
        config: DreamConfig,
        subject: Subject,
        preview: Preview,
        checkpoints: CheckpointWriter,
        note: str,
        node_id: str | None,
        title: str = "Lucid Dream",
    ) -> None:
        self.config, self.subject, self.preview, self.checkpoints = config, subject, preview, checkpoints
        self.steps, self.note, self.node_id = config.budget.steps, note, node_id
        self.title = title
        self.time_left = TimeLeft(config.budget)
        self.first: Step | None = None  # first step reported
        self.last: Step | None = None
        self.stopped = ""  # why the run ended early with a valid splat; "" = it did not
        self.begun = time.monotonic()
        self.progress = host.Progress(config.budget.steps)
        if note:
            log.warning("%s: %s", title, note)

    def follow(self, steps: Iterable[Step], source: GuidanceSource | MixedSource | None = None) -> None:
        """Report all `steps`, guided by `source`; a numerical error ends them with the last valid splat."""
        self.time_left = TimeLeft(self.config.budget, source)
        try:
            for step in steps:
                self.report(step)
        except NotFinite as error:
            self.stop(error)

    @contextmanager
    def rescue_on_stop(self) -> Iterator[None]:
        """Save what there is if the run is cancelled or fails; otherwise end it."""
        try:
            yield
        except BaseException:
            self.rescue()
            raise
        self.end()

    def report(self, step: Step) -> None:
        """Update progress, preview, log and checkpoint after `step`. Raises if the user cancelled the run."""
        slower = step.slowdown and not (self.last and self.last.slowdown)
        self.first, self.last = self.first or step, step
        self.time_left.add(step)
        image = None
        if slower or self.preview.is_due() or step.progress == 1:
            image = self.preview.draw(step)
            host.show_text(self.node_id, self.status(step))
        self.progress.update(round(step.progress * self.steps), image)
        if step.step % LOG_STEPS == 0 or step.progress == 1:
            log.info("%s: %s, %d evaluations", self.title, self.status(step), step.evaluations)
        if self.checkpoints.is_due():
            self.checkpoints.write(step)
            if self.checkpoints.failure:
                host.show_text(self.node_id, self.status(step))
        host.check_interrupt()

    def status(self, step: Step) -> str:
        """Step, time per step, time left, number of Gaussians, losses, notes.

        The first step reported compiles kernels, so no times are shown for it.
        """
        text = [f"step {step.step} of {self.steps}"]
        pace, left_s = self.time_left.seconds_per_step(), self.time_left.seconds()
        if pace is not None and left_s is not None and step is not self.first:
            minutes, seconds = divmod(round(left_s), 60)
            left = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
            text += [f"{pace:.2f} s a step", f"{left} left"]
        text += [self.size_of(step)]
        losses = ", ".join(f"{name} {value:.3g}" for name, value in step.losses.items())
        lines = (", ".join(text), losses, self.checkpoints.failure, self.note, step.slowdown)
        return "\n".join(filter(None, lines))

    def end(self) -> None:
        """Write the final checkpoint; log it if the time limit ended the run."""
        if self.last is None:
            return
        self.checkpoints.finish(self.last)
        if self.last.progress == 1 and self.last.step < self.steps:
            log.info(
                "%s: time limit (max_minutes) reached after %d of %d steps.",
                self.title,
                self.last.step,
                self.steps,
            )

    def stop(self, error: NotFinite) -> None:
        """End the run with the last finite splat; before the first step, that is the start splat."""
        self.stopped = str(error)
        result = f"{self.noun} of step {self.last.step}" if self.last else f"start {self.noun}, unchanged,"
        log.warning("%s: %s. The %s is returned.", self.title, error, result)
        host.show_text(self.node_id, f"Stopped: {error}.\nThe {result} is returned.")

    def add_note(self, note: str) -> None:
        """Show and log `note` with the status of the last step."""
        self.note = "\n".join(filter(None, (self.note, note)))
        log.info("%s: %s", self.title, note)
        if self.last and not self.stopped:
            host.show_text(self.node_id, self.status(self.last))

    def rescue(self) -> None:
        """Save the splat and the checkpoint of a cancelled or failed run; show and log their file names."""
        if self.last is None:
            host.show_text(self.node_id, "Stopped before the first step was finished.")
            return
        saved = self.save_unfinished()
        self.checkpoints.finish(self.last)
        # Two short lines, because the node has room for them.
        lines = [f"Stopped at step {self.last.step} of {self.steps}. {saved}".rstrip()]
        if self.checkpoints.saved_step == self.last.step:
            lines.append(f"To go on, resume: {self.checkpoints.name}")
        elif self.checkpoints.saved_step:
            lines.append(f"To go on from step {self.checkpoints.saved_step}, resume: {self.checkpoints.name}")
        log.warning("%s: %s", self.title, " ".join(lines))
        host.show_text(self.node_id, "\n".join(lines))

    def size_of(self, step: Step) -> str:
        """The size of the result of `step`, in words."""
        return f"{len(step.splats):,} Gaussians"

    def save_unfinished(self) -> str:
        """Save the result of a stopped run; says where it is, why it is not, or nothing."""
        try:
            path, entry = host.output_path(UNFINISHED, "ply")
            ply.write(path, self.splats())
        except OSError as error:  # a full disk must not hide the error that stopped the run
            log.error("%s could not save the unfinished splat: %s", self.title, error)
            return f"The splat could not be saved: {error}"
        return f"Splat: {host.name_of(entry)}"

    def splats(self) -> Splats:
        """The whole splat after the last step, in the frame of the input splat, on the CPU."""
        last = self.last.splats.map(torch.Tensor.cpu) if self.last else self.subject.free
        return self.subject.whole(last, self.config.task.freeze_geometry)

    def size(self) -> dict:
        """The size of the result, for the summary."""
        return {"splats": len(self.splats())}

    def summary(self) -> dict:
        """Summary of the run for the API; times in seconds. "stopped" is set only after a numerical error."""
        return {
            "steps": self.last.step if self.last else 0,
            "evaluations": self.last.evaluations if self.last else 0,
            **self.size(),
            "losses": self.last.losses if self.last else {},
            "seconds": round(time.monotonic() - self.begun, 1),
            "preview_seconds": round(self.preview.seconds_spent(), 3),
            "checkpoint": self.checkpoints.name,
            **({"stopped": self.stopped} if self.stopped else {}),
        }
