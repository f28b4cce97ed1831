"""The optimisation loop: render views, evaluate the guidance, update the Gaussians."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ..cameras import CameraRanges
from ..diffusion.prior import OutOfMemory, SplitPrior, is_out_of_memory
from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import GuidanceSource, MixedSource
from ..rasterize import RenderError, device_for, slowdown
from ..splats import Splats, activate, validate
from .checkpoint import Checkpoint
from .config import DreamConfig
from .guards import require_finite
from .schedule import set_learning_rates
from .state import Run
from .step import backpropagate, fit, keep_frozen, update

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One finished step. `splats` is finite, a copy, and on the device of the backend."""

    step: int  # from 1
    loss: float
    splats: Splats
    evaluations: int
    seconds: float  # since the start of the run
    progress: float  # 1.0 in the last step
    checkpoint: Callable[[], Checkpoint]  # state of this step; valid until the next step begins
    # x0 preview of the first view (H, W, 3) sRGB; None if the model was not evaluated
    wanted: Callable[[], Tensor | None]
    slowdown: str  # message if a slower rendering backend is in use, else ""


def distil(
    splats: Splats,
    source: GuidanceSource | MixedSource,
    cameras: CameraRanges,
    config: DreamConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
    fixed: Splats | None = None,
) -> Iterator[Step]:
    """Optimise `splats` with the gradients of a guidance source; yields after every step.

    fixed: splats that are rendered too, but neither changed nor yielded. If the prompts of `source` have
    control images (hints), these are rendered for every batch of views. If a batch of views does not fit into
    memory, the models are evaluated on fewer views at a time, with the same random draws. With a time limit
    in `config`, schedule steps are skipped so that the schedules end when the time is over. All random
    numbers follow from `seed` and are drawn on the CPU. The splats are on the device of `backend`.

    resume: a checkpoint of a run with the same arguments. Yields its step first, then continues that run,
    bit-identical on a CPU.

    Raises ValueError for splats that cannot be optimised, FloatingPointError when the loss, a gradient or a
    parameter is not finite, OutOfMemory when a single view does not fit into memory, and RuntimeError when no
    Gaussian is left. The splats of the last yielded step stay valid.
    """
    validate(splats)
    device = device_for(backend)
    source = source.map(lambda one: replace(one, guidance=one.guidance.with_strength(config.strength)))
    first_degree, last_degree = splats.sh_degree, max(splats.sh_degree, config.sh_degree)
    start = splats.with_sh_degree(last_degree).map(lambda x: x.to(device))
    fixed = fixed and fixed.map(lambda x: x.to(device))
    run = Run(start, config.densify, config.steps, config.adam_betas, seed)
    if resume:
        run.restore(resume)
        yield report(run, keep_frozen(activate(run.params).detach(), start, config), config)
    active, size = source, most_views(source, config)  # the source, with split batches if memory is too small
    while run_progress(run, config) < 1:
        evaluations = source.evaluations
        at = max(run.at + 1, int(run_progress(run, config) * config.steps) + 1)  # schedule step, from 1
        progress = (at - 1) / config.steps
        phase = active.phase(progress)
        fitted = isinstance(phase.source, GuidanceSource) and isinstance(phase.source.guidance, ImageTargets)
        set_learning_rates(
            run.optimizers, config, phase.progress, phase.source.guidance.rate if fitted else 1.0
        )
        sh_degree = min(first_degree + int(progress / config.sh_every), last_degree)
        try:
            step = fit if fitted else backpropagate
            loss, info = step(run, fixed, phase, cameras, config, sh_degree, backend)
        except RuntimeError as error:
            if isinstance(error, RenderError) or not is_out_of_memory(error):
                raise
            size = halve(size, config, error)
            active = source.map(lambda one, size=size: replace(one, prior=SplitPrior(one.prior, size)))
            run.undo()
            continue
        update(run, info, config, at, phase.source.guidance if fitted else None)
        finished = keep_frozen(activate(run.params).detach(), start, config)
        require_finite(
            {f"{name} of the splat": value for name, value in vars(finished).items()}, run.step + 1, config
        )
        run.finish(at, loss, source.evaluations - evaluations)
        yield report(run, finished, config)


def most_views(source: GuidanceSource | MixedSource, config: DreamConfig) -> int:
    """The largest batch of views that a model is evaluated on."""
    return max(getattr(guidance, "views", config.views) for guidance in source.guidances())


def halve(size: int, config: DreamConfig, error: Exception) -> int:
    """Half the number of views per batch, rounded up. Raises OutOfMemory if it is already 1."""
    if size == 1:
        raise OutOfMemory(
            f"there is no memory for one view of {config.resolution} px; lower the resolution, take a "
            "smaller model, or free memory (other programs, loaded models)"
        ) from error
    half = (size + 1) // 2
    log.warning(
        "no memory for %d views at a time; going on with %d, which is slower but gives the same result",
        size,
        half,
    )
    return half


def run_progress(run: Run, config: DreamConfig) -> float:
    """Progress in [0, 1]: the larger of the fractions of steps done and of time elapsed."""
    in_time = run.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0
    return min(max(run.at / config.steps, in_time), 1.0)


def report(run: Run, splats: Splats, config: DreamConfig) -> Step:
    """The Step that describes the state of `run`."""
    wanted = run.wanted or (lambda: None)
    progress = run_progress(run, config)
    return Step(
        run.step, run.loss, splats, run.evaluations, run.seconds, progress, run.checkpoint, wanted, slowdown()
    )
