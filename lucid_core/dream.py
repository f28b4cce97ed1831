"""The optimisation loop: render views, ask the guidance what to change, step the Gaussians."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Adam

from . import losses
from .cameras import CameraRanges, Cameras
from .checkpoint import Checkpoint
from .checks import check_bounds, choice, require, setting
from .densify import NO_GROWTH, Densify
from .gaussians import SH_C0, Splats, activate, validate
from .hints import images_of
from .prior import OutOfMemory, Prior, SplitPrior, is_out_of_memory
from .rasterize import Render, RenderError, device_for, rasterize, slowdown, to_device
from .refine import joined, limited
from .run import Run
from .score import Guidance, PixelGradient
from .targets import ImageTargets, Replay
from .teacher import Phase, Teacher, Teachers
from .views import Prompts

log = logging.getLogger(__name__)
BACKGROUNDS = ("any", "grey")
DARKEST_GREY = 0.15  # of the demo prior's pictures
LIGHT_GREY = 0.7  # the darkest one behind views that a model makes pictures of
TOO_SMALL, TOO_LARGE = 20, 5  # times smaller, or larger, than what the cameras see
REPAINT = 10  # times the colours' first learning rate where the geometry is frozen: a hue may have to become its opposite


def rates(of: str, default: tuple[float, float], what: str) -> Any:
    """A setting of the first and the last learning rate."""
    help = f"Learning rate of {what}; it decays exponentially to its last value, at the end of the run."
    return setting(default, 1e-9, 10, help, step=1e-7, rare=False, parts=(f"lr_{of}", f"lr_{of}_last"))


@dataclass(frozen=True)
class DreamConfig:
    """How the splat is optimised; the defaults are the official settings. Learning rates are (first, last)."""

    steps: int = setting(5000, 1, 1_000_000, "Optimisation steps.", step=1, rare=False)
    views: int = setting(
        4, 1, 64, "Views rendered in each step, in one model call. More is smoother and slower.", step=1, rare=False
    )
    resolution: int = setting(
        512, 64, 2048, "Size of the training views in pixels: what the model was trained at.", step=8, rare=False
    )
    max_minutes: float = setting(
        0.0, 0, 100_000, "Minutes after which the run ends, its schedules fitted to them. The splat then depends on the "
        "machine's speed: the same seed does not give the same one. 0 = no limit.", step=0.5,
    )  # fmt: skip
    strength: float = setting(
        1.0, 0.01, 1, "How far the splat may go from what it is: the share of the noise above the least, and of the learning "
        "rates. 1 = all the way, as for a start from points; 0.3 = refine.", rare=False,
    )  # fmt: skip
    freeze_geometry: bool = setting(False, 0, 1, "Keeps place, size, turn, opacity and number of the Gaussians as they are: a "
                                    "new coat of colour.")  # fmt: skip
    freeze_color: bool = setting(False, 0, 1, "Keeps every colour as it is.")
    lr_means: tuple[float, float] = rates("means", (5.6e-4, 5.6e-6), "places, in units of the splat")
    lr_scales: tuple[float, float] = rates("scales", (5e-3, 1e-3), "sizes, on their logarithms")
    lr_quats: tuple[float, float] = rates("quats", (1e-3, 2e-4), "turns")
    lr_opacities: tuple[float, float] = rates("opacities", (5e-2, 5e-2), "opacities, on their logits")
    lr_sh: tuple[float, float] = rates("sh", (5e-3, 3e-3), "colours; the bands that depend on the view learn at a twentieth")
    scale_weight: float = setting(
        1.0, 0, 1e6, "Pull to small Gaussians. Higher for few splats in few steps.", step=0.1, rare=False
    )
    tv_weight: float = setting(1.0, 0, 1e6, "Pull to smooth images and disparity (total variation).", step=0.1, rare=False)
    sh_degree: int = setting(
        0, 0, 3, "Highest band of the colours' dependence on the view, such as of gloss, in the end of the run; 0 = none. A "
        "splat that starts with more keeps it.", step=1, rare=False,
    )  # fmt: skip
    sh_every: float = setting(0.1, 0.001, 1, "Share of the run after which the next band joins.", step=0.001)
    sh_plain_share: float = setting(
        0.1, 0, 1, "Share of the steps that render the colours without their dependence on the view, so that the base colours "
        "alone are right too.",
    )  # fmt: skip
    clip_norm: float = setting(
        0.0, 0, 1e9, "Norm to which the gradient of all parameters together is cut; 0 = never.", step=0.1
    )
    adam_betas: tuple[float, float] = setting(
        (0.9, 0.999), 0, 0.999999, "Adam's memory of gradients (1) and of their squares (2), for which few steps want 0.99.",
        step=0.0001, parts=("adam_beta1", "adam_beta2"),
    )  # fmt: skip
    background_share: float = setting(0.66, 0, 1, "Share of the views on another background than white.")
    background_colors: str = choice(
        BACKGROUNDS, "any: half of those backgrounds random, half black. grey: random greys, for a model of plain pictures."
    )
    flip_share: float = setting(0.5, 0, 1, "Share of the steps whose views are mirrored.")
    disparity_share: float = setting(0.2, 0, 1, "Share of the steps in which the model sees the disparity image.")
    # One draw for all views of a step, where the official code draws for each: they are rendered in one call, and every
    # Gaussian gets the same noise over the steps.
    scale_jitter: float = setting(0.112, 0, 10, "Relative noise on the Gaussians' sizes while training.", step=0.001)
    image_residual: bool = setting(False, 0, 1, "Pulls a view to the picture that the model makes of it, in place of the "
                                   "gradient through the VAE's encoder: clean colours, no VAE graph in memory.")  # fmt: skip
    pixel_limit: float = setting(
        0.0, 0, 1e6, "Most that a channel of a pixel may pull, against speckle; 0 = what the method or the model needs.",
        step=0.001,
    )  # fmt: skip
    pixel_average: int = setting(
        1, 1, 64, "Size in pixels of the squares over which the pull is averaged, such as a VAE's 8; 1 = none.", step=1
    )
    densify: Densify = field(default_factory=Densify)

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.resolution % 8 == 0, "resolution", self.resolution, "a multiple of 8")
        fits = self.resolution % self.pixel_average == 0
        require(fits, "pixel_average", self.pixel_average, f"a divisor of the resolution ({self.resolution})")
        both = self.freeze_geometry and self.freeze_color
        require(not both, "freeze_color", self.freeze_color, "off where freeze_geometry is on: nothing could change")

    @property
    def pixels(self) -> PixelGradient:
        return PixelGradient(self.image_residual, self.pixel_limit or math.inf, self.pixel_average)


PRESETS = {
    "official": DreamConfig(),
    # Minutes on a CPU: a twentieth of the steps, so bolder rates and a shorter memory of squared gradients; a strong pull
    # to small Gaussians, which a few thousand need at 128 px; no pictures that a small prior has never seen. Growth is off:
    # what is split so late stays speckle (a red mushroom: 16.7 dB with it, 16.9 without). Few splats may have to be large.
    "cpu": DreamConfig(
        steps=260,
        views=4,
        resolution=128,
        lr_means=(2.5e-3, 3e-4),
        lr_quats=(1e-2, 2e-3),
        lr_scales=(1e-2, 3e-3),
        lr_opacities=(1e-1, 5e-2),
        lr_sh=(1e-2, 4e-3),
        adam_betas=(0.9, 0.99),
        scale_weight=100.0,
        background_colors="grey",
        disparity_share=0.0,
        flip_share=0.0,
        densify=Densify(start=0.3, stop=0.9, every=0.1, grow_grad2d=NO_GROWTH, prune_scale3d=0.0, reset_every=0.0),
    ),
}


@dataclass(frozen=True)
class Step:
    """One finished step. `splats` is finite, the reader's own, and where the backend renders."""

    step: int  # from 1
    loss: float
    splats: Splats
    evaluations: int
    seconds: float  # since the run began
    progress: float  # 1.0 in the last step
    checkpoint: Callable[[], Checkpoint]  # of this step, until the next one is made
    wanted: Callable[[], Tensor | None]  # (H, W, 3) what the model made of its first view; None where it was not asked
    slowdown: str  # why it is rendered more slowly than it could be, for the user; "" where it is not


