"""Settings that know their bounds, and the one form of a bad-value error."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """What a setting may be and what it does: the checks, the nodes' widgets and their tooltips all read this."""

    low: float
    high: float
    help: str
    step: float
    rare: bool
    options: tuple[str, ...] = ()  # of a choice
    parts: tuple[str, ...] = ()  # names of the numbers of a tuple


def setting(
    default: Any, low: float, high: float, help: str, *, step: float = 0.01, rare: bool = True, parts: tuple[str, ...] = ()
) -> Any:  # fmt: skip
    """A dataclass field for a number within `low` to `high`, or a tuple of them with names; `rare` ones are advanced."""
    return field(default=default, metadata={"bounds": Bounds(low, high, help, step, rare, parts=parts)})


def choice(options: tuple[str, ...], help: str, *, rare: bool = True) -> Any:
    """A dataclass field for one of `options`, by default the first."""
    return field(default=options[0], metadata={"bounds": Bounds(0, 0, help, 1, rare, options)})


def bounds_of(config: Any) -> dict[str, Bounds]:
    """The settings of a dataclass (or an instance), by name."""
    return {f.name: f.metadata["bounds"] for f in fields(config) if "bounds" in f.metadata}


def check_bounds(config: Any) -> None:
    """Raise ValueError for the first setting out of its bounds; NaN is out of all bounds."""
    for name, b in bounds_of(config).items():
        value = getattr(config, name)
        if b.options:
            require(value in b.options, name, value, " or ".join(b.options))
            continue
        for part, number in zip(b.parts, value) if b.parts else [(name, value)]:
            require(b.low <= number <= b.high, part, number, f"{b.low:g} to {b.high:g}")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError "name is value; it must be allowed" unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value}; it must be {allowed}")
