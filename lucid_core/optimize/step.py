"""One optimisation step: gradients from a guidance or from image targets, then the parameter update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..cameras import CameraRanges, Cameras, Views
from ..conditioning.control_images import RenderedBatch
from ..guidance.mixing import GuidanceSource, MixedSource, Phase
from ..rasterize import Render, Renderer, to_device
from . import losses
from .augment import guided_images, light_backgrounds, random_backgrounds
from .config import DreamConfig
from .guards import require_finite
from .picture_view import WEIGHT_PER_PIXEL, PictureTarget
from .replay import Replay
from .representation import PictureLoss
from .state import Run

Terms = Callable[[Render], dict[str, Tensor]]


@dataclass(frozen=True)
class Setup:
    """What stays the same in all steps of a run.

    renderer: of the guides of control images. pictures: fitted in every step.
    """

    config: DreamConfig
    cameras: CameraRanges
    renderer: Renderer
    pictures: tuple[PictureTarget, ...] = ()


@dataclass(frozen=True)
class Gradients:
    """What a step gives beside the gradients of the parameters.

    losses: by name, see Step. growth: see `Representation.growth`. thresholds: (grow_grad2d, prune_opacity)
    of a step that fitted pictures, see `Densifier.after_backward`.
    """

    losses: dict[str, float]
    growth: Any
    thresholds: tuple[float, float] | None = None


def backpropagate(run: Run, setup: Setup, phase: Phase, sh_degree: int) -> Gradients:
    """Backpropagate the guidance and the regularisers of a batch of views to the parameters.

    Raises NotFinite for a loss that is not finite, BadInput if no camera sees the splat or field.
    """
    budget, optimizer, generator = setup.config.budget, setup.config.optimizer, run.generator

    # 1. render a batch of views
    views = sample_views(run, setup, budget.views, phase.progress)
    value = run.representation.value()
    backgrounds = random_backgrounds(budget.views, optimizer.augmentation, generator).to(run.device)
    if sh_degree and torch.rand((), generator=generator) < optimizer.harmonics.sh_plain_share:
        sh_degree = 0
    render = render_views(run, setup, value, views, sh_degree, backgrounds, generator)
    focal = views.cameras.Ks[:, 0, 0] / budget.resolution
    disparity = losses.disparity(render.depth, render.alpha, focal)

    # 2. evaluate the guidance
    images, mirrored = guided_images(render.rgb, disparity, optimizer.augmentation, generator)
    batch = RenderedBatch(images, views, render, setup.renderer, mirrored)
    guidance = phase.source.loss(batch, phase.progress, generator, optimizer.pixels)
    run.x0_preview = guidance.x0_preview

    # 3. add the regularisers and backpropagate
    terms = {
        **run.representation.regularisers(value, render, views.cameras, disparity, phase.progress),
        **picture_loss(run, setup, sh_degree, WEIGHT_PER_PIXEL * budget.resolution**2),
    }
    loss = guidance.loss + torch.stack(list(terms.values())).sum()
    return finish_backward(run, setup, loss, {"gradient norm": guidance.gradient_norm, **terms}, render)


def fit(
    run: Run, setup: Setup, phase: Phase, source: GuidanceSource | MixedSource, sh_degree: int
) -> Gradients:
    """As `backpropagate`, but fits the image targets of `source`; makes new ones when they are due."""
    budget, targets = setup.config.budget, source.targets
    rounds = targets.rounds(phase.progress, round(phase.length * budget.steps))
    before = round(phase.start * budget.steps)  # at least the rounds of the targets before these
    rounds += before
    if run.replay is None or run.replay.rounds != rounds:
        new = make_targets(run, setup, source, phase.progress, sh_degree, rounds)
        if run.replay is None:
            run.forget_gradients()
        if run.replay and run.replay.rounds > before:
            new = run.replay.add(new, targets.kept)
        run.replay = new
    return fit_pictures(run, setup, run.replay.draw(budget.views, run.generator), targets, sh_degree)


def fit_pictures(
    run: Run, setup: Setup, drawn: Replay, loss: PictureLoss, sh_degree: int, terms: Terms | None = None
) -> Gradients:
    """Backpropagate the difference between `drawn` and renders by the same cameras.

    terms: further losses by name, from the render. Raises NotFinite for a loss that is not finite.
    """
    value, pictures = run.representation.value(), drawn.pictures / 255
    height, width = pictures.shape[1:3]
    cameras = Cameras(drawn.viewmats, drawn.Ks)
    render = run.representation.render(value, cameras, width, height, sh_degree, drawn.backgrounds)
    found = {
        "pixels": loss.difference(drawn.cover(render.rgb, pictures), pictures),
        **run.representation.picture_terms(value, render, cameras, loss),
        **picture_loss(run, setup, sh_degree, 1.0),
    }
    if loss.entropy_weight:
        found["entropy"] = loss.entropy_weight * losses.entropy(render.alpha)
    found |= terms(render) if terms else {}
    gradients = finish_backward(run, setup, torch.stack(list(found.values())).sum(), found, render)
    return replace(gradients, thresholds=(loss.grow_grad2d, loss.prune_opacity))


def picture_loss(run: Run, setup: Setup, sh_degree: int, factor: float) -> dict[str, Tensor]:
    """`factor` times the loss of all pictures at their own cameras, by its name; empty without pictures."""
    if not setup.pictures:
        return {}
    size, thing = setup.config.budget.resolution, run.representation
    value = thing.value()
    white = torch.ones(1, 3, device=run.device)
    found = [
        target.loss(thing.render(value, target.camera, size, size, sh_degree, white))
        for target in setup.pictures
    ]
    return {"picture": factor * torch.stack(found).sum()}


def finish_backward(
    run: Run, setup: Setup, loss: Tensor, reported: dict[str, Tensor], render: Render
) -> Gradients:
    """Backpropagate `loss` (scalar) to the parameters and the projected means; `reported`: scalars by name.

    Raises NotFinite for a loss that is not finite.
    """
    require_finite({"the loss": loss}, run.step + 1, setup.config.budget.steps)
    run.representation.before_backward(run.step + 1, render)
    loss.backward()
    values = torch.stack([value.detach() for value in reported.values()]).tolist()
    return Gradients(dict(zip(reported, values, strict=True)), run.representation.growth(render))


@torch.no_grad()
def make_targets(
    run: Run, setup: Setup, source: GuidanceSource | MixedSource, progress: float, sh_degree: int, rounds: int
) -> Replay:
    """Generate image targets for new views from the late camera ranges; `rounds`: their number so far."""
    targets = source.targets
    views = sample_views(run, setup, targets.views, 1.0)
    augmentation, generator = setup.config.optimizer.augmentation, run.generator
    darkest = run.representation.darkest_target
    backgrounds = light_backgrounds(targets.views, augmentation, darkest, generator).to(run.device)
    render = render_views(run, setup, run.representation.value(), views, sh_degree, backgrounds)
    batch = RenderedBatch(render.rgb, views, render, setup.renderer)
    pictures = source.pictures(batch, progress, generator)
    require_finite({"a picture of the model": pictures}, run.step + 1, setup.config.budget.steps)
    run.x0_preview = lambda: pictures[0]
    cameras = views.cameras
    return Replay(cameras.viewmats, cameras.Ks, backgrounds, (255 * pictures).round().byte(), rounds)


def sample_views(run: Run, setup: Setup, count: int, progress: float) -> Views:
    """Draw `count` views at `progress` (0 to 1), with the cameras on the device of the run."""
    size = setup.config.budget.resolution
    views = setup.cameras.sample(count, progress, size, size, run.generator)
    return replace(views, cameras=to_device(views.cameras, run.device))


def render_views(
    run: Run,
    setup: Setup,
    value: Any,
    views: Views,
    sh_degree: int,
    backgrounds: Tensor,
    generator: Generator | None = None,
) -> Render:
    """Render the value of the run's representation; see there for `generator`.

    Raises BadInput in the first step if no camera sees it.
    """
    size, thing = setup.config.budget.resolution, run.representation
    render = thing.render(value, views.cameras, size, size, sh_degree, backgrounds, generator)
    if run.step == 0:
        thing.require_seen(value, render, setup.cameras)
    return render


def update(run: Run, config: DreamConfig, gradients: Gradients, at: int) -> None:
    """Update the parameters with their gradients.

    at: schedule step. Raises NotFinite for gradients that are not finite, and what
    `Representation.after_update` raises.
    """
    params, steps = run.params, config.budget.steps
    found = {f"the gradient of {name}": param.grad for name, param in params.items()}
    require_finite(found, run.step + 1, steps)
    if config.optimizer.adam.clip_norm:
        torch.nn.utils.clip_grad_norm_(params.values(), config.optimizer.adam.clip_norm)
    run.begin_update()
    for optimizer in run.optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.representation.after_update(run.at, at, gradients.growth, run.generator, gradients.thresholds)