def dream(
    splats: Splats,
    prior: Prior,
    guidance: Guidance,
    prompts: Prompts,
    cameras: CameraRanges,
    config: DreamConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
    fixed: Splats | None = None,
) -> Iterator[Step]:
    """Optimise `splats` until the prior finds `prompts` in its views; yields after every step. See `distil`."""
    return distil(splats, Teacher(prior, guidance, prompts), cameras, config, seed, backend, resume, fixed)


def distil(
    splats: Splats,
    teacher: Teacher | Teachers,
    cameras: CameraRanges,
    config: DreamConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
    fixed: Splats | None = None,
) -> Iterator[Step]:
    """Optimise `splats` until the teacher has nothing to change about its views; yields after every step.

    `fixed` splats are seen beside them, but neither changed nor yielded.
    A teacher whose prompts have hints is shown them for every batch of views.
    Where the views do not fit into memory together, the models are asked about fewer at a time, with the same draws.
    Where `config` limits the time, steps of the schedules are left out, so that they reach their ends when it is over.
    Everything random follows from `seed` and is drawn on the CPU. The splats live where `backend` renders. A run that is given
    all that another one was, and its checkpoint to `resume`, yields the checkpoint's step and then goes on as that one did, bit
    for bit on a CPU. Raises ValueError for a splat that cannot be optimised, FloatingPointError when the loss, a gradient or a
    parameter is not finite, OutOfMemory where one view is too many, and RuntimeError when nothing is left; the splats of the
    last yielded step are still good then.
    """
    validate(splats)
    device = device_for(backend)
    teacher = teacher.map(lambda one: replace(one, guidance=limited(one.guidance, config.strength)))
    first_degree, last_degree = splats.sh_degree, max(splats.sh_degree, config.sh_degree)
    start = with_sh_degree(splats, last_degree).map(lambda x: x.to(device))
    fixed = fixed and fixed.map(lambda x: x.to(device))
    run = Run(start, config.densify, config.steps, config.adam_betas, seed)
    if resume:
        run.restore(resume)
        yield report(run, frozen(activate(run.params).detach(), start, config), config)
    asked, size = teacher, most_views(teacher, config)  # the models, perhaps about fewer views at a time
    while run_progress(run, config) < 1:
        evaluations = teacher.evaluations
        at = max(run.at + 1, int(run_progress(run, config) * config.steps) + 1)  # step of the schedules
        progress = (at - 1) / config.steps
        phase = asked.phase(progress)
        fitted = isinstance(phase.teacher, Teacher) and isinstance(phase.teacher.guidance, ImageTargets)
        set_learning_rates(run.optimizers, config, phase.progress, phase.teacher.guidance.rate if fitted else 1.0)
        sh_degree = min(first_degree + int(progress / config.sh_every), last_degree)
        try:
            step = fit if fitted else backpropagate
            loss, info = step(run, fixed, phase, cameras, config, sh_degree, backend)
        except RuntimeError as error:
            if isinstance(error, RenderError) or not is_out_of_memory(error):
                raise
            size = halved(size, config, error)
            asked = teacher.map(lambda one, size=size: replace(one, prior=SplitPrior(one.prior, size)))
            run.undo()
            continue
        update(run, info, config, at, phase.teacher.guidance if fitted else None)
        finished = frozen(activate(run.params).detach(), start, config)
        require_finite({f"{name} of the splat": value for name, value in vars(finished).items()}, run.step + 1, config)
        run.finish(at, loss, teacher.evaluations - evaluations)
        yield report(run, finished, config)


