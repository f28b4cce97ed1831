"""Node inputs from the core's settings, and its errors under the node's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.checks import Bounds, bounds_of
from ..lucid_core.rasterize import BACKENDS

CATEGORY = "3d/splat/lucid"


def inputs_of(config: Any, *names: str, optional: bool = False, prefix: str = "") -> list[IO.Input]:
    """Widgets for the settings of a dataclass (`names`, or all): bounds and tooltips are its own. Tuples have several.

    Their defaults are the dataclass's, or the values of `config` where it is an instance of one. `optional` ones may be
    missing in a graph.
    """
    bounds = bounds_of(config)
    defaults = {f.name: f.default if isinstance(config, type) else getattr(config, f.name) for f in fields(config)}
    return [
        _widget(prefix + part, default, bounds[name], optional)
        for name in names or bounds
        for part, default in (zip(bounds[name].parts, defaults[name]) if bounds[name].parts else [(name, defaults[name])])
    ]


def settings_of(config: Any, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What the widgets of `inputs_of` hold, as the dataclass has it."""
    of = lambda name, b: tuple(values[prefix + part] for part in b.parts) if b.parts else values[prefix + name]
    return {name: of(name, b) for name, b in bounds_of(config).items() if prefix + (b.parts or (name,))[0] in values}


def _widget(name: str, default: Any, b: Bounds, optional: bool) -> IO.Input:
    if b.options:
        return IO.Combo.Input(
            name, options=list(b.options), default=default, optional=optional, advanced=b.rare, tooltip=b.help
        )
    if isinstance(default, bool):
        return IO.Boolean.Input(name, default=default, optional=optional, advanced=b.rare, tooltip=b.help)
    kind = IO.Int if isinstance(default, int) and isinstance(b.step, int) else IO.Float
    return kind.Input(
        name, default=default, min=b.low, max=b.high, step=b.step, optional=optional, advanced=b.rare, tooltip=b.help
    )


def chosen_of(combo: str, options: Iterable[str], chosen: dict[str, Any] | None) -> dict[str, Any]:
    """A dynamic combo's choice, under its own name, and the values of its widgets. Raises ValueError for none that is known."""
    if not chosen:  # the host drops what it does not know
        raise ValueError(f"{combo} is not known; it must be {', '.join(options)}")
    return {name: value[0] if isinstance(value, tuple) else value for name, value in chosen.items()}  # as lazy ones come


def seed_input() -> IO.Int.Input:
    return IO.Int.Input(
        "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
        tooltip="The same seed and settings give the same splat on the same machine.",
    )  # fmt: skip


def backend_input() -> IO.Combo.Input:
    return IO.Combo.Input(
        "backend", options=[name for name in BACKENDS if name != "reference"], default="auto", optional=True, advanced=True,
        tooltip="What renders the splat. auto = the fastest that works here: gsplat (CUDA with a compiler), gswarp (CUDA), "
        "numba (every CPU). The log says which and why.",
    )  # fmt: skip


@contextmanager
def errors_of(node: type[IO.ComfyNode]) -> Iterator[None]:
    """Put the node's name before the core's messages about bad values."""
    try:
        yield
    except ValueError as error:
        name = node.define_schema().display_name  # GET_SCHEMA would write to the class, which the host locks
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def fold_seed(seed: int) -> int:
    """The host's seeds have 64 bits, torch's generators take 63."""
    return seed % 2**63


def hex_color(value: Any) -> tuple[float, float, float]:
    """ "#rrggbb" -> sRGB in [0, 1]."""
    digits = str(value).lstrip("#")
    try:
        if len(digits) != 6:
            raise ValueError
        return tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    except ValueError:
        raise ValueError(f"color is {value!r}; it must be of the form #rrggbb") from None
