"""For `python -m benchmarks families`: what a step takes beside the host's own evaluations of the same
model.
"""

import gc
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import comfy.samplers
import psutil
import torch
from comfy_api.latest import IO


def module(name):
    """A module of the pack under test, as the host imported it."""
    return next(m for key, m in sys.modules.items() if key.endswith(f"lucid_ism.{name}"))


class Asked:
    """A prior that remembers what it was asked."""

    def __init__(self, prior):
        self.prior, self.calls = prior, []

    def denoise(self, z, sigma, conds):
        self.calls.append((z.detach(), sigma, conds))
        return self.prior.denoise(z, sigma, conds)

    def __getattr__(self, name):
        return getattr(self.prior, name)


@contextmanager
def peak(found):
    """Adds how far the process's memory rises above what it is: on Linux, where its peak can be set back."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    yield
    with open("/proc/self/status") as file:
        high = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    found.append(high * 1024 - before)


@contextmanager
def timed(spent, name):
    begun = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - begun


class LucidTestPace(IO.ComfyNode):
    """Seconds of steps, of the host's evaluations of what they asked, of the VAE there and back; peak bytes
    of two steps.
    """

    @classmethod
    def define_schema(cls):
        guidance, splat = IO.Custom("LUCID_GUIDANCE").Input("guidance"), IO.Splat.Input("splat")
        sizes = [IO.Int.Input(name) for name in ("views", "resolution", "steps", "rounds")]
        return IO.Schema(
            node_id="LucidTestPace", inputs=[guidance, splat, *sizes], outputs=[], is_output_node=True
        )

    @classmethod
    def execute(cls, guidance, splat, views, resolution, steps, rounds):
        dream, cameras = module("lucid_core.optimize.loop"), module("lucid_core.cameras")
        host = module("nodes.host")
        config = module("lucid_core.settings").replace_settings(
            module("lucid_core.optimize.config").PRESETS["cpu"],
            steps=10_000,
            views=views,
            resolution=resolution,
        )
        start = host.one_splat(splat)

        def body(source):
            found = {"steps": [], "host": [], "vae": [], "evaluations": [], "peak": []}
            prior = Asked(source.prior)
            run = dream.distil(start, replace(source, prior=prior), cameras.CameraRanges(), config, seed=0)
            with peak(found["peak"]):
                next(run), next(run)  # kernels are compiled in the first
            for _ in range(rounds):
                spent, evaluations = dict.fromkeys(("steps", "host", "vae"), 0.0), 0
                for _ in range(steps):  # in turns, for machines whose pace changes
                    prior.calls.clear()
                    with timed(spent, "steps"):
                        next(run)
                    with timed(spent, "host"), torch.inference_mode():
                        for z, sigma, conds in prior.calls:
                            x, levels = prior._levels.to_host(prior._to_host(z), sigma)
                            comfy.samplers.calc_cond_batch(prior._model, conds, x, levels, prior._options)
                    with timed(spent, "vae"):
                        images = torch.rand(views, resolution, resolution, 3).requires_grad_()
                        prior.encode(images).sum().backward()
                    evaluations += sum(len(z) * len(conds) for z, _, conds in prior.calls)
                found["evaluations"].append(evaluations)
                for name, seconds in spent.items():
                    found[name].append(seconds)
            return found

        return IO.NodeOutput(ui=host.with_source(guidance, views, resolution, body))


NODES = [LucidTestPace]
