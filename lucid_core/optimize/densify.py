"""Densification and pruning with gsplat's strategies, on any device.

Sources: 3DGS (Kerbl et al. 2023, section 5.2) and 3DGS-MCMC (Kheradmand et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Adam

from ..optional import load
from ..rasterize import RenderInfo
from ..settings import NO_GROWTH, check_bounds, choice, require, setting

STRATEGIES = ("default", "mcmc")
RESET_OPACITY, MOST_OPAQUE = 0.01, 0.99  # after a reset: if prune_opacity is 0 (as in 3DGS), and at most


@dataclass(frozen=True)
class Densify:
    """Densification settings. Defaults: the official ones. Times are fractions of the run.

    Strategy "default" splits and clones Gaussians with a large image-plane gradient and prunes those of low
    opacity. "mcmc" relocates Gaussians of low opacity to opaque ones, adds 5% each time up to `max_splats`,
    and adds noise to the positions (Langevin dynamics).
    """

    strategy: str = choice(
        STRATEGIES,
        "Densification method. default: 3DGS splitting, cloning and pruning; mcmc: relocate transparent "
        "Gaussians and add 5% each time, up to the maximum number.",
        advanced=False,
    )
    max_splats: int = setting(
        1_000_000,
        1,
        100_000_000,
        "Maximum number of Gaussians; none are added beyond it.",
        step=1,
        advanced=False,
    )
    grow_grad2d: float = setting(
        7.5e-4,
        0,
        NO_GROWTH,
        "default: mean image-plane gradient (per half image width) above which a Gaussian is split or "
        f"cloned. Lower adds more; {NO_GROWTH:g} = no growth.",
        step=1e-5,
        advanced=False,
    )
    start: float = setting(0.02, 0, 1, "Fraction of the run at which densification starts.")
    stop: float = setting(0.6, 0, 1, "Fraction of the run at which densification stops.")
    every: float = setting(0.02, 1e-4, 1, "Fraction of the run between two densification steps.", step=0.001)
    grow_scale3d: float = setting(
        0.0105,
        0,
        1000,
        "default: Gaussians up to this scale (world units) are cloned, larger ones are split.",
        step=0.0001,
    )
    prune_scale3d: float = setting(
        0.35,
        0,
        1000,
        "default: Gaussians above this scale (world units) are pruned, after the first opacity reset; "
        "0 = off.",
        step=0.01,
    )
    prune_opacity: float = setting(
        0.005,
        0,
        1,
        "Opacity below which a Gaussian is pruned (default) or relocated (mcmc). Higher clears fog; 0 = off.",
        step=0.001,
    )
    reset_every: float = setting(
        0.06,
        0,
        1,
        "default: fraction of the run between opacity resets, which cap opacities at 2 * prune_opacity "
        "(0.01 if that is 0); 0 = never.",
        step=0.001,
    )
    noise: float = setting(
        5e5,
        0,
        1e9,
        "mcmc: strength of the position noise, multiplied by the learning rate of the positions; 0 = none.",
        step=1.0,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.start <= self.stop, "start", self.start, f"at most stop ({self.stop:g})")


class Densifier:
    """Runs gsplat's strategy and keeps its state during a run of `steps` steps.

    Raises MissingPackage when gsplat is missing.
    """

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
            self.strategy = _capped(strategies.DefaultStrategy, config.max_splats, self.reset_every)(
                prune_opa=config.prune_opacity,
                grow_grad2d=config.grow_grad2d,
                grow_scale3d=config.grow_scale3d,
                prune_scale3d=config.prune_scale3d or math.inf,
                reset_every=steps + 1,  # gsplat 1.5 never resets (bug: `0 & step`): `after_backward` does
                **times,
            )
            self.state = self.strategy.initialize_state(scene_scale=1.0)

    def forget_gradients(self) -> None:
        """Reset the accumulated image-plane gradients that decide which Gaussians grow."""
        for name in ("grad2d", "count"):
            if isinstance(self.state.get(name), Tensor):
                self.state[name].zero_()

    def before_backward(
        self, params: dict[str, Parameter], optimizers: dict[str, Adam], step: int, info: RenderInfo
    ) -> None:
        self.strategy.step_pre_backward(params, optimizers, self.state, step, info)

    def after_backward(
        self,
        params: dict[str, Parameter],
        optimizers: dict[str, Adam],
        before: int,
        step: int,
        info: RenderInfo,
        generator: Generator,
        fitting: tuple[float, float] | None = None,
    ) -> None:
        """Accumulate gradient statistics; densify, prune and reset opacities when due.

        Call it after the optimisers' step. `before`: schedule step of the previous call; actions that were
        due since then run once now. `info`: see `Render.info`. `fitting`: (grow_grad2d, prune_opacity) for
        strategy "default" in a step that fits image targets, whose gradients are far smaller than those of a
        guidance. Opacities are not reset in such steps, because new image targets are generated from renders.
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
            # gsplat scales gradients by the number of views, for a mean loss over views; ours is a sum
            if not fitting:
                info = {**info, "n_cameras": 1}
            self.strategy.step_post_backward(params, optimizers, self.state, step, info)
        if not fitting and self.reset_every and reset < self.stop and reset % self.reset_every == 0:
            ops = load("gsplat.strategy.ops", "gsplat")
            value = min(2 * self.config.prune_opacity or RESET_OPACITY, MOST_OPAQUE)
            ops.reset_opa(params, optimizers, self.state, value=value)


