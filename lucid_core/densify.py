"""Growing and pruning by gsplat's strategies, on any device: 3DGS's own (section 5.2) and MCMC (Kheradmand et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from .checks import check_bounds, choice, require, setting
from .extras import load

STRATEGIES = ("default", "mcmc")
NO_GROWTH = 1000.0  # a gradient that no splat has


@dataclass(frozen=True)
class Densify:
    """When and where splats are added and removed; the defaults are the official ones. Times are shares of the run.

    strategy "default" splits and copies where the image-plane gradient is high and prunes what is faint. "mcmc" moves faint
    splats to solid ones, adds 5% each time up to `max_splats`, and shakes all as Langevin dynamics does.
    """

    strategy: str = choice(
        STRATEGIES, "How splats are added and removed. default: 3DGS's splitting and pruning. mcmc: faint splats are moved to "
        "solid ones, and 5% are added each time up to the most.", rare=False,
    )  # fmt: skip
    max_splats: int = setting(1_000_000, 1, 100_000_000, "Nothing grows beyond so many splats.", step=1, rare=False)
    grow_grad2d: float = setting(
        7.5e-4, 0, NO_GROWTH, "default: mean gradient, in half image widths, above which a splat is split or copied. Lower "
        f"grows more; {NO_GROWTH:g} = nothing grows.", step=1e-5, rare=False,
    )  # fmt: skip
    start: float = setting(0.02, 0, 1, "Share of the run at which splats begin to be added and removed.")
    stop: float = setting(0.6, 0, 1, "Share of the run at which that ends.")
    every: float = setting(0.02, 1e-4, 1, "Share of the run between two times.", step=0.001)
    grow_scale3d: float = setting(
        0.0105, 0, 1000, "default: splats up to this size (units of the splat) are copied, larger ones split.", step=0.0001
    )
    prune_scale3d: float = setting(
        0.35, 0, 1000, "default: splats larger than this (units of the splat) are removed, from `reset_every` on; 0 = none "
        "are.", step=0.01,
    )  # fmt: skip
    prune_opacity: float = setting(0.005, 0, 1, "default: splats fainter than this are removed; mcmc: moved.", step=0.001)
    reset_every: float = setting(
        0.06, 0, 1, "default: share of the run after which all opacities fall to twice `prune_opacity`; 0 = never.", step=0.001
    )
    noise: float = setting(5e5, 0, 1e9, "mcmc: strength of the shaking, times the learning rate of the places.", step=1.0)

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.start <= self.stop, "start", self.start, f"at most stop ({self.stop:g})")


class Densifier:
    """Carries the strategy's running state through a run of `steps` steps."""

    def __init__(self, config: Densify, steps: int) -> None:
        self.config = config
        self.reset_every = round(config.reset_every * steps)
        self.stop = round(config.stop * steps)
        times = {
            "refine_start_iter": round(config.start * steps),
            "refine_stop_iter": self.stop,
            "refine_every": max(round(config.every * steps), 1),
        }
        strategies = load("gsplat.strategy", "gsplat")
        if config.strategy == "mcmc":
            self.strategy = strategies.MCMCStrategy(
                cap_max=config.max_splats, noise_lr=config.noise, min_opacity=config.prune_opacity, **times
            )
            self.state = self.strategy.initialize_state()
        else:
            self.strategy = _ours(strategies.DefaultStrategy, config.max_splats, self.reset_every)(
                prune_opa=config.prune_opacity,
                grow_grad2d=config.grow_grad2d,
                grow_scale3d=config.grow_scale3d,
                prune_scale3d=config.prune_scale3d or math.inf,
                reset_every=steps + 1,  # gsplat 1.5's own reset never fires (`0 & step`): ours is in `after_backward`
                **times,
            )
            self.state = self.strategy.initialize_state(scene_scale=1.0)

    def forget_gradients(self) -> None:
        """Drop the statistic of the growth."""
        for name in ("grad2d", "count"):
            if isinstance(self.state.get(name), Tensor):
                self.state[name].zero_()

    def before_backward(self, params: dict[str, Parameter], optimizers: dict[str, Optimizer], step: int, info: dict) -> None:
        self.strategy.step_pre_backward(params, optimizers, self.state, step, info)

    def after_backward(
        self, params: dict[str, Parameter], optimizers: dict[str, Optimizer], before: int, step: int, info: dict,
        generator: Generator, fitting: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        """Gather statistics; at its times grow, prune and reset. Call after the optimisers' step.

        `before` is the step of the last call: what was due in between is done now, once. fitting: in a step that fits pictures,
        what "default" takes in place of `grow_grad2d`, which is a threshold of a guidance's far larger gradients, and of
        `prune_opacity`; opacities are then not reset, because the model is soon asked for pictures of what it sees.
        """
        reset, step = latest(before, step, self.reset_every), latest(before, step, self.strategy.refine_every)
        with _seeded(generator, params["means"].device):
            if self.config.strategy == "mcmc":
                with _torch_helpers():
                    lr = optimizers["means"].param_groups[0]["lr"]
                    self.strategy.step_post_backward(params, optimizers, self.state, step, info, lr=lr)
                return
            of_guidance = self.config.grow_grad2d, self.config.prune_opacity
            self.strategy.grow_grad2d, self.strategy.prune_opa = fitting or of_guidance
            if not fitting:  # gsplat multiplies gradients by the number of views, for a loss that is their mean: ours is a sum
                info = {**info, "n_cameras": 1}
            self.strategy.step_post_backward(params, optimizers, self.state, step, info)
        if not fitting and self.reset_every and reset < self.stop and reset % self.reset_every == 0:
            ops = load("gsplat.strategy.ops", "gsplat")
            ops.reset_opa(params, optimizers, self.state, value=2 * self.config.prune_opacity)


def latest(before: int, step: int, every: int) -> int:
    """The last multiple of `every` after `before` up to `step`, or `step` where there is none."""
    multiple = step // every * every if every else 0
    return multiple if multiple > before else step


def _ours(strategy: type, max_splats: int, large_from: int) -> type:
    """gsplat's DefaultStrategy with a cap, and with its pruning of large splats bound to step `large_from` alone.

    What grows adds one splat, so only as many grow as there is room for, those of the largest gradient.
    """

    class Ours(strategy):
        def _grow_gs(self, params, optimizers, state, step):
            asked, room = self.grow_grad2d, max_splats - len(params["means"])
            scores = state["grad2d"] / state["count"].clamp_min(1)
            if room <= 0:
                self.grow_grad2d = float("inf")
            elif room < len(scores):
                self.grow_grad2d = max(asked, scores.topk(room + 1).values[-1].item())
            try:
                return super()._grow_gs(params, optimizers, state, step)
            finally:
                self.grow_grad2d = asked

        def _prune_gs(self, params, optimizers, state, step):
            never, self.reset_every = self.reset_every, large_from
            try:
                return super()._prune_gs(params, optimizers, state, step)
            finally:
                self.reset_every = never

    return Ours


@contextmanager
def _torch_helpers() -> Iterator[None]:
    """Lend gsplat's operations torch versions of the two functions that it has in its CUDA extension only."""
    ops = load("gsplat.strategy.ops", "gsplat")
    covariances = load("gsplat.cuda._torch_impl", "gsplat")._quat_scale_to_covar_preci
    own = ops.compute_relocation, ops.quat_scale_to_covar_preci
    ops.compute_relocation, ops.quat_scale_to_covar_preci = relocated, covariances
    try:
        yield
    finally:
        ops.compute_relocation, ops.quat_scale_to_covar_preci = own


def relocated(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity (N,) and scales (N, 3) of each of `ratios` (N,) equal splats in one place that look as the one before.

    binoms (M, M) holds n over k; more than M in one place count as M. Source: 3DGS-MCMC, equation 9, whose sum over i of
    (i - 1 over k) is a column of binoms added up.
    """
    n = ratios.clamp(1, len(binoms)).long()
    alpha = 1 - (1 - opacities.double()) ** (1 / n.double())
    k = torch.arange(len(binoms), device=binoms.device, dtype=torch.float64)
    signs = (1 - 2 * (k % 2)) / (k + 1).sqrt()
    counts = binoms.double().cumsum(0)[n - 1]  # (N, M); 0 where k >= n
    total = (counts * signs * alpha[:, None] ** (k + 1)).sum(-1)
    return alpha.to(opacities), (opacities / total)[:, None].to(scales) * scales


class _seeded:
    """gsplat draws from torch's global generators: lend it ones that follow ours, and leave the global ones as they were."""

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.seed = int(torch.randint(2**62, (), generator=generator))
        self.devices = [device] if device.type == "cuda" else []
        self.fork = torch.random.fork_rng(devices=self.devices)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would seed those of every GPU, for good
        for device in self.devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(self.seed)

    def __exit__(self, *error) -> None:
        self.fork.__exit__(*error)