def most_views(teacher: Teacher | Teachers, config: DreamConfig) -> int:
    """The most views that a model is asked about at a time."""
    return max(getattr(guidance, "views", config.views) for guidance in teacher.guidances())


def backpropagate(
    run: Run, fixed: Splats | None, phase: Phase, cameras: CameraRanges, config: DreamConfig, sh_degree: int, backend: str
) -> tuple[float, dict]:
    """Give the parameters their gradients for one batch of views -> the loss, and the render's info for the densification."""
    generator, device, progress = run.generator, run.params["means"].device, phase.progress

    # 1. render a batch of views
    views = cameras.sample(config.views, progress, config.resolution, config.resolution, generator)
    seen_by = to_device(views.cameras, device)
    current = activate(run.params)
    background = random_backgrounds(config.views, config, generator).to(device)
    if sh_degree and torch.rand((), generator=generator) < config.sh_plain_share:
        sh_degree = 0
    scene = joined(jitter(current, config, generator), fixed)
    render = rasterize(scene, seen_by, config.resolution, config.resolution, sh_degree, background, backend)
    if run.step == 0:
        require_seen(render, scene, cameras)
    disparity = losses.disparity(render.depth, render.alpha, seen_by.Ks[:, 0, 0] / config.resolution)

    # 2. what the teacher would change about them
    images, mirrored = guided_images(render, disparity, config, generator)
    hints = lambda wanted: images_of(wanted, render, seen_by, mirrored, backend)
    pull = phase.teacher.pull(images, views, progress, generator, hints, config.pixels)
    run.wanted = pull.wanted

    # 3. guidance and regularisers
    loss = pull.loss
    loss = loss + config.tv_weight * (losses.tv(render.rgb) + losses.tv(disparity))
    loss = loss + config.scale_weight * losses.scale(current.scales)
    require_finite({"the loss": loss}, run.step + 1, config)
    run.densifier.before_backward(run.params, run.optimizers, run.step + 1, render.info)
    render.info["means2d"].retain_grad()
    loss.backward()
    return loss.item(), of_first(len(current), render.info) if fixed else render.info


