"""The fit of a splat to given pictures with known cameras: the loop of `distil` without a model.

The loss is that of 3D Gaussian Splatting (Kerbl et al. 2023, section 5.1): (1 - w) L1 + w (1 - SSIM), with
terms of opacity and depth where masks and depth images are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..cameras import CameraRanges, Cameras
from ..errors import BadInput
from ..frames import RADIUS, Frame
from ..rasterize import Render, Renderer, to_device
from ..settings import NO_GROWTH, check_bounds, choice, require, setting
from ..splats import Splats, validate
from . import losses
from .checkpoint import Checkpoint
from .config import AdamSettings, Budget, DreamConfig, Harmonics, LearningRates, OptimizerConfig, Task
from .densify import Densify
from .gaussians import Gaussians
from .loop import Step, optimise
from .replay import Replay
from .selection import join_splats
from .state import Run
from .step import Gradients, Setup, fit_pictures

MASK_USES = ("opacity", "cut out", "ignore")
LEAST_ANGLE_DEG = 2.0  # of the directions of at least two cameras, seen from the splat
DISTANCE = 5.0  # world units; the median distance of the cameras in the frame of the fit


@dataclass(frozen=True)
class ViewFit:
    """Settings of a fit to views. Raises BadSetting for a value out of bounds.

    background: sRGB in [0, 1], the colour of the pictures where there is no object.
    """

    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    held_out: int = setting(
        8,
        0,
        1000,
        "Every n-th picture is not fitted but used to score the result (PSNR, SSIM). 0 = fit all.",
        step=1,
        advanced=False,
    )
    ssim_weight: float = setting(
        0.2,
        0,
        1,
        "Share of the structural difference (1 - SSIM) in the loss; the rest is the absolute error. 0 = off.",
    )
    mask_use: str = choice(
        MASK_USES,
        "What a mask (1 = object) does. opacity: the splat's opacity is fitted to it, for pictures on "
        "`background`; cut out: also replaces the pictures' background; ignore: pixels outside are not "
        "compared.",
        advanced=False,
    )
    mask_weight: float = setting(
        0.5, 0, 1000, "Weight of the absolute error of the opacity, with a mask. 0 = off."
    )
    depth_weight: float = setting(
        0.1,
        0,
        1000,
        "Weight of the difference to the depth images, with depth: 1 - the correlation of both. 0 = off.",
    )
    scale_weight: float = setting(
        0.0, 0, 1e6, "Weight of the mean Gaussian scale. Higher makes the Gaussians smaller; 0 = off."
    )
    entropy_weight: float = setting(
        0.0, 0, 1000, "Weight of the binary entropy of the opacity. Higher clears fog; 0 = off.", step=0.001
    )
    aspect_weight: float = setting(
        0.0,
        0,
        1000,
        "Weight of the penalty on needle-shaped Gaussians, whose longest axis is over twice the second one. "
        "0 = off.",
        step=0.001,
    )
    grow_grad2d: float = setting(
        2e-4,
        0,
        NO_GROWTH,
        "Mean image-plane gradient, in half image widths, above which a Gaussian is split or cloned. Lower "
        f"is sharper with more Gaussians; {NO_GROWTH:g} = no growth.",
        step=1e-5,
    )
    prune_opacity: float = setting(0.005, 0, 1, "Opacity below which a Gaussian is removed.", step=0.005)

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.held_out != 1, "held_out", 1, "0 or at least 2, otherwise no picture is fitted")

    def difference(self, image: Tensor, picture: Tensor) -> Tensor:
        """The difference (scalar) between views and pictures, both (B, H, W, 3)."""
        loss = (1 - self.ssim_weight) * (image - picture).abs().mean()
        if self.ssim_weight:
            loss = loss + self.ssim_weight * (1 - losses.ssim(image, picture).mean())
        return loss

    def terms(self, drawn: Replay, render: Render) -> dict[str, Tensor]:
        """The losses of opacity and depth of `drawn` that its masks and disparities allow."""
        found = {}
        if drawn.masks is not None and not drawn.ignore and self.mask_weight:
            found["mask"] = self.mask_weight * (render.alpha - drawn.masks / 255).abs().mean()
        if drawn.disparities is not None and self.depth_weight:
            valid = render.alpha.detach() > 0.5
            if drawn.masks is not None:
                valid = valid & (drawn.masks >= 128)
            disparity = render.alpha / render.depth.clamp_min(1e-6)
            found["depth"] = self.depth_weight * losses.decorrelation(disparity, drawn.disparities, valid)
        return found


PRESETS = {
    # As in 3DGS, whose distances are in units of 1.1 times the cameras' radius; without its opacity resets,
    # and with LucidDreamer's rates of the colours.
    "official": DreamConfig(
        Budget(steps=30_000, views=1),
        Task(),
        OptimizerConfig(
            LearningRates(lr_means=(8.8e-4, 8.8e-6), lr_scales=(5e-3, 5e-3), lr_quats=(1e-3, 1e-3)),
            harmonics=Harmonics(sh_degree=3, sh_every=1 / 30),
            densify=Densify(
                start=1 / 60, stop=0.5, every=1 / 300, grow_scale3d=0.055, prune_scale3d=0.55, reset_every=0.0
            ),
        ),
    ),
    # Minutes on a CPU for an object of at most 30,000 Gaussians.
    "cpu": DreamConfig(
        Budget(steps=800, views=2),
        Task(),
        OptimizerConfig(
            LearningRates(
                lr_means=(4e-3, 4e-4),
                lr_scales=(2e-2, 2e-3),
                lr_quats=(1e-2, 1e-3),
                lr_opacities=(1e-1, 1e-2),
                lr_sh=(3e-2, 3e-3),
            ),
            adam=AdamSettings(adam_betas=(0.9, 0.99)),
            densify=Densify(
                max_splats=30_000,
                start=0.15,
                stop=0.6,
                every=0.05,
                grow_scale3d=0.03,
                prune_scale3d=0.0,
                reset_every=0.0,
            ),
        ),
    ),
}


@dataclass(frozen=True)
class PosedImages:
    """V pictures of one scene with known cameras.

    images (V, H, W, 3) sRGB in [0, 1]; masks (V, H, W) in [0, 1], 1 = object; disparities (V, H, W), larger =
    nearer, of any scale; None = there are none. Raises BadInput, naming `image`, `mask`, `depth` or
    `cameras`, for values that do not belong together or are not finite.
    """

    images: Tensor = field(repr=False)
    cameras: Cameras
    masks: Tensor | None = field(default=None, repr=False)
    disparities: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        views, height, width = self.images.shape[:3]
        if min(height, width) < losses.WINDOW:
            problem = f"has pictures of {width} x {height} px; each side must have at least {losses.WINDOW}"
            raise BadInput("image", problem)
        if len(self.cameras) != views:
            raise BadInput("cameras", f"are {len(self.cameras)} for {views} pictures; give one per picture")
        given = {"mask": self.masks, "depth": self.disparities}
        for name, value in given.items():
            if value is not None and value.shape != (views, height, width):
                have, want = size_of(value), size_of(self.images[..., 0])
                raise BadInput(name, f"has {have}; give as many and as large ones as image has: {want}")
        given |= {"image": self.images, "cameras": self.cameras.viewmats, "intrinsics": self.cameras.Ks}
        for name, value in given.items():
            if value is not None and not value.isfinite().all():
                raise BadInput(name, "has values that are not finite; check what made it")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor) -> PosedImages:
        """The pictures `rows` (n,)."""
        rest = {name: x if x is None else x[rows] for name, x in (self._maps().items())}
        return replace(self, images=self.images[rows], cameras=self.cameras.map(lambda x: x[rows]), **rest)

    def divide(self, every: int) -> tuple[PosedImages, PosedImages | None]:
        """(pictures to fit, every `every`-th one, which is held out). (all, None) where that leaves none."""
        rows = torch.arange(len(self))
        held = (rows + 1) % every == 0 if every else torch.zeros(len(self), dtype=torch.bool)
        if not held.any() or held.all():
            return self, None
        return self.select(rows[~held]), self.select(rows[held])

    def enter(self, frame: Frame | None) -> PosedImages:
        """The same pictures with the cameras in the frame of the fit."""
        return replace(self, cameras=frame.enter_cameras(self.cameras)) if frame else self

    def prepare(self, fit: ViewFit) -> PosedImages:
        """The pictures as they are compared with renders: on `fit.background` where masks cut them out."""
        if self.masks is None or fit.mask_use != "cut out":
            return self
        opaque = self.masks[..., None]
        return replace(self, images=opaque * self.images + (1 - opaque) * torch.tensor(fit.background))

    def to_buffer(self, fit: ViewFit, device: torch.device) -> Replay:
        """All pictures in the buffer from which the steps of a fit draw, on `device`."""
        cameras, ready = to_device(self.cameras, device), self.prepare(fit)
        masks, disparities = self.masks, self.disparities
        return Replay(
            cameras.viewmats,
            cameras.Ks,
            torch.tensor(fit.background, device=device).expand(len(self), 3),
            to_bytes(ready.images).to(device),
            masks=None if masks is None else to_bytes(masks)[..., None].to(device),
            disparities=None if disparities is None else disparities[..., None].to(device),
            ignore=fit.mask_use == "ignore",
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, without absent ones."""
        found: Mapping[str, Tensor | None] = {"images": self.images, **vars(self.cameras), **self._maps()}
        return {name: x for name, x in found.items() if x is not None}

    def _maps(self) -> dict[str, Tensor | None]:
        return {"masks": self.masks, "disparities": self.disparities}


