"""Errors of a full memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ...lucid_core.prior import OutOfMemory


@contextmanager
def memory_errors() -> Iterator[None]:
    """The host's errors of a full memory as the core's."""
    try:
        yield
    except Exception as error:
        if comfy.model_management.is_oom(error):
            raise OutOfMemory(str(error)) from error
        raise
