"""The host's management of memory: loading, what is loaded, errors of a full one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_prefetch
import torch

from ...lucid_core.prior import OutOfMemory, is_out_of_memory

# A million Gaussians (14 numbers each) with gradients, Adam's moments, activations, and their buffers in a render of 4 views.
SPLAT = 512 * 1024**2
ALLOCATION_GRAPHS = ("MALLOC_GRAPHS", "ACTIVE_MALLOC_GRAPHS")  # what releases of the host call those that are being recorded


def load(patchers: list[Any], required: int, least: int) -> None:
    """Have the host load `patchers` and leave `required` bytes, or `least`, to work with."""
    with torch.no_grad():
        comfy.model_management.load_models_gpu(
            patchers, memory_required=required + SPLAT, minimum_memory_required=least + SPLAT
        )


def load_whole(patcher: Any, least: int) -> None:
    """Have the host load all of `patcher`, whatever it must unload for it, and leave `least` bytes to work with."""
    with torch.no_grad():
        comfy.model_management.load_models_gpu([patcher], memory_required=least + SPLAT, force_full_load=True)
        if patcher.model.model_lowvram:  # as the host has it under --novram
            patcher.partially_load(patcher.load_device, patcher.model_size())


def are_loaded(patchers: list[Any]) -> bool:
    held = [loaded.model for loaded in comfy.model_management.current_loaded_models]
    return all(any(patcher is other for other in held) for patcher in patchers)


def free_memory(patcher: Any, device: torch.device) -> int:
    """Bytes of `device` that are free beside the splat's own.

    Asked of a model's patcher: it counts what dynamic VRAM would give back, which the host's own figure leaves out.
    """
    return patcher.get_free_memory(device) - SPLAT


@contextmanager
def memory_errors() -> Iterator[None]:
    """The host's errors of a full memory as the core's, which goes on after them: what the model's call opened is closed."""
    try:
        yield
    except Exception as error:
        if comfy.model_management.is_oom(error) or is_out_of_memory(error):
            comfy.model_prefetch.cleanup_prefetch_queues()
            raise OutOfMemory(str(error)) from error
        raise


def close_allocation_graphs() -> None:
    """End the recording of allocations that the Comfy Compiler (ComfyUI 0.34 and newer) begins in a model's forward pass.

    The host ends it when the node returns. By then a guidance's tensors and the VAE's backward pass would be recorded too, and
    freed as if they were the model's. Hosts without the compiler have nothing to end.
    """
    if any(getattr(comfy.model_prefetch, name, None) for name in ALLOCATION_GRAPHS):
        comfy.model_prefetch.cleanup_prefetch_queues()
