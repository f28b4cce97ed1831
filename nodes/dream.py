from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import IO

from ..lucid_core import ply
from ..lucid_core.cameras import CameraRanges, Cameras, turntable
from ..lucid_core.checkpoint import Settings, changing, require_same, settings_of
from ..lucid_core.checkpoint import read as read_checkpoint
from ..lucid_core.checkpoint import write as write_checkpoint
from ..lucid_core.dream import PRESETS, DreamConfig, Step, distil, view_note
from ..lucid_core.gaussians import Splats
from ..lucid_core.rasterize import rasterize, require_usable, to_device
from ..lucid_core.refine import Subject, joined, whole_splat
from . import host
from .inputs import CATEGORY, backend_input, chosen_of, errors_of, fold_seed, inputs_of, seed_input
from .optimizer import OF_LUCID_DREAM, RARE_OF_LUCID_DREAM
from .types import LucidCamerasType, LucidGuidanceType, LucidOptimizerType, LucidSelectionType

log = logging.getLogger(__name__)
PREVIEW_SHARE = 0.03  # of the time that previews may take
LOG_STEPS = 50
CHECKPOINTS = "lucid/run"  # under the output folder


class LucidDream(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidDream",
            display_name="Lucid Dream",
            category=CATEGORY,
            search_aliases=["text to splat", "text to 3d", "ksampler splat", "gaussian optimiser", "score distillation"],
            description="Optimises a splat until the model finds the prompt in it from every side: the KSampler of splats.",
            inputs=[
                IO.Splat.Input("splat", tooltip="What to start from: Lucid Point Cloud, or any splat."),
                LucidGuidanceType.Input(  # lazy, so that the host asks `check_lazy_status` before it loads a model
                    "guidance", lazy=True,
                    tooltip="From Lucid ISM, Lucid Baseline or Lucid Mix Guidance: method, model and prompt.",
                ),
                LucidCamerasType.Input("cameras", optional=True, tooltip="Where to look from; empty = the official ranges."),
                LucidOptimizerType.Input(
                    "optimizer", optional=True,
                    tooltip="From Lucid Optimizer: its values in the place of those of `preset`; empty = the preset's.",
                ),
                LucidSelectionType.Input(
                    "selection", optional=True, tooltip="From Lucid Selection: the part that may change; empty = all."
                ),
                IO.DynamicCombo.Input(
                    "preset",
                    options=[IO.DynamicCombo.Option(name, inputs_of(own, *OF_LUCID_DREAM)) for name, own in PRESETS.items()],
                    tooltip="Sets steps, views and resolution, which can then be changed, and learning rates, growth and "
                    "regularisers (see Lucid Optimizer). official: the paper's, for a GPU. cpu: few, bold steps.",
                ),
                seed_input(),
                backend_input(),
                IO.String.Input(
                    "resume", default="", optional=True, advanced=True,
                    tooltip="Checkpoint under the output folder to go on from, such as lucid/run_00001_.safetensors; the log "
                    "names it. Everything else must be as it was. Empty = begin anew.",
                ),
                IO.Boolean.Input(
                    "resume_splat_only", default=False, optional=True, advanced=True,
                    tooltip="Takes only the splat out of the checkpoint, in the place of the connected one, and begins a new "
                    "run with it: then every setting may differ.",
                ),
                IO.Float.Input(
                    "checkpoint_minutes", default=5.0, min=0.0, max=1440.0, step=0.5, optional=True, advanced=True,
                    tooltip="Minutes between checkpoints, each in the place of the one before; what a crash can cost. 0 = only "
                    "when the run ends.",
                ),
                *inputs_of(DreamConfig, *RARE_OF_LUCID_DREAM, optional=True),
                IO.Boolean.Input(
                    "fit_to_view", default=False, optional=True, advanced=True,
                    tooltip="For a splat of any size and place: it is centred and scaled to what the cameras see while it is "
                    "worked on, and put back then. Off = as it is, about the origin.",
                ),
                IO.Float.Input(
                    "preview_seconds", default=2.0, min=0.0, max=3600.0, step=0.5, optional=True, advanced=True,
                    tooltip="Seconds between pictures of the growing splat on the node; fewer where they would take over 3% "
                    "of the time. 0 = only at the end.",
                ),
                IO.Boolean.Input(
                    "preview_wanted", default=False, optional=True, advanced=True,
                    tooltip="Shows beside the splat what the model makes of one of its views: for finding out what is wrong "
                    "with a prompt.",
                ),
                IO.Boolean.Input(
                    "save_checkpoint", default=True, optional=True, advanced=True,
                    tooltip="Writes checkpoints, from which a run can go on. Off = none: a stopped run leaves its splat "
                    "alone.",
                ),
                IO.Int.Input(
                    "checkpoints_kept", default=10, min=1, max=100_000, optional=True, advanced=True,
                    tooltip="How many of the checkpoints lucid/run_... in the output folder are kept, the newest ones: older "
                    "ones are deleted when a run ends. One that you rename stays.",
                ),
            ],
            outputs=[
                IO.Splat.Output(display_name="splat", tooltip="The optimised splat, in the place of the one it began as.")
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, resume="", **others):
        return host.output_stamp(resume) if resume else ""

    @classmethod
    def check_lazy_status(cls, preset=None, guidance=None, optimizer=None, backend="auto", resume="", **others):
        with errors_of(cls):
            config_of(chosen_of("preset", PRESETS, preset), optimizer, others)
            require_usable(backend)
            if resume:
                host.output_file("resume", resume)
            return [] if guidance else ["guidance"]

    @classmethod
    def execute(
        cls, splat, guidance, preset, seed, cameras=None, optimizer=None, selection=None, backend="auto", resume="",
        resume_splat_only=False, checkpoint_minutes=5.0, fit_to_view=False, preview_seconds=2.0, preview_wanted=False,
        save_checkpoint=True, checkpoints_kept=10, **settings,
    ) -> IO.NodeOutput:  # fmt: skip
        with errors_of(cls):
            config = config_of(chosen_of("preset", PRESETS, preset), optimizer, settings)
            ranges, seed, checkpoint = cameras or CameraRanges(), fold_seed(seed), None
            start = host.one_splat(splat)
            if resume:
                checkpoint, saved = read_checkpoint(host.output_file("resume", resume))
                if resume_splat_only:
                    start, checkpoint = whole_splat(checkpoint, saved), None
            subject = Subject.of(start, selection, fit_to_view)
            depends_on = settings_of(
                start, seed, config, ranges, *filter(None, (selection, subject.frame)), **host.depends_on(guidance),
            )  # fmt: skip
            if checkpoint:
                require_same(saved, depends_on)
            kept = Kept(checkpoint_minutes, save_checkpoint, checkpoints_kept, resume)
            note = view_note(joined(subject.free, subject.fixed), ranges)
            settings = lambda: changing(depends_on, host.held_by_patches(guidance))
            run = _Run(config, subject, backend, settings, kept, preview_seconds, preview_wanted, note,
                       host.node_of_page(cls.hidden))  # fmt: skip

            def body(teacher):
                teacher = teacher.map(lambda one: one.placed(subject.frame))
                try:
                    for step in distil(subject.free, teacher, ranges, config, seed, backend, checkpoint, subject.fixed):
                        run.report(step)
                except FloatingPointError as error:
                    run.stop(error)

            try:
                host.with_teacher(guidance, config.views, config.resolution, body)
            except BaseException:
                run.rescue()
                raise
            run.end()
            return IO.NodeOutput(host.from_splats(run.splats()), ui={"lucid": [run.summary()]})


def config_of(preset: dict[str, Any], optimizer: DreamConfig | None, settings: dict[str, Any]) -> DreamConfig:
    """The preset, or what takes its place, with the values of the node's own widgets, its own and those among `settings`."""
    widgets = {**preset, **settings}
    own = {name: value for name, value in widgets.items() if name in OF_LUCID_DREAM + RARE_OF_LUCID_DREAM}
    return dataclasses.replace(optimizer or PRESETS[preset["preset"]], **own)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What becomes of a run's checkpoints: minutes between them, whether there are any, how many files of runs stay."""

    minutes: float
    wanted: bool
    files: int
    resumed: str  # the file that the run goes on from, which stays; "" for none

    @property
    def seconds(self) -> float:
        return 60 * self.minutes or math.inf


class _Run:
    """What the user sees of a run, and what is kept of it if it ends early."""

    def __init__(
        self, config: DreamConfig, subject: Subject, backend: str, settings: Callable[[], Settings], kept: Kept,
        preview_seconds: float, preview_wanted: bool, note: str, node_id: str | None,
    ) -> None:  # fmt: skip
        self.config, self.subject, self.backend, self.node_id = config, subject, backend, node_id
        self.steps, self.last, self.begun, self.shown = config.steps, None, time.monotonic(), -math.inf
        self.preview_wanted, self.preview_seconds = preview_wanted, preview_seconds or math.inf
        self.pause = self.preview_seconds  # until the next picture
        self.pictures, self.failed = 0, ""  # shown; why the last checkpoint is not there
        self.spent: list[float] = []  # seconds of each picture
        self.first = None  # step, seconds and progress of the first report
        self.stopped = None  # why it ended early with a splat that is good
        self.settings, self.kept, self.note = settings, kept, note
        self.saved_step, self.saved_at, self.file = 0, self.begun, None
        self.progress = host.Progress(config.steps)
        if note:
            log.warning("Lucid Dream: %s", note)

    def report(self, step: Step) -> None:
        slower = step.slowdown and not (self.last and self.last.slowdown)
        self.first, self.last = self.first or self.place(step), step
        now = time.monotonic()
        image = None
        if slower or now - self.shown > self.pause or step.progress == 1:
            first, image = self.shown < 0, self.picture(step)
            host.show_text(self.node_id, self.line(step))
        self.progress.update(round(step.progress * self.steps), image)
        if image is not None:
            self.shown = time.monotonic()
            self.spent.append(self.shown - now)
            if not first:  # in which kernels are compiled and the VAE is loaded
                self.pause = max(self.preview_seconds, (self.shown - now) / PREVIEW_SHARE)
        if step.step % LOG_STEPS == 0 or step.progress == 1:
            log.info("Lucid Dream: %s, loss %.3f, %d evaluations", self.line(step), step.loss, step.evaluations)
        if now - self.saved_at >= self.kept.seconds:
            self.save()
        host.check_interrupt()

    def picture(self, step: Step) -> torch.Tensor:
        """(256, 256, 3) of the splat; twice as wide with what the model wants."""
        image = preview(joined(step.splats, self.subject.fixed), self.pictures, self.backend)
        self.pictures += 1
        wanted = step.wanted() if self.preview_wanted else None
        if wanted is None:
            return image
        wanted = torch.nn.functional.interpolate(wanted.cpu().movedim(-1, 0)[None], image.shape[:2], mode="area")
        return torch.cat([image, wanted[0].movedim(0, -1)], dim=1)

    def line(self, step: Step) -> str:
        """Where the run is, and its pace since its first step here, in which kernels are compiled."""
        steps, seconds, progress = (now - then for now, then in zip(self.place(step), self.first))
        notes = self.failed + "".join(f"\n{note}" for note in (self.note, step.slowdown) if note)
        if not steps:
            return f"step {step.step} of {self.steps}, {len(step.splats)} splats{notes}"
        left_s = round(seconds * (1 - step.progress) / progress)
        left = f"{left_s // 60} min {left_s % 60} s" if left_s >= 60 else f"{left_s} s"
        return (
            f"step {step.step} of {self.steps}, {seconds / steps:.2f} s a step, {left} left, {len(step.splats)} splats" + notes
        )

    @staticmethod
    def place(step: Step) -> tuple[int, float, float]:
        return step.step, step.seconds, step.progress

    def save(self) -> None:
        """Write the checkpoint of the last step in the place of the one before. A full disk does not end the run."""
        self.saved_at = time.monotonic()
        if self.last is None or self.last.step == self.saved_step or not self.kept.wanted:
            return
        try:
            self.file = self.file or host.output_path(CHECKPOINTS, "safetensors")
            write_checkpoint(self.file[0], self.subject.kept(self.last.checkpoint()), self.settings())
        except (OSError, RuntimeError) as error:
            log.error("Lucid Dream could not save its checkpoint: %s", error)
            self.failed = f"\nThe checkpoint could not be saved: {error}"
            host.show_text(self.node_id, self.line(self.last))
            return
        self.failed = ""
        self.saved_step = self.last.step
        log.info("Lucid Dream: checkpoint of step %d: %s", self.last.step, host.name_of(self.file[1]))

    def save_last(self) -> None:
        """Write the checkpoint of a run that ends, and delete those of old runs."""
        self.save()
        if self.saved_step:
            host.delete_old(CHECKPOINTS, "safetensors", self.kept.files, self.kept.resumed)

    def end(self) -> None:
        """Keep the finished run; say so where the time ended it."""
        self.save_last()
        if self.last and self.last.progress == 1 and self.last.step < self.steps:
            log.info("Lucid Dream: the time is over after %d of %d steps.", self.last.step, self.steps)

    def stop(self, error: FloatingPointError) -> None:
        """End with the last finite splat, which is the start where there was no step."""
        self.stopped = str(error)
        what = f"splat of step {self.last.step}" if self.last else "start, unchanged,"
        log.warning("Lucid Dream: %s. The %s is returned.", error, what)
        host.show_text(self.node_id, f"Stopped: {error}.\nThe {what} is returned.")

    def splats(self) -> Splats:
        last = self.last.splats.map(torch.Tensor.cpu) if self.last else self.subject.free
        return self.subject.whole(last, self.config.freeze_geometry)

    def rescue(self) -> None:
        """Save the splat of a cancelled or failed run and the checkpoint to go on from; say where, on the node too."""
        if self.last is None:
            host.show_text(self.node_id, "Stopped before the first step was done.")
            return
        try:
            path, entry = host.output_path("lucid/unfinished", "ply")
            ply.write(path, self.splats())
        except OSError as error:  # a full disk must not hide what stopped the run
            log.error("Lucid Dream could not save the unfinished splat: %s", error)
            splat = f"The splat could not be saved: {error}"
        else:
            splat = f"The splat: {host.name_of(entry)}"
        self.save_last()
        resume = f" To go on, resume: {host.name_of(self.file[1])}" if self.saved_step == self.last.step else ""
        lines = [f"Stopped at step {self.last.step} of {self.steps}.{resume}", splat]  # the page has room for two
        log.warning("Lucid Dream: %s", " ".join(lines))
        host.show_text(self.node_id, "\n".join(lines))

    def summary(self) -> dict:
        return {
            "steps": self.last.step if self.last else 0,
            "evaluations": self.last.evaluations if self.last else 0,
            "splats": len(self.splats()),
            "seconds": round(time.monotonic() - self.begun, 1),
            "preview_seconds": round(sum(self.spent[1:-1]), 3),  # without the first, that compiles, and the one at the end
            "checkpoint": host.name_of(self.file[1]) if self.saved_step else None,
            **({"stopped": self.stopped} if self.stopped else {}),
        }


def preview(splats: Splats, picture: int, backend: str, size: int = 256) -> torch.Tensor:
    """(size, size, 3) view on white, from a camera that turns by 10 degrees from one `picture` to the next."""
    around = turntable(36, 15.0, 5.3, 26.0, size, size)
    camera = to_device(Cameras(around.viewmats[picture % 36][None], around.Ks[:1]), splats.means.device)
    with torch.no_grad():
        return rasterize(splats, camera, size, size, background=splats.means.new_ones(3), backend=backend).rgb[0].cpu()