def fit(
    run: Run, fixed: Splats | None, phase: Phase, cameras: CameraRanges, config: DreamConfig, sh_degree: int, backend: str
) -> tuple[float, dict]:
    """As `backpropagate`, towards pictures of image targets; the model is asked for new ones when it is time."""
    targets = phase.teacher.guidance
    due = targets.asks(phase.progress, round(phase.length * config.steps))
    if run.replay is None or run.replay.asked < due:
        replay = ask(run, fixed, phase, cameras, config, sh_degree, backend, due)
        if run.replay is None:
            run.forget_gradients()
        run.replay = run.replay.add(replay, targets.kept) if run.replay else replay
    drawn = run.replay.draw(config.views, run.generator)
    current = activate(run.params)
    seen_by = Cameras(drawn.viewmats, drawn.Ks)
    wanted = drawn.pictures / 255
    height, width = wanted.shape[1:3]
    render = rasterize(joined(current, fixed), seen_by, width, height, sh_degree, drawn.backgrounds, backend)
    loss = targets.difference(render.rgb, wanted) + targets.scale_weight * losses.scale(current.scales)
    if targets.entropy_weight:
        loss = loss + targets.entropy_weight * losses.entropy(render.alpha)
    if targets.aspect_weight:
        loss = loss + targets.aspect_weight * losses.aspect(current.scales)
    require_finite({"the loss": loss}, run.step + 1, config)
    run.densifier.before_backward(run.params, run.optimizers, run.step + 1, render.info)
    render.info["means2d"].retain_grad()
    loss.backward()
    return loss.item(), of_first(len(current), render.info) if fixed else render.info


@torch.no_grad()
def ask(
    run: Run, fixed: Splats | None, phase: Phase, cameras: CameraRanges, config: DreamConfig, sh_degree: int, backend: str,
    asked: int,
) -> Replay:  # fmt: skip
    """Pictures of new views, from the late ranges of `cameras`; they are the `asked`-th ones."""
    targets, generator, device = phase.teacher.guidance, run.generator, run.params["means"].device
    views = cameras.sample(targets.views, 1.0, config.resolution, config.resolution, generator)
    seen_by = to_device(views.cameras, device)
    backgrounds = light_backgrounds(targets.views, config, generator).to(device)
    scene = joined(activate(run.params), fixed)
    render = rasterize(scene, seen_by, config.resolution, config.resolution, sh_degree, backgrounds, backend)
    if run.step == 0:
        require_seen(render, scene, cameras)
    hints = lambda wanted: images_of(wanted, render, seen_by, False, backend)
    pictures = phase.teacher.pictures(render.rgb, views, phase.progress, generator, hints)
    require_finite({"a picture of the model": pictures}, run.step + 1, config)
    run.wanted = lambda: pictures[0]
    return Replay(seen_by.viewmats, seen_by.Ks, backgrounds, (255 * pictures).round().byte(), asked)


