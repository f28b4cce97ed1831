"""How the CPU kernels are compiled and spread over threads.

Not numba's `parallel=True`: its pools spin at barriers (beside torch's own pool that costs milliseconds a call),
some abort when two threads enter them, and it compiles several times longer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numba
import torch

CHUNKS_PER_THREAD = 8  # uneven work evens out


def kernel(fastmath: bool | set[str] = False, inline: bool = False, allocates: bool = False) -> Callable:
    """A decorator: compile on first call, keep the machine code on disk where a folder can be written.

    error_model "numpy": no branch for each division by zero. Only a kernel that `allocates` counts references: their
    atomic instructions took three quarters of the projection's time.
    """

    def compile_lazily(function: Callable) -> Callable:
        options = {"nogil": True, "fastmath": fastmath, "forceinline": inline, "error_model": "numpy", "_nrt": allocates}
        given = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _cache_folder(function.__module__, given)
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder can be written: every process compiles anew
            return numba.njit(**options)(function)
        finally:
            numba.config.CACHE_DIR = given

    return compile_lazily


def _cache_folder(module: str, given: str) -> str:
    """One folder per name that this package is imported under: the host's differs from the tests', and numba fails on
    machine code that was cached under a name it cannot import."""
    name = "numba-" + hashlib.sha256(module.encode()).hexdigest()[:12]
    return str(Path(given or Path(__file__).parent / "__pycache__") / name)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rasterize")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def spread(kernel: Callable, jobs: int, grain: int, *args) -> None:
    """Run kernel(first, end, *args) over chunks of range(jobs) on torch's number of threads; `grain` jobs at least."""
    threads = min(torch.get_num_threads(), -(-jobs // grain))
    if threads <= 1:
        kernel(0, jobs, *args)
        return
    size = max(grain, -(-jobs // (threads * CHUNKS_PER_THREAD)))
    chunks = iter([(first, min(first + size, jobs)) for first in range(0, jobs, size)])

    def work() -> None:
        for first, end in chunks:  # a shared iterator: who is free takes the next
            kernel(first, end, *args)

    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()
