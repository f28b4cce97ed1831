"""A splat as a representation: its parameters, learning rates, regularisers, growth and pruning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Adam

from ..cameras import CameraRanges, Cameras
from ..errors import NoGaussiansLeft
from ..rasterize import Render, Renderer, RenderInfo
from ..splats import SH_C0, Splats, activate, parameters
from . import losses
from .augment import jitter
from .config import DreamConfig
from .densify import Densifier
from .guards import require_seen
from .representation import PictureLoss, Representation
from .schedule import set_learning_rates
from .selection import join_splats

COLORS = ("sh0", "shN")
EPS = 1e-15  # of Adam
DARKEST = 0.5 / 255  # base colour


class Gaussians(Representation[Splats]):
    """The splat `start`, on the device of the run; `fixed` Gaussians are rendered but not optimised.

    Frozen parameters require no gradient and have no optimiser.
    """

    darkest_target = 0.7  # darker ones gain nothing (docs/lab-notes.md)

    def __init__(
        self, start: Splats, config: DreamConfig, renderer: Renderer, fixed: Splats | None = None
    ) -> None:
        self.start, self.config, self.renderer, self.fixed = start, config, renderer, fixed
        self.task = config.task
        self.params: dict[str, Parameter] = parameters(start)
        self.optimizers: dict[str, Adam] = {}
        for name, param in self.params.items():
            if self.task.freeze_color if name in COLORS else self.task.freeze_geometry:
                param.requires_grad_(False)
            else:
                betas = config.optimizer.adam.adam_betas
                self.optimizers[name] = Adam([param], lr=1.0, betas=betas, eps=EPS)
        self.densifier = Densifier(config.optimizer.densify, config.budget.steps)
        self._step = 0

    def value(self) -> Splats:
        """See Representation.

        With locked geometry, all but the colours are exactly those of the start; the activations would round.
        """
        splats = activate(self.params)
        return replace(self.start, sh=splats.sh) if self.task.freeze_geometry else splats

    def result(self) -> Splats:
        """See Representation."""
        return self.value().detach()

    def render(
        self,
        value: Splats,
        cameras: Cameras,
        width: int,
        height: int,
        sh_degree: int,
        background: Tensor,
        generator: Generator | None = None,
    ) -> Render:
        """See Representation. `generator` draws noise on the scales."""
        if generator is not None:
            value = jitter(value, self.config.optimizer.augmentation, generator)
        scene = join_splats(value, self.fixed)
        return self.renderer(scene, cameras, width, height, sh_degree, background)

    def require_seen(self, value: Splats, render: Render, cameras: CameraRanges) -> None:
        """See Representation."""
        require_seen(render, join_splats(value, self.fixed), cameras)

    def set_rates(self, progress: float, multiplier: float = 1.0) -> None:
        """See Representation."""
        set_learning_rates(self.optimizers, self.config.optimizer.rates, self.task, progress, multiplier)

    def regularisers(
        self, value: Splats, render: Render, cameras: Cameras, disparity: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """See Representation."""
        weights = self.config.optimizer.regularisers
        return {
            "tv": weights.tv_weight * (losses.tv(render.rgb) + losses.tv(disparity)),
            "scale": weights.scale_weight * losses.scale(value.scales),
        }

    def picture_terms(
        self, value: Splats, render: Render, cameras: Cameras, loss: PictureLoss
    ) -> dict[str, Tensor]:
        """See Representation."""
        found = {"scale": loss.scale_weight * losses.scale(value.scales)}
        if loss.aspect_weight:
            found["aspect"] = loss.aspect_weight * losses.aspect(value.scales)
        return found

    def named_values(self) -> dict[str, Tensor]:
        """See Representation."""
        return {f"{name} of the splat": value.detach() for name, value in vars(self.value()).items()}

    def before_backward(self, step: int, render: Render) -> None:
        """See Representation."""
        self._step = step
        if not self.task.freeze_geometry:
            info = info_of(render)
            self.densifier.before_backward(self.params, self.optimizers, step, info)
            info["means2d"].retain_grad()

    def growth(self, render: Render) -> RenderInfo:
        """See Representation: `Render.info` of the optimised Gaussians."""
        info = info_of(render)
        return info if self.fixed is None else of_first(len(self.params["means"]), info)

    def after_update(
        self,
        before: int,
        at: int,
        growth: RenderInfo,
        generator: Generator,
        fitting: tuple[float, float] | None,
    ) -> None:
        """See Representation: clamp colours, densify. Raises NoGaussiansLeft if all were pruned."""
        if not self.task.freeze_color:
            clamp_colors(self.params)
        if not self.task.freeze_geometry:
            self.densifier.after_backward(
                self.params, self.optimizers, before, at, growth, generator, fitting
            )
        if len(self.params["means"]) == 0:
            raise NoGaussiansLeft(self._step, self.config.budget.steps)

    def forget_gradients(self) -> None:
        """See Representation."""
        self.densifier.forget_gradients()

    def state(self) -> dict[str, Tensor]:
        """See Representation: the statistics of the densification."""
        found = self.densifier.state.items()
        return {f"densify.{name}": value for name, value in found if isinstance(value, Tensor)}

    def restore_state(self, state: dict[str, Tensor]) -> None:
        """See Representation."""
        self.densifier.state.update({name.removeprefix("densify."): value for name, value in state.items()})


def info_of(render: Render) -> RenderInfo:
    """What the densification reads of the render of a splat."""
    assert render.info is not None, "renders of splats have it"
    return render.info


def of_first(n: int, info: RenderInfo) -> RenderInfo:
    """`Render.info` restricted to the first `n` Gaussians, the ones that are not fixed."""
    means2d = info["means2d"].detach()[:, :n]
    if info["means2d"].grad is not None:
        means2d.grad = info["means2d"].grad[:, :n]
    return {**info, "means2d": means2d, "radii": info["radii"][:, :n]}


@torch.no_grad()
def clamp_colors(params: dict[str, Parameter]) -> None:
    """Clamp the base colours to what an image can show; a guidance at high cfg drives them beyond.

    They stay above 0: renderers cut colours off at 0, where they have no gradient and would stay black.
    """
    params["sh0"].clamp_((DARKEST - 0.5) / SH_C0, 0.5 / SH_C0)
