"""Lazy imports of dependencies, for a fast start and a clear error when a package is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def load(module: str, package: str) -> ModuleType:
    """Import `module`. Raises ImportError with an install command if `package` is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # the package is there but one of its own dependencies is missing: show that name
        raise ImportError(
            f"the package {package} is missing; install it into ComfyUI's Python with: python -m pip install "
            f"{package}"
        ) from error
