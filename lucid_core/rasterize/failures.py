"""Classification of rendering errors: out of memory, unusable backend, lost GPU, or bug.

The phrases are those of cudaGetErrorString (CUDA Runtime API, cudaError_t), as passed on by torch, CUB, Warp.
"""

from __future__ import annotations

from ..diffusion.prior import is_out_of_memory as is_out_of_memory_in_torch
from ..errors import LostGpu, RenderError, RenderOutOfMemory, UnsupportedGpu

NO_MEMORY = ("out of memory", "Failed to allocate")  # the latter is Warp's
CANNOT_RUN = (  # kernels incompatible with the GPU or driver; other backends may work
    "no kernel image is available",
    "invalid device function",
    "device kernel image is invalid",
    "PTX JIT compil",
    "compiled with an unsupported toolchain",
    "driver version is insufficient",
    "undefined symbol",
    "Failed to load module",
    "Failed to load kernel",
    "Failed to set maximum shared memory size",
)
GPU_LOST = (  # every later GPU call of this process fails as well
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "unspecified launch failure",
    "device-side assert triggered",
    "launch timed out",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "context is destroyed",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",  # reported by the library that hits such an error first
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means out of memory, from numpy, torch, CUDA or Warp."""
    return isinstance(error, MemoryError) or is_out_of_memory_in_torch(error) or _says(error, NO_MEMORY)


def cannot_run(error: BaseException) -> bool:
    """Whether the backend cannot run on this machine at all."""
    return _says(error, CANNOT_RUN)


def gpu_is_lost(error: BaseException) -> bool:
    """Whether the GPU is unusable until the process restarts."""
    return _says(error, GPU_LOST)


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    return any(phrase in str(error) for phrase in phrases)


def first_line(error: BaseException) -> str:
    """First line of the message, or the type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_render_error(backend: str, error: BaseException) -> RenderError:
    """The same failure as a RenderError of its kind, whose message suggests a remedy."""
    kinds = ((is_out_of_memory, RenderOutOfMemory), (gpu_is_lost, LostGpu), (cannot_run, UnsupportedGpu))
    kind = next((kind for matches, kind in kinds if matches(error)), RenderError)
    return kind(backend, first_line(error))
