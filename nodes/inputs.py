"""Node inputs made from the settings of lucid_core, and error messages prefixed with the node name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.errors import BadSetting, LucidError
from ..lucid_core.optimize.config import DreamConfig, OptimizerConfig
from ..lucid_core.rasterize import BACKENDS
from ..lucid_core.settings import Bounds, Config, bounds_of, require

CATEGORY = "3d/splat/lucid"
UNFINISHED = "lucid/unfinished"  # prefix of what a stopped run saves, under the output folder


def inputs_of(config: Any, *names: str, optional: bool = False, prefix: str = "") -> list[IO.Input]:
    """Widgets for the settings of a dataclass, with its bounds and tooltips; a tuple gets one per number.

    config: the dataclass, whose defaults are used, or an instance, whose values become the defaults. names:
    the settings to include; none = all. optional: the widgets may be absent from a workflow. prefix: put
    before each widget name.
    """
    bounds = bounds_of(config)
    defaults = {
        f.name: f.default if isinstance(config, type) else getattr(config, f.name) for f in fields(config)
    }
    return [
        _widget(prefix + part, default, bounds[name], optional)
        for name in names or bounds
        for part, default in (
            zip(bounds[name].parts, defaults[name]) if bounds[name].parts else [(name, defaults[name])]
        )
    ]


def replace_from_widgets(config: Config, values: dict[str, Any], prefix: str = "") -> Config:
    """The dataclass with the values of the widgets that `inputs_of` made; absent ones stay as they are.

    Raises BadSetting, with the widget's name, if one is invalid.
    """
    changed = {}
    for name, bounds in bounds_of(config).items():
        widgets = [prefix + part for part in bounds.parts or (name,)]
        if any(widget in values for widget in widgets):
            own = getattr(config, name) if bounds.parts else (getattr(config, name),)
            given = tuple(values.get(widget, value) for widget, value in zip(widgets, own, strict=True))
            changed[name] = given if bounds.parts else given[0]
    try:
        return replace(config, **changed)
    except BadSetting as error:
        raise BadSetting(prefix + error.name, error.value, error.allowed) from error


def _widget(name: str, default: Any, b: Bounds, optional: bool) -> IO.Input:
    if b.options:
        return IO.Combo.Input(
            name,
            options=list(b.options),
            default=default,
            optional=optional,
            advanced=b.advanced,
            tooltip=b.help,
        )
    if isinstance(default, bool):
        return IO.Boolean.Input(name, default=default, optional=optional, advanced=b.advanced, tooltip=b.help)
    kind = IO.Int if isinstance(default, int) and isinstance(b.step, int) else IO.Float
    return kind.Input(
        name,
        default=default,
        min=b.low,
        max=b.high,
        step=b.step,
        optional=optional,
        advanced=b.advanced,
        tooltip=b.help,
    )


def chosen_of(combo: str, options: Iterable[str], chosen: dict[str, Any] | None) -> dict[str, Any]:
    """The value of a dynamic combo: its choice, under the key `combo`, and the values of its widgets.

    Raises BadSetting if the choice is unknown.
    """
    # ComfyUI drops unknown options
    require(bool(chosen), combo, "not known", f"one of {', '.join(options)}")
    # ComfyUI passes values wrapped in tuples during lazy evaluation
    return {name: value[0] if isinstance(value, tuple) else value for name, value in chosen.items()}


def config_of(
    presets: dict[str, DreamConfig],
    preset: dict[str, Any] | None,
    optimizer: OptimizerConfig | None,
    widgets: dict[str, Any],
) -> DreamConfig:
    """The settings of a run: those of the preset, `optimizer` if given, and the values of the widgets.

    preset: value of the dynamic combo (its choice and widgets). widgets: of the node; names that are not
    settings are ignored. Raises BadSetting if a value is invalid.
    """
    preset = chosen_of("preset", presets, preset)
    base = presets[preset["preset"]]
    budget = replace_from_widgets(base.budget, {**preset, **widgets})
    return DreamConfig(budget, replace_from_widgets(base.task, widgets), optimizer or base.optimizer)


def seed_input(result: str = "splat") -> IO.Int.Input:
    return IO.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**64 - 1,
        control_after_generate=True,
        tooltip=f"Random seed. The same seed and settings give the same {result} on the same machine.",
    )


RASTERIZER = (
    "Rasterizer. auto = the fastest available: gsplat (CUDA with a compiler), gswarp (CUDA) or numba (any "
    "CPU); the log says which one and why."
)
DEVICE = "Device. auto = the GPU if gsplat or gswarp works there, else the CPU; numba = the CPU."


def backend_input(tooltip: str = RASTERIZER) -> IO.Combo.Input:
    return IO.Combo.Input(
        "backend",
        options=[name for name in BACKENDS if name != "reference"],
        default="auto",
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


@contextmanager
def errors_of(node: type[IO.ComfyNode]) -> Iterator[None]:
    """Prefix the message of any LucidError or ValueError with the display name of the node.

    A LucidError keeps its class and its fields.
    """
    name_of = lambda: node.define_schema().display_name  # GET_SCHEMA writes to the class, which ComfyUI locks
    try:
        yield
    except LucidError as error:
        error.node = error.node or name_of()
        raise
    except ValueError as error:
        raise ValueError(f"{name_of()}: {error}") from error


def fold_seed(seed: int) -> int:
    """Reduce a 64-bit ComfyUI seed to the 63 bits that torch generators accept."""
    return seed % 2**63


def hex_color(value: Any) -> tuple[float, float, float]:
    """Convert "#rrggbb" to sRGB values in [0, 1]. Raises BadSetting for any other format."""
    digits = str(value).lstrip("#")
    try:
        if len(digits) != 6:
            raise ValueError
        return tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    except ValueError:
        raise BadSetting("color", repr(value), "of the form #rrggbb") from None


def number_list(name: str, text: str) -> list[float]:
    """Numbers separated by commas or spaces. Raises BadSetting, naming `name`, for anything else."""
    allowed = "finite numbers, separated by commas or spaces"
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise BadSetting(name, repr(text), allowed) from None
    require(bool(numbers) and all(map(math.isfinite, numbers)), name, repr(text), allowed)
    return numbers
