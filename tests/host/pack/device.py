"""For benchmarks/device.sh: where the time of a step goes, its memory, and a limit on the GPU's memory."""

import time
from collections import defaultdict
from dataclasses import replace

import torch
from comfy_api.latest import IO

from .pace import module

WARM_UP = 2  # steps, in which kernels are compiled and the models are loaded


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Seconds by stage of a step; the GPU's work is waited for."""

    def __init__(self):
        self.spent, self.begun = defaultdict(float), 0.0

    def start(self):
        synchronize()
        self.begun = time.perf_counter()

    def stop(self, stage):
        synchronize()
        self.spent[stage] += time.perf_counter() - self.begun

    def time(self, stage, function):
        def timed(*arguments, **named):
            self.start()
            result = function(*arguments, **named)
            self.stop(stage)
            return result

        return timed


class TimedPrior:
    """A prior whose model, and whose VAE forward and backward, are timed."""

    def __init__(self, prior, clock):
        self.prior, self.clock = prior, clock
        self.denoise, self.guide = (clock.time("model", method) for method in (prior.denoise, prior.guide))

    def encode(self, images):
        latents = self.clock.time("vae", self.prior.encode)(images)
        latents.register_hook(
            lambda gradient: self.clock.start()
        )  # the backward pass enters the VAE here ...

        def leave(gradient):  # ... and goes on to the renderer there
            self.clock.stop("vae")
            self.clock.start()

        images.register_hook(leave)
        return latents

    def __getattr__(self, name):
        return getattr(self.prior, name)


class LucidTestSplit(IO.ComfyNode):
    """Seconds a step in the model, the VAE, the renderer and the rest, and peak bytes; a list over batches of
    1 to `views`.
    """

    @classmethod
    def define_schema(cls):
        guidance, splat = IO.Custom("LUCID_GUIDANCE").Input("guidance"), IO.Splat.Input("splat")
        sizes = [IO.Int.Input(name) for name in ("views", "resolution", "steps")]
        return IO.Schema(
            node_id="LucidTestSplit", inputs=[guidance, splat, *sizes], outputs=[], is_output_node=True
        )

    @classmethod
    def execute(cls, guidance, splat, views, resolution, steps):
        rows = [measure(guidance, splat, batch, resolution, steps) for batch in range(1, views + 1)]
        return IO.NodeOutput(ui={"rows": rows})


def measure(guidance, splat, views, resolution, steps):
    dream, cameras, host = (
        module("lucid_core.optimize.loop"),
        module("lucid_core.cameras"),
        module("nodes.host"),
    )
    renderers, presets = module("lucid_core.rasterize"), module("lucid_core.optimize.config").PRESETS
    config = module("lucid_core.settings").replace_settings(
        presets["official"], steps=5000, views=views, resolution=resolution
    )
    start, clock = host.one_splat(splat), Clock()
    rasterize, update = renderers.rasterize, dream.update

    def after_backward(*arguments):
        clock.stop("render")
        update(*arguments)

    def body(source):
        run = dream.distil(
            start, replace(source, prior=TimedPrior(source.prior, clock)), cameras.CameraRanges(), config, 0
        )
        for _ in range(WARM_UP):
            next(run)
        clock.spent.clear()
        synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        before, begun = source.evaluations, time.perf_counter()
        for _ in range(steps):
            next(run)
        synchronize()
        whole = time.perf_counter() - begun
        parts = {f"{name}_s": round(seconds / steps, 5) for name, seconds in clock.spent.items()}
        rest = whole - sum(clock.spent.values())
        return {
            "views": views,
            "step_s": round(whole / steps, 5),
            **parts,
            "rest_s": round(rest / steps, 5),
            "ours_share": round((rest + clock.spent["render"]) / whole, 3),  # all but the model and the VAE
            "evaluations": (source.evaluations - before) / steps / views,
            **memory(),
        }

    renderers.rasterize, dream.update = clock.time("render", rasterize), after_backward
    try:
        return host.with_source(guidance, views, resolution, body)
    finally:
        renderers.rasterize, dream.update = rasterize, update


def memory():
    """Torch's peak since it was last reset, and what the whole GPU holds now, with weights outside of torch's
    allocator.
    """
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "gpu_used_gb": round((total - free) / 1e9, 2),
    }


class LucidTestLimit(IO.ComfyNode):
    """The model as it is; from now on torch may allocate `gb` of the GPU's memory, 0 = all of it."""

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Float.Input("gb", max=1000.0), IO.Int.Input("nonce", default=0)]
        return IO.Schema(node_id="LucidTestLimit", inputs=inputs, outputs=[IO.Model.Output()])

    @classmethod
    def execute(cls, model, gb, nonce):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            _, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(min(gb * 1e9 / total, 1.0) if gb else 1.0)
        return IO.NodeOutput(model)


NODES = [LucidTestSplit, LucidTestLimit]
