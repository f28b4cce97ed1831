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


def setting(default: float, low: float, high: float, help: str, *, step: float = 0.01, rare: bool = True) -> Any:
    """A dataclass field for a number within `low` to `high`; `rare` ones are shown as advanced."""
    return field(default=default, metadata={"bounds": Bounds(low, high, help, step, rare)})


def bounds_of(config: Any) -> dict[str, Bounds]:
    """The settings of a dataclass (or an instance), by name."""
    return {f.name: f.metadata["bounds"] for f in fields(config) if "bounds" in f.metadata}


def check_bounds(config: Any) -> None:
    """Raise ValueError for the first setting out of its bounds; NaN is out of all bounds."""
    for name, b in bounds_of(config).items():
        value = getattr(config, name)
        require(b.low <= value <= b.high, name, value, f"{b.low:g} to {b.high:g}")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError "name is value; it must be allowed" unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value}; it must be {allowed}")
