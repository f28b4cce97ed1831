"""One optimisation step: gradients from a guidance or from image targets, then the parameter update."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Parameter

from ..cameras import CameraRanges, Cameras
from ..conditioning.control_images import images_of
from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import Phase
from ..rasterize import Render, rasterize, to_device
from ..splats import SH_C0, Splats, activate
from . import losses
from .augment import guided_images, jitter, light_backgrounds, random_backgrounds
from .config import DreamConfig
from .guards import require_finite, require_seen
from .replay import Replay
from .selection import join_splats
from .state import Run


def backpropagate(
    run: Run,
    fixed: Splats | None,
    phase: Phase,
    cameras: CameraRanges,
    config: DreamConfig,
    sh_degree: int,
    backend: str,
) -> tuple[float, dict]:
    """Render a batch of views and backpropagate the guidance and the regularisers to the parameters.

    Returns (loss, `Render.info` for the densification). Raises FloatingPointError for a loss that is not
    finite, ValueError if no camera sees the splat.
    """
    generator, device, progress = run.generator, run.params["means"].device, phase.progress

    # 1. render a batch of views
    views = cameras.sample(config.views, progress, config.resolution, config.resolution, generator)
    seen_by = to_device(views.cameras, device)
    current = activate(run.params)
    background = random_backgrounds(config.views, config, generator).to(device)
    if sh_degree and torch.rand((), generator=generator) < config.sh_plain_share:
        sh_degree = 0
    scene = join_splats(jitter(current, config, generator), fixed)
    render = rasterize(scene, seen_by, config.resolution, config.resolution, sh_degree, background, backend)
    if run.step == 0:
        require_seen(render, scene, cameras)
    disparity = losses.disparity(render.depth, render.alpha, seen_by.Ks[:, 0, 0] / config.resolution)

    # 2. evaluate the guidance
    images, mirrored = guided_images(render, disparity, config, generator)
    hints = lambda wanted: images_of(wanted, render, seen_by, mirrored, backend)
    pull = phase.source.pull(images, views, progress, generator, hints, config.pixels)
    run.wanted = pull.wanted

    # 3. add the regularisers and backpropagate
    loss = pull.loss
    loss = loss + config.tv_weight * (losses.tv(render.rgb) + losses.tv(disparity))
    loss = loss + config.scale_weight * losses.scale(current.scales)
    return finish_backward(run, loss, render, len(current) if fixed else None, config)


def fit(
    run: Run,
    fixed: Splats | None,
    phase: Phase,
    cameras: CameraRanges,
    config: DreamConfig,
    sh_degree: int,
    backend: str,
) -> tuple[float, dict]:
    """As `backpropagate`, but fits image targets; new targets are generated when they are due."""
    targets = phase.source.guidance
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
    render = rasterize(
        join_splats(current, fixed), seen_by, width, height, sh_degree, drawn.backgrounds, backend
    )
    loss = targets.difference(render.rgb, wanted) + targets.scale_weight * losses.scale(current.scales)
    if targets.entropy_weight:
        loss = loss + targets.entropy_weight * losses.entropy(render.alpha)
    if targets.aspect_weight:
        loss = loss + targets.aspect_weight * losses.aspect(current.scales)
    return finish_backward(run, loss, render, len(current) if fixed else None, config)


def finish_backward(
    run: Run, loss: Tensor, render: Render, count: int | None, config: DreamConfig
) -> tuple[float, dict]:
    """Backpropagate `loss` to the parameters and the projected means.

    Returns (loss, `Render.info` of the first `count` Gaussians; None = of all). Raises FloatingPointError for
    a loss that is not finite.
    """
    require_finite({"the loss": loss}, run.step + 1, config)
    run.densifier.before_backward(run.params, run.optimizers, run.step + 1, render.info)
    render.info["means2d"].retain_grad()
    loss.backward()
    return loss.item(), render.info if count is None else of_first(count, render.info)


@torch.no_grad()
def ask(
    run: Run,
    fixed: Splats | None,
    phase: Phase,
    cameras: CameraRanges,
    config: DreamConfig,
    sh_degree: int,
    backend: str,
    asked: int,
) -> Replay:
    """Generate image targets for new views from the late camera ranges; `asked`: their generation count."""
    targets, generator, device = phase.source.guidance, run.generator, run.params["means"].device
    views = cameras.sample(targets.views, 1.0, config.resolution, config.resolution, generator)
    seen_by = to_device(views.cameras, device)
    backgrounds = light_backgrounds(targets.views, config, generator).to(device)
    scene = join_splats(activate(run.params), fixed)
    render = rasterize(scene, seen_by, config.resolution, config.resolution, sh_degree, backgrounds, backend)
    if run.step == 0:
        require_seen(render, scene, cameras)
    hints = lambda wanted: images_of(wanted, render, seen_by, False, backend)
    pictures = phase.source.pictures(render.rgb, views, phase.progress, generator, hints)
    require_finite({"a picture of the model": pictures}, run.step + 1, config)
    run.wanted = lambda: pictures[0]
    return Replay(seen_by.viewmats, seen_by.Ks, backgrounds, (255 * pictures).round().byte(), asked)


def update(run: Run, info: dict, config: DreamConfig, at: int, targets: ImageTargets | None = None) -> None:
    """Update the parameters with their gradients, then densify.

    at: schedule step. targets: the image targets if this step fitted them. Raises FloatingPointError for
    gradients that are not finite, RuntimeError if all Gaussians were pruned.
    """
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
            f"every Gaussian was pruned at step {step} of {config.steps}; start from more opaque or smaller "
            f"ones"
        )


def of_first(n: int, info: dict) -> dict:
    """`Render.info` restricted to the first `n` Gaussians, the ones that are not fixed."""
    means2d = info["means2d"].detach()[:, :n]
    means2d.grad = info["means2d"].grad[:, :n]
    return {**info, "means2d": means2d, "radii": info["radii"][:, :n]}


def keep_frozen(splats: Splats, start: Splats, config: DreamConfig) -> Splats:
    """With locked geometry, the exact start values: the activations would change them by rounding."""
    if not config.freeze_geometry:
        return splats
    return replace(
        splats, quats=start.quats.clone(), scales=start.scales.clone(), opacities=start.opacities.clone()
    )


@torch.no_grad()
def keep_colors(params: dict[str, Parameter]) -> None:
    """Clamp the base colours to [0, 1]; a guidance at high cfg drives them beyond what an image can show."""
    params["sh0"].clamp_(-0.5 / SH_C0, 0.5 / SH_C0)
