"""Compilation of the CPU kernels and their distribution over threads.

numba's `parallel=True` is not used: its thread pools spin at barriers (next to torch's own pool that costs
milliseconds per call), some abort when two threads enter them, and compilation takes several times longer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])
CHUNKS_PER_THREAD = 8  # for load balancing


def kernel(
    fastmath: bool | set[str] = False, inline: bool = False, allocates: bool = False
) -> Callable[[Function], Function]:
    """Decorator: compile with numba on first call and cache the machine code on disk if possible.

    error_model "numpy" avoids a branch per division. Reference counting is only enabled for a kernel that
    `allocates`: its atomic instructions took three quarters of the projection's time.
    """

    def compile_lazily(function: Function) -> Function:
        options = {
            "nogil": True,
            "fastmath": fastmath,
            "forceinline": inline,
            "error_model": "numpy",
            "_nrt": allocates,
        }
        given = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _cache_folder(function.__module__, given)
        compiled: Function
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no writable cache folder: every process compiles again
            compiled = numba.njit(**options)(function)
        finally:
            numba.config.CACHE_DIR = given
        return compiled

    return compile_lazily


def _cache_folder(module: str, given: str) -> str:
    """The cache folder for the name under which this package is imported.

    ComfyUI and the tests import it under different names, and numba fails on machine code that was cached
    under a name it cannot import.
    """
    name = "numba-" + hashlib.sha256(module.encode()).hexdigest()[:12]
    return str(Path(given or Path(__file__).parent / "__pycache__") / name)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rasterize")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def spread(kernel: Callable[..., None], jobs: int, grain: int, *args: Any) -> None:
    """Run kernel(first, end, *args) on chunks of range(jobs), with torch's number of threads.

    grain: minimum number of jobs per chunk.
    """
    threads = min(torch.get_num_threads(), -(-jobs // grain))
    if threads <= 1:
        kernel(0, jobs, *args)
        return
    size = max(grain, -(-jobs // (threads * CHUNKS_PER_THREAD)))
    chunks = iter([(first, min(first + size, jobs)) for first in range(0, jobs, size)])

    def work() -> None:
        for first, end in chunks:  # shared iterator: each free thread takes the next chunk
            kernel(first, end, *args)

    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()
