"""Settings of a run except guidance and cameras: budget, task, and what Lucid Optimizer sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..guidance.base import PixelGradient
from ..settings import NO_GROWTH, BoundedSettings, check_bounds, choice, require, setting
from .densify import Densify

BACKGROUNDS = ("any", "grey")


def rates(of: str, default: tuple[float, float], what: str) -> Any:
    """A setting with two values: the initial and the final learning rate."""
    help = f"Learning rate of {what} at the start and the end. Higher changes faster; too high gives noise."
    return setting(default, 1e-9, 10, help, step=1e-7, advanced=False, parts=(f"lr_{of}", f"lr_{of}_last"))


@dataclass(frozen=True)
class Budget:
    """Length of a run and size of its batches. Raises BadSetting for a value out of bounds."""

    steps: int = setting(
        5000,
        1,
        1_000_000,
        "Number of optimisation steps. More give finer results and take longer; all schedules scale with it.",
        step=1,
        advanced=False,
    )
    views: int = setting(
        4,
        1,
        64,
        "Views per step (batch size). More views give smoother gradients and slower steps.",
        step=1,
        advanced=False,
    )
    resolution: int = setting(
        512,
        64,
        2048,
        "Width and height of the training views in pixels. Use the native resolution of the model.",
        step=8,
        advanced=False,
    )
    max_minutes: float = setting(
        0.0,
        0,
        100_000,
        "Time limit in minutes; 0 = no limit. Schedules are shortened to fit, so results depend on the "
        "machine's speed, not only on the seed.",
        step=0.5,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.resolution % 8 == 0, "resolution", self.resolution, "a multiple of 8")


@dataclass(frozen=True)
class Task:
    """What may change, and how far. Raises BadSetting for a value out of bounds or if nothing may change."""

    strength: float = setting(
        1.0,
        0.01,
        1,
        "How far the splat or field may change, like denoise: scales the noise levels (for ISM, their range "
        "above the minimum) and all learning rates. 1 = full optimisation.",
        advanced=False,
    )
    freeze_geometry: bool = setting(
        False,
        0,
        1,
        "Lock geometry (splat: positions, scales, rotations, opacities and number of Gaussians; field: "
        "density); optimise colours only.",
    )
    freeze_color: bool = setting(False, 0, 1, "Lock all colours; optimise geometry only.")

    def __post_init__(self) -> None:
        check_bounds(self)
        require(
            not (self.freeze_geometry and self.freeze_color),
            "freeze_color",
            self.freeze_color,
            "off where freeze_geometry is on, otherwise nothing is optimised",
        )


@dataclass(frozen=True)
class LearningRates(BoundedSettings):
    """Learning rates, (initial, final). Raises BadSetting for a value out of bounds."""

    lr_means: tuple[float, float] = rates("means", (5.6e-4, 5.6e-6), "positions, in world units")
    lr_scales: tuple[float, float] = rates("scales", (5e-3, 1e-3), "log scales")
    lr_quats: tuple[float, float] = rates("quats", (1e-3, 2e-4), "rotations (quaternions)")
    lr_opacities: tuple[float, float] = rates("opacities", (5e-2, 5e-2), "logit opacities")
    lr_sh: tuple[float, float] = rates(
        "sh", (5e-3, 3e-3), "colours (SH band 0); higher SH bands use 1/20 of the initial rate"
    )


@dataclass(frozen=True)
class Regularisers(BoundedSettings):
    """Weights of the losses beside the guidance. Raises BadSetting for a value out of bounds."""

    scale_weight: float = setting(
        1.0,
        0,
        1e6,
        "Weight of the scale loss, which keeps Gaussians small; 0 = off. Use more for few Gaussians.",
        step=0.1,
        advanced=False,
    )
    tv_weight: float = setting(
        1.0,
        0,
        1e6,
        "Weight of the total variation loss on images and disparity; 0 = off. More is smoother.",
        step=0.1,
        advanced=False,
    )


@dataclass(frozen=True)
class Harmonics(BoundedSettings):
    """Degree of the spherical harmonics over a run. Raises BadSetting for a value out of bounds."""

    sh_degree: int = setting(
        0,
        0,
        3,
        "Final spherical harmonics degree, for view-dependent colour such as gloss; 0 = none. A start "
        "splat with a higher degree keeps it.",
        step=1,
        advanced=False,
    )
    sh_every: float = setting(
        0.1, 0.001, 1, "Fraction of the run between increases of the SH degree by one.", step=0.001
    )
    # One draw per step, unlike the official code (one per view), for the same reason as `scale_jitter`.
    sh_plain_share: float = setting(
        0.1,
        0,
        1,
        "Fraction of steps rendered with SH degree 0, so that the base colours alone stay correct; 0 = none.",
    )

    def degree(self, progress: float, first: int) -> int:
        """The degree at `progress` (0 to 1) of a run whose start splat has the degree `first`."""
        return min(first + int(progress / self.sh_every), max(first, self.sh_degree))


@dataclass(frozen=True)
class AdamSettings(BoundedSettings):
    """Settings of the parameter update. Raises BadSetting for a value out of bounds."""

    clip_norm: float = setting(
        0.0,
        0,
        1e9,
        "Maximum norm of the gradient over all parameters (gradient clipping); 0 = off.",
        step=0.1,
    )
    adam_betas: tuple[float, float] = setting(
        (0.9, 0.999),
        0,
        0.999999,
        "Decay rates of Adam's first (beta1) and second (beta2) moment. For short runs use beta2 = 0.99.",
        step=0.0001,
        parts=("adam_beta1", "adam_beta2"),
    )


@dataclass(frozen=True)
class Augmentation(BoundedSettings):
    """Random changes to the training views. Raises BadSetting for a value out of bounds."""

    background_share: float = setting(
        0.66, 0, 1, "Fraction of views with a background that is not white; 0 = always white."
    )
    background_colors: str = choice(
        BACKGROUNDS,
        "Colours of the backgrounds that are not white. any: half random colours, half black; grey: random "
        "greys, for models trained on plain backgrounds.",
    )
    flip_share: float = setting(0.5, 0, 1, "Fraction of steps with horizontally mirrored views; 0 = none.")
    disparity_share: float = setting(
        0.2,
        0,
        1,
        "Fraction of steps in which the guidance gets the disparity image in place of the colours; 0 = none.",
    )
    # One draw per step, unlike the official code (one per view): all views are rendered in one call. The
    # noise that a Gaussian gets over many steps has the same distribution.
    scale_jitter: float = setting(
        0.112, 0, 10, "Relative random noise on the scales in each step; 0 = none.", step=0.001
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser. Defaults: the official LucidDreamer settings."""

    rates: LearningRates = field(default_factory=LearningRates)
    regularisers: Regularisers = field(default_factory=Regularisers)
    harmonics: Harmonics = field(default_factory=Harmonics)
    adam: AdamSettings = field(default_factory=AdamSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    pixels: PixelGradient = field(default_factory=PixelGradient)
    densify: Densify = field(default_factory=Densify)


@dataclass(frozen=True)
class DreamConfig:
    """All settings of a run except guidance and cameras. Defaults: the official LucidDreamer settings.

    `settings.replace_settings` changes settings by name. Raises BadSetting if the resolution is not a
    multiple of `pixel_average`.
    """

    budget: Budget = field(default_factory=Budget)
    task: Task = field(default_factory=Task)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        size, resolution = self.optimizer.pixels.pixel_average, self.budget.resolution
        require(resolution % size == 0, "pixel_average", size, f"a divisor of the resolution ({resolution})")


PRESETS = {
    "official": DreamConfig(),
    # Minutes on a CPU: 1/20 of the steps, so higher learning rates and a smaller Adam beta2. A few thousand
    # Gaussians at 128 px need a large scale loss. Small models have not seen mirrored views, disparity or
    # coloured backgrounds. Growth is off: Gaussians split late remain speckle (red mushroom: 16.7 dB with
    # growth, 16.9 without). Pruning by scale is off: with few Gaussians some have to be large.
    "cpu": DreamConfig(
        Budget(steps=260, views=4, resolution=128),
        Task(),
        OptimizerConfig(
            LearningRates(
                lr_means=(2.5e-3, 3e-4),
                lr_scales=(1e-2, 3e-3),
                lr_quats=(1e-2, 2e-3),
                lr_opacities=(1e-1, 5e-2),
                lr_sh=(1e-2, 4e-3),
            ),
            Regularisers(scale_weight=100.0),
            adam=AdamSettings(adam_betas=(0.9, 0.99)),
            augmentation=Augmentation(background_colors="grey", disparity_share=0.0, flip_share=0.0),
            densify=Densify(
                start=0.3, stop=0.9, every=0.1, grow_grad2d=NO_GROWTH, prune_scale3d=0.0, reset_every=0.0
            ),
        ),
    ),
}