def latest(before: int, step: int, every: int) -> int:
    """The last multiple of `every` in (before, step]; `step` if there is none."""
    multiple = step // every * every if every else 0
    return multiple if multiple > before else step


def _capped(strategy: type[Any], max_splats: int, large_from: int) -> type[Any]:
    """gsplat's DefaultStrategy with a maximum number of Gaussians; large ones are pruned after `large_from`.

    Each split or clone adds one Gaussian. If the remaining room is smaller than the number of candidates,
    those with the largest gradients grow.
    """

    class Capped(strategy):  # type: ignore[misc]  # gsplat has no types
        grow_grad2d: float
        reset_every: int

        def _grow_gs(
            self, params: dict[str, Parameter], optimizers: dict[str, Adam], state: dict[str, Any], step: int
        ) -> Any:
            threshold, room = self.grow_grad2d, max_splats - len(params["means"])
            scores = state["grad2d"] / state["count"].clamp_min(1)
            if room <= 0:
                self.grow_grad2d = float("inf")
            elif room < len(scores):
                self.grow_grad2d = max(threshold, scores.topk(room + 1).values[-1].item())
            try:
                return super()._grow_gs(params, optimizers, state, step)
            finally:
                self.grow_grad2d = threshold

        def _prune_gs(
            self, params: dict[str, Parameter], optimizers: dict[str, Adam], state: dict[str, Any], step: int
        ) -> Any:
            original, self.reset_every = self.reset_every, large_from
            try:
                return super()._prune_gs(params, optimizers, state, step)
            finally:
                self.reset_every = original

    return Capped


@contextmanager
def _torch_helpers() -> Iterator[None]:
    """Replace, for the duration, the two gsplat functions that need its CUDA extension by torch versions."""
    ops: Any = load("gsplat.strategy.ops", "gsplat")
    covariances = load("gsplat.cuda._torch_impl", "gsplat")._quat_scale_to_covar_preci
    own = ops.compute_relocation, ops.quat_scale_to_covar_preci
    ops.compute_relocation, ops.quat_scale_to_covar_preci = relocate, covariances
    try:
        yield
    finally:
        ops.compute_relocation, ops.quat_scale_to_covar_preci = own


def relocate(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> tuple[Tensor, Tensor]:
    """New opacities (N,) and scales (N, 3) when a Gaussian is replaced by `ratios` (N,) equal copies.

    The copies at one position together render like the original. opacities (N,) in [0, 1], scales (N, 3)
    linear. binoms (M, M): binomial coefficients n over k; ratios above M count as M. Source: 3DGS-MCMC,
    equation 9; its sum over i of (i - 1 over k) is a cumulative sum over a column of `binoms`.
    """
    n = ratios.clamp(1, len(binoms)).long()
    alpha = 1 - (1 - opacities.double()) ** (1 / n.double())
    k = torch.arange(len(binoms), device=binoms.device, dtype=torch.float64)
    signs = (1 - 2 * (k % 2)) / (k + 1).sqrt()
    counts = binoms.double().cumsum(0)[n - 1]  # (N, M); 0 where k >= n
    total = (counts * signs * alpha[:, None] ** (k + 1)).sum(-1)
    return alpha.to(opacities), (opacities / total)[:, None].to(scales) * scales


@contextmanager
def _seeded(generator: Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which gsplat uses, from `generator`; they are restored on exit."""
    seed = int(torch.randint(2**62, (), generator=generator))
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
