"""The optimisation loop: render views, evaluate the guidance, update the parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ..cameras import CameraRanges
from ..diffusion.prior import SplitPrior, is_out_of_memory
from ..errors import OutOfMemory, RenderError
from ..guidance.mixing import GuidanceSource, MixedSource
from ..rasterize import Renderer, slowdown
from ..splats import Splats, validate
from .checkpoint import Checkpoint
from .config import Budget, DreamConfig
from .gaussians import Gaussians
from .guards import require_finite
from .picture_view import picture_targets, without_augmentation
from .state import Run
from .step import Gradients, Setup, backpropagate, fit, update

log = logging.getLogger(__name__)


FEWER = (
    "allow fewer Gaussians (densify_max_splats in Lucid Optimizer), lower the resolution of the field, or "
    "free memory"
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Step(Generic[Value]):
    """One finished step. `result` (Splats or a Field) is finite, a copy, and on the device of the backend."""

    step: int  # from 1
    # "gradient norm" (of the guidance, at the latents) or "pixels" (image targets), and each regulariser with
    # its weight
    losses: dict[str, float]
    result: Value
    evaluations: int
    seconds: float  # since the start of the run
    progress: float  # 1.0 in the last step
    checkpoint: Callable[[], Checkpoint]  # state of this step; valid until the next step begins
    # x0 preview of the first view (H, W, 3) sRGB; None if the model was not evaluated
    x0_preview: Callable[[], Tensor | None]
    slowdown: str  # message if a slower rendering backend is in use, else ""

    @property
    def splats(self: Step[Splats]) -> Splats:
        """The result of a run that optimises a splat."""
        return self.result


def distil(
    splats: Splats,
    source: GuidanceSource | MixedSource,
    cameras: CameraRanges,
    config: DreamConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
    fixed: Splats | None = None,
) -> Iterator[Step[Splats]]:
    """Optimise `splats` with the gradients of a guidance source; yields after every step.

    fixed: splats that are rendered too, but neither changed nor yielded. If the prompts of `source` have
    control images (hints), these are rendered for every batch of views. If a batch of views does not fit into
    memory, the models are evaluated on fewer views at a time, with the same random draws. With a time limit
    in `config`, schedule steps are skipped so that the schedules end when the time is over. All random
    numbers follow from `seed` and are drawn on the CPU. The splats are on the device of `backend`.

    resume: a checkpoint of a run with the same arguments. Yields its step first, then continues that run,
    bit-identical on a CPU.

    Raises BadSplats for splats that cannot be optimised, BackendUnavailable, NotFinite when the loss, a
    gradient or a parameter is not finite, OutOfMemory or RenderOutOfMemory when a single view, or the update
    of the parameters, does not fit into memory, another RenderError when the renderer fails, and
    NoGaussiansLeft. The splats of the last yielded step stay valid.
    """
    validate(splats)
    renderer = Renderer(backend)
    start = splats.with_sh_degree(config.optimizer.harmonics.sh_degree).map(lambda x: x.to(renderer.device))
    config = without_augmentation(config, source)
    fixed = fixed and fixed.map(lambda x: x.to(renderer.device))
    run = Run(Gaussians(start, config, renderer, fixed), seed)
    yield from guide(run, source, cameras, config, renderer, splats.sh_degree, resume)


def guide(
    run: Run,
    source: GuidanceSource | MixedSource,
    cameras: CameraRanges,
    config: DreamConfig,
    renderer: Renderer,
    first_degree: int = 0,
    resume: Checkpoint | None = None,
) -> Iterator[Step[Any]]:
    """The loop of `distil` for any representation, whose `config` comes from `without_augmentation`."""
    source = source.map(lambda one: replace(one, guidance=one.guidance.with_strength(config.task.strength)))
    pictures = picture_targets(source, cameras, config.budget.resolution, renderer.device)
    setup = Setup(config, cameras, renderer, tuple(pictures))
    yield from optimise(run, setup, GuidedSteps(source, config.budget), first_degree, resume)


class Steps(Protocol):
    """Where the gradients of a run come from: a guidance, or given pictures."""

    @property
    def evaluations(self) -> int:
        """The number of model evaluations so far."""
        ...

    def find_gradients(self, run: Run, setup: Setup, progress: float, sh_degree: int) -> Gradients:
        """Set the learning rates and the gradients of all parameters at `progress` (0 to 1)."""
        ...

    def save_memory(self, error: RuntimeError) -> None:
        """Use less memory from now on. Raises OutOfMemory or `error` where that is impossible."""
        ...


def optimise(
    run: Run, setup: Setup, steps: Steps, first_degree: int, resume: Checkpoint | None
) -> Iterator[Step[Any]]:
    """The loop of `distil` and `fit_views`; yields after every step.

    first_degree: SH degree of the start. resume: see `distil`.
    """
    config = setup.config
    budget = config.budget
    if resume:
        run.restore(resume)
        yield report(run, budget)
    while run_progress(run, budget) < 1:
        at = next_schedule_step(run, budget)
        progress = (at - 1) / budget.steps
        sh_degree = config.optimizer.harmonics.degree(progress, first_degree)
        try:
            with run.next_step(at, steps):
                gradients = steps.find_gradients(run, setup, progress, sh_degree)
                update(run, config, gradients, at)
                require_finite(run.representation.named_values(), run.step + 1, budget.steps)
                run.losses = gradients.losses
        except RuntimeError as error:
            if isinstance(error, RenderError) or not is_out_of_memory(error):
                raise
            if not run.is_whole:
                raise OutOfMemory("the update of the parameters", FEWER) from error
            steps.save_memory(error)
            continue
        yield report(run, budget)


class GuidedSteps:
    """Steps by a guidance source, evaluated on fewer views at a time once memory is too small."""

    def __init__(self, source: GuidanceSource | MixedSource, budget: Budget) -> None:
        self.source, self.budget = source, budget
        self.active, self.size = source, most_views(source, budget)

    @property
    def evaluations(self) -> int:
        return self.source.evaluations

    def find_gradients(self, run: Run, setup: Setup, progress: float, sh_degree: int) -> Gradients:
        """See Steps."""
        phase = self.active.phase(progress)
        source = phase.target_source
        run.representation.set_rates(phase.progress, source.targets.rate if source else 1.0)
        if source:
            return fit(run, setup, phase, source, sh_degree)
        return backpropagate(run, setup, phase, sh_degree)

    def save_memory(self, error: RuntimeError) -> None:
        """Halve the views per model evaluation. Raises OutOfMemory where it is one already."""
        self.size = halve(self.size, self.budget, error)
        self.active = split_batches(self.source, self.size)


def most_views(source: GuidanceSource | MixedSource, budget: Budget) -> int:
    """The largest batch of views that a model is evaluated on."""
    return max(getattr(guidance, "views", budget.views) for guidance in source.guidances())


def split_batches(source: GuidanceSource | MixedSource, size: int) -> GuidanceSource | MixedSource:
    """The source with every model evaluated on at most `size` views at a time."""
    return source.map(lambda one: replace(one, prior=SplitPrior(one.prior, size)))


def halve(size: int, budget: Budget, error: Exception) -> int:
    """Half the number of views per batch, rounded up. Raises OutOfMemory if it is already 1."""
    if size == 1:
        raise OutOfMemory(f"one view of {budget.resolution} px") from error
    half = (size + 1) // 2
    log.warning(
        "no memory for %d views at a time; going on with %d, which is slower but gives the same result",
        size,
        half,
    )
    return half


def run_progress(run: Run, budget: Budget) -> float:
    """Progress in [0, 1]: the larger of the fractions of steps done and of time elapsed."""
    in_time = run.seconds / (60 * budget.max_minutes) if budget.max_minutes else 0.0
    return min(max(run.at / budget.steps, in_time), 1.0)


def next_schedule_step(run: Run, budget: Budget) -> int:
    """The schedule step after `run.at`, from 1; later ones are skipped to keep a time limit."""
    return max(run.at + 1, int(run_progress(run, budget) * budget.steps) + 1)


def report(run: Run, budget: Budget) -> Step[Any]:
    """The Step that describes the state of `run`."""
    return Step(
        run.step,
        run.losses,
        run.representation.result(),
        run.evaluations,
        run.seconds,
        run_progress(run, budget),
        run.checkpoint,
        run.x0_preview or (lambda: None),
        slowdown(),
    )
