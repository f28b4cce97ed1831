"""What a renderer's error means: too little memory, a backend that cannot run here, a GPU that is lost, or a bug.

The words are those of cudaGetErrorString (CUDA Runtime API, cudaError_t), which torch, CUB and Warp pass on.
"""

from __future__ import annotations

from ..prior import is_out_of_memory as is_out_of_memory_in_torch

NO_MEMORY = ("out of memory", "Failed to allocate")  # the latter is Warp's
CANNOT_RUN = (  # the kernels do not fit this GPU or its driver; the other backends' may
    "no kernel image is available", "invalid device function", "device kernel image is invalid", "PTX JIT compil",
    "compiled with an unsupported toolchain", "driver version is insufficient", "undefined symbol",
    "Failed to load module", "Failed to load kernel", "Failed to set maximum shared memory size",
)  # fmt: skip
GPU_LOST = (  # every later call on the GPU fails as well, whoever makes it, until the process ends
    "illegal memory access", "illegal instruction", "misaligned address", "invalid program counter", "hardware stack error",
    "operation not supported on global/shared address space", "unspecified launch failure", "device-side assert triggered",
    "launch timed out", "uncorrectable ECC error", "uncorrectable NVLink error", "context is destroyed",
    "CUBLAS_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_EXECUTION_FAILED",  # what a library says when it is the first to meet one
)  # fmt: skip


class RenderError(RuntimeError):
    """The rasterizer failed; the message says what may help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Numpy's error, torch's, or one in words alone."""
    return isinstance(error, MemoryError) or is_out_of_memory_in_torch(error) or _says(error, NO_MEMORY)


def cannot_run(error: BaseException) -> bool:
    """Will this backend fail on this machine whatever it renders?"""
    return _says(error, CANNOT_RUN)


def gpu_is_lost(error: BaseException) -> bool:
    return _says(error, GPU_LOST)


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    return any(phrase in str(error) for phrase in phrases)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_render_error(backend: str, error: BaseException) -> RenderError:
    """The same failure with what may help."""
    if is_out_of_memory(error):
        remedy = "there is no memory to render one view; render fewer pixels or splats, or choose another backend"
    elif gpu_is_lost(error):
        remedy = (
            "nothing works on this GPU any more until the program is restarted; the cause may be anything that ran on it "
            "before. Where it happens again, choose another backend"
        )
    elif cannot_run(error):
        remedy = "it cannot run on this GPU; choose another backend"
    else:
        remedy = "this may be a bug in it, or in a package that does not fit it: choose another backend and report this message"
    return RenderError(f"rasterizer {backend} failed: {first_line(error)}; {remedy}")
