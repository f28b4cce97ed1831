"""Lazy imports of dependencies, for a fast start and a clear error when a package is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingPackage


def load(module: str, package: str) -> ModuleType:
    """Import `module`. Raises MissingPackage if `package` is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # the package is there but one of its own dependencies is missing: show that name
        raise MissingPackage(package) from error
