"""Dataclass fields with bounds and tooltips, and the common error for values out of bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from .errors import BadSetting

Config = TypeVar("Config")
NO_GROWTH = 1000.0  # threshold of the image-plane gradient that no Gaussian reaches


@dataclass(frozen=True)
class Bounds:
    """Bounds and tooltip of a setting; used by the checks and by the nodes' widgets.

    step: increment of the widget. advanced: hidden in the node's advanced section.
    """

    low: float
    high: float
    help: str
    step: float
    advanced: bool
    options: tuple[str, ...] = ()  # allowed values of a choice
    parts: tuple[str, ...] = ()  # names of the elements of a tuple setting


def setting(
    default: Any,
    low: float,
    high: float,
    help: str,
    *,
    step: float = 0.01,
    advanced: bool = True,
    parts: tuple[str, ...] = (),
) -> Any:
    """A dataclass field for a number in [low, high], or a tuple of such numbers named by `parts`."""
    return field(default=default, metadata={"bounds": Bounds(low, high, help, step, advanced, parts=parts)})


def choice(options: tuple[str, ...], help: str, *, advanced: bool = True) -> Any:
    """A dataclass field for one of `options`; the first is the default."""
    return field(default=options[0], metadata={"bounds": Bounds(0, 0, help, 1, advanced, options)})


def bounds_of(config: Any) -> dict[str, Bounds]:
    """The bounds of all settings of a dataclass (or an instance of it), by name."""
    return {f.name: f.metadata["bounds"] for f in fields(config) if "bounds" in f.metadata}


def check_bounds(config: Any) -> None:
    """Raise BadSetting for the first setting out of bounds; NaN is always out of bounds."""
    for name, b in bounds_of(config).items():
        value = getattr(config, name)
        if b.options:
            require(value in b.options, name, value, " or ".join(b.options))
            continue
        for part, number in zip(b.parts, value) if b.parts else [(name, value)]:
            require(b.low <= number <= b.high, part, number, f"{b.low:g} to {b.high:g}")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise BadSetting "name is value; it must be allowed" unless `ok`."""
    if not ok:
        raise BadSetting(name, value, allowed)


class BoundedSettings:
    """Base of dataclasses whose settings are checked against their bounds when they are made."""

    def __post_init__(self) -> None:
        check_bounds(self)


def replace_settings(config: Config, **values: Any) -> Config:
    """A copy of a dataclass with some settings replaced by name, also those of the dataclasses within it.

    Raises TypeError for a name that none of them has, BadSetting for a value out of bounds.
    """
    own = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
    changed = {name: values.pop(name) for name in own if name in values}
    for name, part in own.items():
        inner = values.keys() & names_of(part) if name not in changed and is_dataclass(part) else ()
        if inner:
            changed[name] = replace_settings(part, **{key: values.pop(key) for key in sorted(inner)})
    if values:
        raise TypeError(f"{type(config).__name__} has no setting {', '.join(values)}")
    return replace(config, **changed)  # type: ignore[type-var]


def names_of(config: Any) -> set[str]:
    """The names of all settings of a dataclass and of those within it."""
    names = {f.name for f in fields(config)}
    return names.union(*(names_of(part) for part in vars(config).values() if is_dataclass(part)))