def update(run: Run, info: dict, config: DreamConfig, at: int, targets: ImageTargets | None = None) -> None:
    """Step the parameters by their gradients, then densify; `at` is the step of the schedules, `targets` what was fitted."""
    params, step = run.params, run.step + 1
    require_finite({f"the gradient of {name}": param.grad for name, param in params.items()}, step, config)
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(params.values(), config.clip_norm)
    run.begin_update()
    for optimizer in run.optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not config.freeze_color:
        keep_colors(params)
    if not config.freeze_geometry:
        thresholds = (targets.grow_grad2d, targets.prune_opacity) if targets else None
        run.densifier.after_backward(params, run.optimizers, run.at, at, info, run.generator, thresholds)
    if len(params["means"]) == 0:
        raise RuntimeError(
            f"every Gaussian was pruned at step {step} of {config.steps}; start from more opaque or smaller ones"
        )


def of_first(n: int, info: dict) -> dict:
    """A render's info for the densification about its first `n` Gaussians alone: those that are not fixed."""
    means2d = info["means2d"].detach()[:, :n]
    means2d.grad = info["means2d"].grad[:, :n]
    return {**info, "means2d": means2d, "radii": info["radii"][:, :n]}


def frozen(splats: Splats, start: Splats, config: DreamConfig) -> Splats:
    """What the parameters' activations would move by a last bit."""
    if not config.freeze_geometry:
        return splats
    return replace(splats, quats=start.quats.clone(), scales=start.scales.clone(), opacities=start.opacities.clone())


def halved(size: int, config: DreamConfig, error: Exception) -> int:
    """Half as many views at a time. Raises OutOfMemory where it was one."""
    if size == 1:
        raise OutOfMemory(
            f"there is no memory for one view of {config.resolution} px; lower the resolution, take a smaller model, or free "
            "memory (other programs, models that are loaded)"
        ) from error
    half = (size + 1) // 2
    log.warning("no memory for %d views at a time; going on with %d, which is slower and gives the same", size, half)
    return half


def run_progress(run: Run, config: DreamConfig) -> float:
    """The share of the steps, or of the time, that is gone: the larger one."""
    in_time = run.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0
    return min(max(run.at / config.steps, in_time), 1.0)


def report(run: Run, splats: Splats, config: DreamConfig) -> Step:
    wanted = run.wanted or (lambda: None)
    progress = run_progress(run, config)
    return Step(run.step, run.loss, splats, run.evaluations, run.seconds, progress, run.checkpoint, wanted, slowdown())


def set_learning_rates(optimizers: dict[str, Adam], config: DreamConfig, progress: float, share: float = 1.0) -> None:
    """Exponential decay from the first to the last rate; the higher SH bands learn at a twentieth (3DGS).

    All of it by `strength` and `share`; what is frozen learns nothing.
    """
    sh0 = (REPAINT * config.lr_sh[0], config.lr_sh[1]) if config.freeze_geometry else config.lr_sh
    shN = (config.lr_sh[0] / 20, config.lr_sh[0] / 20)  # as in the official code, which decays the base colours' rate alone
    ranges = {
        "means": config.lr_means, "quats": config.lr_quats, "scales": config.lr_scales,
        "opacities": config.lr_opacities, "sh0": sh0, "shN": shN,
    }  # fmt: skip
    for name, (first, last) in ranges.items():
        still = config.freeze_color if name.startswith("sh") else config.freeze_geometry
        optimizers[name].param_groups[0]["lr"] = 0.0 if still else share * config.strength * first * (last / first) ** progress


def with_sh_degree(splats: Splats, degree: int) -> Splats:
    """The same splats with the bands up to `degree`, at least; new ones are 0."""
    missing = (degree + 1) ** 2 - splats.sh.shape[1]
    return replace(splats, sh=torch.nn.functional.pad(splats.sh, (0, 0, 0, max(missing, 0))))