def to_bytes(x: Tensor) -> Tensor:
    """Values in [0, 1] -> uint8."""
    return (255 * x.clamp(0, 1)).round().byte()


def size_of(maps: Tensor) -> str:
    """Number and size of maps (V, H, W) in words."""
    views, height, width = maps.shape
    return f"{views} pictures of {width} x {height} px"


@dataclass(frozen=True)
class ViewSteps:
    """Steps of a fit to the pictures of `buffer`; see `loop.Steps`."""

    fit: ViewFit
    buffer: Replay
    evaluations: int = 0  # of a model; there is none

    def find_gradients(self, run: Run, setup: Setup, progress: float, sh_degree: int) -> Gradients:
        """See Steps."""
        run.representation.set_rates(progress)
        drawn = self.buffer.draw(setup.config.budget.views, run.generator)
        terms = lambda render: self.fit.terms(drawn, render)
        return fit_pictures(run, setup, drawn, self.fit, sh_degree, terms)

    def save_memory(self, error: RuntimeError) -> None:
        """Raise `error`: the renderer has already divided the views."""
        raise error


def fit_views(
    splats: Splats,
    shots: PosedImages,
    fit: ViewFit,
    config: DreamConfig,
    seed: int,
    backend: str = "auto",
    resume: Checkpoint | None = None,
    fixed: Splats | None = None,
) -> Iterator[Step[Splats]]:
    """Fit `splats` to all pictures of `shots`; yields after every step. For the others see `distil`.

    `config.budget.resolution` has no effect: the views have the size of the pictures. Raises what `distil`
    raises, and BadInput if the cameras cannot show the shape of the splats (`require_views`).
    """
    validate(splats)
    require_views(join_splats(splats, fixed), shots)
    renderer = Renderer(backend)
    device, degree = renderer.device, config.optimizer.harmonics.sh_degree
    start = splats.with_sh_degree(degree).map(lambda x: x.to(device))
    fixed = fixed and fixed.map(lambda x: x.to(device))
    setup, steps = Setup(config, CameraRanges(), renderer), ViewSteps(fit, shots.to_buffer(fit, device))
    run = Run(Gaussians(start, config, renderer, fixed), seed)
    yield from optimise(run, setup, steps, splats.sh_degree, resume)


