"""Dependencies that load on first use, so that the pack starts fast and says what is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def load(module: str, package: str) -> ModuleType:
    """Import `module`. Raises ImportError with the remedy when `package` is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # it is there, but something that it needs is not: that name is the one to show
        raise ImportError(
            f"the package {package} is missing; install it into ComfyUI's Python with: python -m pip install {package}"
        ) from error
