"""Growing and pruning by gsplat's DefaultStrategy (3DGS, section 5.2), on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator
from torch.nn import Parameter
from torch.optim import Optimizer

from .checks import require
from .extras import load


@dataclass(frozen=True)
class Densify:
    """When and where splats are added and removed; the defaults are the official ones. Times are shares of the run."""

    start: float = 0.02
    stop: float = 0.6
    every: float = 0.02
    grow_grad2d: float = 7.5e-4  # mean image-plane gradient, in half image widths, above which a splat is split or copied
    grow_scale3d: float = 0.003  # copied up to this size (world units), split above it
    prune_opacity: float = 0.005
    reset_every: float = 0.06  # opacities fall to twice `prune_opacity`; 0 = never
    max_splats: int = 1_000_000  # nothing grows from here on

    def __post_init__(self) -> None:
        require(0 <= self.start <= self.stop <= 1, "densify start and stop", (self.start, self.stop), "0 to 1, in order")
        require(0 < self.every <= 1, "densify every", self.every, "above 0, at most 1")


class Densifier:
    """Carries the strategy's running state through a run of `steps` steps."""

    def __init__(self, config: Densify, steps: int) -> None:
        self.config = config
        self.every = max(round(config.every * steps), 1)
        self.reset_every = round(config.reset_every * steps)
        self.stop = round(config.stop * steps)
        self.strategy = load("gsplat.strategy", "gsplat").DefaultStrategy(
            prune_opa=config.prune_opacity,
            grow_grad2d=config.grow_grad2d,
            grow_scale3d=config.grow_scale3d,
            refine_start_iter=round(config.start * steps),
            refine_stop_iter=self.stop,
            refine_every=self.every,
            reset_every=steps + 1,  # gsplat 1.5's own reset never fires (`0 & step`): ours is in `after_backward`
        )
        self.state = self.strategy.initialize_state(scene_scale=1.0)

    def before_backward(self, params: dict[str, Parameter], optimizers: dict[str, Optimizer], step: int, info: dict) -> None:
        self.strategy.step_pre_backward(params, optimizers, self.state, step, info)

    def after_backward(
        self, params: dict[str, Parameter], optimizers: dict[str, Optimizer], step: int, info: dict, generator: Generator
    ) -> None:
        """Gather statistics; at its times grow, prune and reset. Call after the optimisers' step."""
        full = len(params["means"]) >= self.config.max_splats
        strategy = replace(self.strategy, grow_grad2d=float("inf")) if full else self.strategy
        with _seeded(generator, params["means"].device):
            strategy.step_post_backward(params, optimizers, self.state, step, info)
        if self.reset_every and step < self.stop and step % self.reset_every == 0:
            ops = load("gsplat.strategy.ops", "gsplat")
            ops.reset_opa(params, optimizers, self.state, value=2 * self.config.prune_opacity)


class _seeded:
    """gsplat draws from torch's global generator: lend it one that follows ours, and leave the global one as it was."""

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.seed = int(torch.randint(2**62, (), generator=generator))
        self.fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error) -> None:
        self.fork.__exit__(*error)
