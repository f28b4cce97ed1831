"""A radiance field as a representation, the runs that optimise one, `distil_field` and `fit_field`, and the
fit of a splat to a field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim import Adam

from ..bake.views import around
from ..cameras import CameraRanges, Cameras
from ..errors import BadInput
from ..field.grid import Field, field_of, validate
from ..field.render import Rays, normals_at
from ..field.render import render as render_field
from ..field.surface import radius_of
from ..guidance.mixing import GuidanceSource, MixedSource
from ..rasterize import Render, Renderer, to_device
from ..settings import BoundedSettings, replace_settings, setting
from ..splats import Splats
from . import losses
from .checkpoint import Checkpoint
from .config import PRESETS as DREAMS
from .config import DreamConfig
from .gaussians import EPS
from .loop import Step, guide, optimise
from .picture_view import without_augmentation
from .representation import PictureLoss, Representation
from .state import Run
from .step import Setup
from .views import PRESETS as FITS
from .views import PosedImages, ViewFit, ViewSteps, fit_views, frame_of


@dataclass(frozen=True)
class FieldConfig(BoundedSettings):
    """How a field is optimised. Raises BadSetting for a value out of bounds.

    Losses of threestudio and ProlificDreamer (Wang et al. 2023, arXiv 2305.16213); orientation: Ref-NeRF
    (Verbin et al. 2022, equation 11).
    """

    lr_density: tuple[float, float] = setting(
        (0.15, 0.015),
        1e-9,
        10,
        "Learning rate of the density, in the field's raw units; falls from the first to the last value.",
        step=1e-3,
        parts=("lr_density", "lr_density_last"),
    )
    lr_color: tuple[float, float] = setting(
        (0.05, 0.01),
        1e-9,
        10,
        "Learning rate of the colours, in logits; falls from the first to the last value.",
        step=1e-3,
        parts=("lr_color", "lr_color_last"),
    )
    levels: int = setting(
        3,
        1,
        5,
        "Number of grids whose sum is the field, each with half the resolution of the one before. More are "
        "smoother and fill faster; 1 = a single grid.",
        step=1,
    )
    tv_weight: float = setting(
        1.0,
        0,
        1e6,
        "Weight of the total variation of images and disparity. No effect while image targets are fitted; "
        "0 = off.",
        step=0.1,
    )
    entropy_weight: float = setting(
        10.0,
        0,
        1e6,
        "Weight of the binary entropy of the opacity, before `late`. No effect while image targets are "
        "fitted; 0 = off.",
        step=1,
    )
    opaque_weight: float = setting(
        100.0,
        0,
        1e6,
        "As entropy_weight, from `late` on. Higher clears fog and hardens the surface; 0 = off.",
        step=1,
    )
    late: float = setting(
        0.5,
        0,
        1,
        "Share of the run from which opaque_weight replaces entropy_weight; with image targets after it by "
        "surface_share or sequence, of the part before them. 0 = from the start.",
    )
    sparsity_weight: float = setting(
        0.0,
        0,
        1e6,
        "Weight of the mean opacity. Higher gives smaller objects. No effect while image targets are fitted; "
        "0 = off.",
        step=1,
    )
    orient_weight: float = setting(
        0.0,
        0,
        1e6,
        "Weight of the penalty on surfaces that face away from the camera. No effect while image targets are "
        "fitted; 0 = off.",
        step=1,
    )


class Radiance(Representation[Field]):
    """The field `start`, on the device of the run, as a sum of grids of falling resolution.

    A coarse grid spreads a gradient over its cells, as the levels of a hash grid do (Mueller et al. 2022).
    """

    darkest_target = 0.4  # lighter ones leave white wisps (docs/lab-notes.md)

    def __init__(self, start: Field, config: DreamConfig, settings: FieldConfig) -> None:
        self.task, self.settings = config.task, settings
        self.extent, self.resolution = start.extent, start.resolution
        self.params: dict[str, Parameter] = {}
        self.optimizers: dict[str, Adam] = {}
        for kind, values, locked in (
            ("density", start.grid[:1], self.task.freeze_geometry),
            ("color", start.grid[1:], self.task.freeze_color),
        ):
            for level in range(settings.levels):
                side = max(math.ceil(start.resolution / 2**level), 2)
                first = values.detach().clone() if level == 0 else values.new_zeros(len(values), *(side,) * 3)
                name, param = f"{kind}{level}", Parameter(first, requires_grad=not locked)
                self.params[name] = param
                if not locked:
                    betas = config.optimizer.adam.adam_betas
                    self.optimizers[name] = Adam([param], lr=1.0, betas=betas, eps=EPS)

    def value(self) -> Field:
        """See Representation."""
        return field_of(self.params, self.extent)

    def result(self) -> Field:
        """See Representation."""
        with torch.no_grad():
            return self.value().detach()

    def render(
        self,
        value: Field,
        cameras: Cameras,
        width: int,
        height: int,
        sh_degree: int,
        background: Tensor,
        generator: Generator | None = None,
    ) -> Render:
        """See Representation. `generator` draws the places of the samples."""
        return render_field(value, cameras, width, height, background, generator)

    def require_seen(self, value: Field, render: Render, cameras: CameraRanges) -> None:
        """See Representation."""
        if not (render.alpha > 0).any():
            raise BadInput("field", "is empty where the cameras look; start from a larger or denser shape")

    def set_rates(self, progress: float, multiplier: float = 1.0) -> None:
        """See Representation: exponential decay."""
        for name, optimizer in self.optimizers.items():
            first, last = self.settings.lr_density if "density" in name else self.settings.lr_color
            rate = multiplier * self.task.strength * first * (last / first) ** progress
            optimizer.param_groups[0]["lr"] = rate

    def regularisers(
        self, value: Field, render: Render, cameras: Cameras, disparity: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """See Representation."""
        weights = self.settings
        opaque = weights.opaque_weight if progress >= weights.late else weights.entropy_weight
        return {
            "tv": weights.tv_weight * (losses.tv(render.rgb) + losses.tv(disparity)),
            "entropy": opaque * losses.entropy(render.alpha),
            **self._shape_terms(value, render, cameras),
        }

    def picture_terms(
        self, value: Field, render: Render, cameras: Cameras, loss: PictureLoss
    ) -> dict[str, Tensor]:
        """See Representation: none; the weights are those of a sum over latents."""
        return {}

    def _shape_terms(self, value: Field, render: Render, cameras: Cameras) -> dict[str, Tensor]:
        found, weights = {}, self.settings
        if weights.sparsity_weight:
            found["sparsity"] = weights.sparsity_weight * (render.alpha.square() + 0.01).sqrt().mean()
        if weights.orient_weight:
            found["orient"] = weights.orient_weight * orientation(value, render, cameras)
        return found

    def state(self) -> dict[str, Tensor]:
        """See Representation: the side of the cube, without which the parameters have no place."""
        return {"field.extent": torch.tensor(self.extent, dtype=torch.float64)}

    def named_values(self) -> dict[str, Tensor]:
        """See Representation."""
        return {f"{name} of the field": param.detach() for name, param in self.params.items()}


def orientation(field: Field, render: Render, cameras: Cameras) -> Tensor:
    """Mean over the pixels of alpha times the squared part of the normal that faces away from the camera.

    The normal is taken at the mean depth of a pixel. Differentiable in the density through the normal alone.
    """
    alpha = render.alpha.detach().reshape(-1, 1)
    depth = render.depth.detach().reshape(-1, 1) / alpha.clamp_min(1e-6)
    rays = Rays.of(cameras, render.rgb.shape[2], render.rgb.shape[1])
    seen = (alpha[:, 0] > 0.1).nonzero()[:, 0]
    directions = rays.directions[seen]
    points = (rays.origins[seen] + depth[seen] * directions) / (field.extent / 2)
    away = (normals_at(field, points) * torch.nn.functional.normalize(directions, dim=-1)).sum(-1)
    return (alpha[seen, 0] * away.clamp_min(0).square()).sum() / len(alpha)


def distil_field(
    field: Field,
    source: GuidanceSource | MixedSource,
    cameras: CameraRanges,
    config: DreamConfig,
    settings: FieldConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
) -> Iterator[Step[Field]]:
    """Optimise `field` as `distil` does a splat; see there.

    Of `config.optimizer` a field uses Adam's settings, the augmentation (without the noise on scales) and the
    pixel gradient. backend: gives the device, and renders guides of control images. Raises BadInput for a
    field that cannot be optimised, and what `distil` raises.
    """
    validate(field)
    renderer = Renderer(backend)
    config = without_augmentation(config, source)
    run = Run(Radiance(field.to(renderer.device), config, settings), seed)
    yield from guide(run, source, cameras, config, renderer, 0, resume)


def fit_field(
    field: Field,
    shots: PosedImages,
    fit: ViewFit,
    config: DreamConfig,
    settings: FieldConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
) -> Iterator[Step[Field]]:
    """Fit `field` to pictures with known cameras, as `fit_views` does a splat.

    Raises BadInput if no camera sees the field, and what `fit_views` raises in a run.
    """
    validate(field)
    renderer = Renderer(backend)
    device = renderer.device
    require_visible(field.to(device), shots)
    setup, steps = Setup(config, CameraRanges(), renderer), ViewSteps(fit, shots.to_buffer(fit, device))
    run = Run(Radiance(field.to(device), config, settings), seed)
    yield from optimise(run, setup, steps, 0, resume)


def require_visible(field: Field, shots: PosedImages) -> None:
    """Raise BadInput unless one of the cameras sees something of `field`."""
    height, width = shots.images.shape[1:3]
    cameras = to_device(shots.cameras, field.grid.device)
    for pose, K in zip(cameras.viewmats, cameras.Ks, strict=True):
        with torch.no_grad():
            if render_field(field, Cameras(pose[None], K[None]), width, height).alpha.any():
                return
    raise BadInput("cameras", "do not see the field: it is empty there, or lies elsewhere")


FIELD_VIEWS = 48  # pictures of a field to which its splat is fitted
PX_PER_VOXEL, MAX_PX = 2, 512  # their size


def pictures_of_field(field: Field, backend: str = "auto") -> PosedImages:
    """Pictures of `field` on white with its opacity as masks, from cameras all around it, on the CPU."""
    device = Renderer(backend).device
    field = field.to(device)
    px = min(PX_PER_VOXEL * field.resolution, MAX_PX)
    cameras = around(FIELD_VIEWS, px, radius_of(field))
    white, parts = torch.ones(3, device=device), []
    for camera in cameras:
        with torch.no_grad():
            parts.append(render_field(field, to_device(camera, device), px, px, white))
    shown = Cameras(*(torch.cat([getattr(one, name) for one in cameras]) for name in ("viewmats", "Ks")))
    images, masks = (torch.cat([getattr(one, name).cpu() for one in parts]) for name in ("rgb", "alpha"))
    return PosedImages(images.clamp(0, 1), shown, masks[..., 0].clamp(0, 1))


def fit_splats_to_field(
    splats: Splats, field: Field, steps: int, seed: int, backend: str = "auto"
) -> Iterator[Step[Splats]]:
    """Fit `splats` to the field's own renders by `fit_views`; results in the frame of `splats`.

    Raises what `fit_views` raises.
    """
    shots, fit = pictures_of_field(field, backend), ViewFit(held_out=0)
    frame = frame_of(splats, shots)
    config = replace_settings(FITS["cpu"], steps=steps)
    for step in fit_views(frame.enter(splats), shots.enter(frame), fit, config, seed, backend):
        yield replace(step, result=frame.leave(step.splats))


# Augmentation and Adam of the presets of splats; the field's learning rates are of its raw units. Gradients
# through the encoder would leave speckle in the voxels (docs/lab-notes.md).
PRESETS = {
    name: (replace_settings(DREAMS[name], image_residual=True), field)
    for name, field in {
        "official": FieldConfig(lr_density=(0.05, 0.01), lr_color=(0.02, 0.005)),
        "cpu": FieldConfig(),
    }.items()
}