@torch.no_grad()
def require_finite(values: dict[str, Tensor], step: int, config: DreamConfig) -> None:
    """Raise FloatingPointError that names the first of `values` to hold NaN or infinity; one look at the device for all."""
    values = {name: value for name, value in values.items() if value is not None and value.numel()}
    extremes = torch.stack([extreme for value in values.values() for extreme in value.aminmax()])
    finite = extremes.isfinite().view(-1, 2).all(1).tolist()
    for name, ok in zip(values, finite, strict=True):
        if not ok:
            raise FloatingPointError(
                f"{name} is not finite at step {step} of {config.steps}; lower cfg or the learning rates, or set clip_norm"
            )


def require_seen(render: Render, scene: Splats, cameras: CameraRanges) -> None:
    """Raise ValueError where the first views are empty and the splat lies behind the cameras: nothing would ever change."""
    centre = scene.means.median(dim=0).values
    if not (render.alpha > 0).any() and centre.norm() > cameras.radius_max:
        place = ", ".join(f"{value:.3g}" for value in centre.tolist())
        raise ValueError(f"no camera sees the splat, which lies about ({place}); turn on fit_to_view, or move it to the origin")


def view_note(splats: Splats, cameras: CameraRanges) -> str:
    """For the user, where `splats` are a speck in the first views or reach far out of them; "" where they are neither."""
    radius, fovy = (cameras.radius_min + cameras.radius_max) / 2, math.radians(cameras.fovy_min_deg + cameras.fovy_max_deg) / 2
    seen = 2 * radius * math.tan(fovy / 2)
    centre = splats.means.median(dim=0).values
    reach = ((splats.means - centre).norm(dim=-1) + splats.scales.amax(-1)).sort().values
    size = 2 * float(reach[math.ceil(0.99 * len(reach)) - 1])
    if seen / TOO_SMALL <= size <= seen * TOO_LARGE:
        return ""
    what = "a speck in" if size < seen else "far larger than"
    return f"The splat is {size:.3g} units across, {what} what the cameras see, {seen:.3g}; turn on fit_to_view."


@torch.no_grad()
def keep_colors(params: dict[str, Parameter]) -> None:
    """Hold the base colours in [0, 1]. A guidance at high cfg drives them out of it, where no image can follow."""
    params["sh0"].clamp_(-0.5 / SH_C0, 0.5 / SH_C0)


def random_backgrounds(views: int, config: DreamConfig, generator: Generator) -> Tensor:
    """(views, 3) sRGB behind the splat, one for each view. They show what is not solid: fog matches one, but not the next."""
    share, black, grey = torch.rand(3, views, 1, generator=generator)
    other = torch.where(black < 0.5, 0.0, torch.rand(views, 3, generator=generator))
    if config.background_colors == "grey":
        other = (DARKEST_GREY + (1 - DARKEST_GREY) * grey).expand(-1, 3)
    return torch.where(share < config.background_share, other, 1.0)


def light_backgrounds(views: int, config: DreamConfig, generator: Generator) -> Tensor:
    """(views, 3) sRGB, white or a light grey, one for each view. On a dark ground the pictures of a model are worse."""
    share, grey = torch.rand(2, views, 1, generator=generator)
    return torch.where(share < config.background_share, LIGHT_GREY + (1 - LIGHT_GREY) * grey, 1.0).expand(-1, 3)


def jitter(splats: Splats, config: DreamConfig, generator: Generator) -> Splats:
    noise = torch.randn(splats.scales.shape, generator=generator).to(splats.scales)
    return Splats(
        splats.means, splats.quats, splats.scales * (1 + config.scale_jitter * noise).clamp_min(0), splats.opacities, splats.sh
    )


def guided_images(render: Render, disparity: Tensor, config: DreamConfig, generator: Generator) -> tuple[Tensor, bool]:
    """What the guidance sees: the views, or in a share of the steps their disparity; and whether they are mirrored."""
    as_disparity, flipped = torch.rand(2, generator=generator)
    images = disparity.expand(-1, -1, -1, 3) if as_disparity < config.disparity_share else render.rgb
    mirrored = bool(flipped < config.flip_share)
    return images.flip(2) if mirrored else images, mirrored