def require_views(splats: Splats, shots: PosedImages) -> None:
    """Raise BadInput if no camera sees the centre of a Gaussian, or all look from the same direction."""
    seen = in_view(splats.means, shots)
    where = ", ".join(f"{x:.3g}" for x in splats.means.median(dim=0).values.tolist())
    if not seen.any():
        position = ", ".join(f"{x:.3g}" for x in shots.cameras.positions().median(dim=0).values.tolist())
        raise BadInput(
            "cameras",
            f"do not see the splat: it lies about ({where}), they stand about ({position}); start from a "
            f"splat in the cameras' world",
        )
    rays = torch.nn.functional.normalize(
        shots.cameras.positions().double() - splats.means[seen].double().median(dim=0).values, dim=-1
    )
    angle = math.degrees(float((rays @ rays.T).clamp(-1, 1).min().acos()))
    if angle < LEAST_ANGLE_DEG:
        raise BadInput(
            "cameras",
            f"all look at the splat from the same direction (within {angle:.2g} degrees), which does not "
            f"show its shape; give pictures from at least {LEAST_ANGLE_DEG:g} degrees apart",
        )


def in_view(means: Tensor, shots: PosedImages) -> Tensor:
    """Which of means (N, 3) lie in front of a camera and within its picture: (N,) bool."""
    height, width = shots.images.shape[1:3]
    seen = torch.zeros(len(means), dtype=torch.bool)
    for viewmat, K in zip(shots.cameras.viewmats, shots.cameras.Ks, strict=True):
        at = means @ viewmat[:3, :3].T + viewmat[:3, 3]
        depth = at[:, 2]
        x, y = ((at @ K.T)[:, :2] / depth[:, None].clamp_min(1e-9)).unbind(-1)
        seen |= (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return seen


def frame_of(splats: Splats, shots: PosedImages) -> Frame:
    """The frame of a fit: the median Gaussian in view at the origin, DISTANCE from the cameras.

    Learning rates and thresholds of growth are lengths in this frame, so that a scene of any size is fitted
    alike. Raises BadInput as `require_views`.
    """
    require_views(splats, shots)
    centre = splats.means[in_view(splats.means, shots)].double().median(dim=0).values
    distance = (shots.cameras.positions().double() - centre).norm(dim=-1).median()
    return Frame(tuple(centre.tolist()), max(float(distance), 1e-12) / DISTANCE * RADIUS)


@dataclass(frozen=True)
class ViewScore:
    """How well renders agree with pictures, as means over the views: psnr in dB, ssim (1 = equal)."""

    psnr: float
    ssim: float
    views: int


@torch.no_grad()
def score_views(splats: Splats, shots: PosedImages, fit: ViewFit, backend: str = "auto") -> ViewScore:
    """Compare renders of `splats` with `shots`, one view at a time. Ignored pixels do not count."""
    renderer = Renderer(backend)
    device = renderer.device
    splats, buffer = splats.map(lambda x: x.to(device)), shots.to_buffer(fit, device)
    height, width = shots.images.shape[1:3]
    found = []
    for row in torch.arange(len(shots)).split(1):
        one = buffer.select(row.to(device))
        picture, cameras = one.pictures / 255, Cameras(one.viewmats, one.Ks)
        image = renderer(splats, cameras, width, height, background=one.backgrounds).rgb.clamp(0, 1)
        compared = image.new_ones(1, height, width)
        if one.masks is not None and one.ignore:
            compared = (one.masks[..., 0] >= 128).to(image)
        image, picture = (compared[..., None] * x for x in (image, picture))
        similarity = losses.ssim_map(image, picture)
        error = (image - picture).square().mean() / compared.mean().clamp_min(1e-6)
        edge = losses.WINDOW // 2
        inside = compared[:, edge : height - edge, edge : width - edge]
        ssim = (similarity * inside).sum() / inside.sum() if inside.any() else 1.0
        found.append((-10 * math.log10(max(float(error), 1e-10)), float(ssim)))
    psnr, ssim = (sum(values) / len(found) for values in zip(*found, strict=True))
    return ViewScore(psnr, ssim, len(found))
