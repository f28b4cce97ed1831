"""numba's compiler as the CPU kernels use it: cached on disk where there is a place for it, threads as torch's."""

from __future__ import annotations

import numba
import torch


def kernel(parallel: bool = False, fastmath: bool = False, inline: str = "never"):
    """A decorator: compile on first call. error_model "numpy": no branch for each division by zero."""

    def compile_lazily(function):
        options = {"parallel": parallel, "fastmath": fastmath, "inline": inline, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder can be written: every process then compiles anew
            return numba.njit(**options)(function)

    return compile_lazily


def follow_torch_threads() -> None:
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
