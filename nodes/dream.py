from __future__ import annotations

import dataclasses
import logging
import time

import torch
from comfy_api.latest import IO

from ..lucid_core import ply
from ..lucid_core.cameras import CameraRanges, Cameras, turntable
from ..lucid_core.dream import PRESETS, DreamConfig, Step, dream
from ..lucid_core.gaussians import Splats
from ..lucid_core.rasterize import device_for, rasterize, to_device
from . import host
from .inputs import CATEGORY, backend_input, errors_of, fold_seed, inputs_of, seed_input
from .types import LucidCamerasType, LucidGuidanceType

log = logging.getLogger(__name__)
PREVIEW_SECONDS = 2.0
LOG_STEPS = 50


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
                LucidGuidanceType.Input("guidance", tooltip="From Lucid ISM."),
                LucidCamerasType.Input("cameras", optional=True, tooltip="Where to look from; empty = the official ranges."),
                IO.Combo.Input(
                    "preset", options=list(PRESETS),
                    tooltip="Learning rates, growth and regularisers. official: the paper's, for a GPU. cpu: few, bold steps.",
                ),
                *inputs_of(DreamConfig),
                seed_input(),
                backend_input(),
            ],
            outputs=[IO.Splat.Output(display_name="splat")],
        )  # fmt: skip

    @classmethod
    def execute(cls, splat, guidance, preset, steps, views, resolution, seed, cameras=None, backend="auto") -> IO.NodeOutput:
        with errors_of(cls):
            start = host.one_splat(splat)
            config = dataclasses.replace(PRESETS[preset], steps=steps, views=views, resolution=resolution)
            run = _Run(config.steps, backend)
            device_for(backend)  # a backend that cannot be used is named before models are loaded

            def body(prior, prompts):
                ranges = cameras or CameraRanges()
                try:
                    for step in dream(start, prior, guidance.method, prompts, ranges, config, fold_seed(seed), backend):
                        run.report(step)
                except FloatingPointError as error:
                    run.stop(error)

            try:
                host.with_prior(guidance, config.views, config.resolution, body)
            except BaseException:
                run.rescue()
                raise
            return IO.NodeOutput(host.from_splats(run.splats()), ui={"lucid": [run.summary()]})


class _Run:
    """What the user sees of a run, and what is kept of it if it ends early."""

    def __init__(self, steps: int, backend: str) -> None:
        self.backend = backend
        self.steps, self.last, self.begun, self.shown = steps, None, time.monotonic(), 0.0
        self.stopped = None  # why it ended early with a splat that is good
        self.progress = host.Progress(steps)

    def report(self, step: Step) -> None:
        self.last = step
        now = time.monotonic()
        image = None
        if now - self.shown > PREVIEW_SECONDS or step.step == self.steps:
            self.shown, image = now, preview(step.splats, step.step, self.backend)
        self.progress.update(step.step, image)
        if step.step % LOG_STEPS == 0 or step.step == self.steps:
            log.info(
                "Lucid Dream: step %d of %d, %.2f s a step, loss %.3f, %d splats, %d evaluations",
                step.step, self.steps, (now - self.begun) / step.step, step.loss, len(step.splats), step.evaluations,
            )  # fmt: skip
        host.check_interrupt()

    def stop(self, error: FloatingPointError) -> None:
        """End with the last finite splat; without one, raise ValueError."""
        if self.last is None:
            raise ValueError(str(error)) from error
        self.stopped = str(error)
        log.warning("Lucid Dream: %s. The splat of step %d is returned.", error, self.last.step)

    def splats(self) -> Splats:
        return self.last.splats.map(torch.Tensor.cpu)

    def rescue(self) -> None:
        """Save the splat of a cancelled or failed run beside the user's outputs."""
        if self.last is not None:
            try:
                path, _ = host.output_path("lucid/unfinished", "ply")
                ply.write(path, self.splats())
            except OSError as error:  # a full disk must not hide what stopped the run
                log.error("Lucid Dream could not save the unfinished splat: %s", error)
                return
            log.warning("Lucid Dream stopped at step %d of %d; its splat is saved as %s", self.last.step, self.steps, path)

    def summary(self) -> dict:
        return {
            "steps": self.last.step,
            "evaluations": self.last.evaluations,
            "splats": len(self.last.splats),
            "seconds": round(time.monotonic() - self.begun, 1),
            **({"stopped": self.stopped} if self.stopped else {}),
        }


def preview(splats: Splats, step: int, backend: str, size: int = 256) -> torch.Tensor:
    """(size, size, 3) view on white, from a camera that turns as the run goes on."""
    around = turntable(90, 15.0, 5.3, 26.0, size, size)
    camera = to_device(Cameras(around.viewmats[step % 90][None], around.Ks[:1]), splats.means.device)
    with torch.no_grad():
        return rasterize(splats, camera, size, size, background=splats.means.new_ones(3), backend=backend).rgb[0].cpu()
