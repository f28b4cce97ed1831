"""Memory management through the host: loading models, free memory, out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_prefetch
import torch

from ...lucid_core.diffusion.prior import is_out_of_memory
from ...lucid_core.errors import OutOfMemory

# Bytes for one million Gaussians (14 numbers each): gradients, Adam's moments, activations and buffers of a
# render of 4 views.
SPLAT = 512 * 1024**2
# Names, in different releases of the host, of the allocation graphs that are being recorded.
ALLOCATION_GRAPHS = (
    "MALLOC_GRAPHS",
    "ACTIVE_MALLOC_GRAPHS",
)


def load(patchers: list[Any], required: int, least: int) -> None:
    """Let the host load `patchers` and leave `required` bytes free for working, or at least `least`."""
    with torch.no_grad():
        comfy.model_management.load_models_gpu(
            patchers, memory_required=required + SPLAT, minimum_memory_required=least + SPLAT
        )


def load_whole(patcher: Any, least: int) -> None:
    """Let the host load `patcher` completely, unloading other models if necessary, and leave `least` bytes
    free for working.
    """
    with torch.no_grad():
        comfy.model_management.load_models_gpu([patcher], memory_required=least + SPLAT, force_full_load=True)
        if patcher.model.model_lowvram:  # the host still loads partially under --novram
            patcher.partially_load(patcher.load_device, patcher.model_size())


def are_loaded(patchers: list[Any]) -> bool:
    """Whether the host holds all `patchers` as loaded."""
    held = [loaded.model for loaded in comfy.model_management.current_loaded_models]
    return all(any(patcher is other for other in held) for patcher in patchers)


def free_memory(patcher: Any, device: torch.device) -> int:
    """Free bytes on `device`, without those reserved for the splat.

    The figure comes from the model's patcher because it includes memory that dynamic VRAM can release, which
    the host's own function does not count.
    """
    return patcher.get_free_memory(device) - SPLAT


def memory_of(device: torch.device) -> int:
    """Bytes that a field may fill: of a CPU those that are free, of a GPU all, since models can make way."""
    management = comfy.model_management
    if device.type == "cpu":
        return int(management.get_free_memory(device))
    return int(management.get_total_memory(device))


@contextmanager
def memory_errors() -> Iterator[None]:
    """Convert the host's out-of-memory errors to lucid_core's OutOfMemory, from which the core recovers.

    Prefetch queues that the failed model call left open are closed.
    """
    try:
        yield
    except Exception as error:
        if comfy.model_management.is_oom(error) or is_out_of_memory(error):
            comfy.model_prefetch.cleanup_prefetch_queues()
            raise OutOfMemory(f"a call of the model ({error})") from error
        raise


def close_allocation_graphs() -> None:
    """Stop the recording of allocations that the Comfy Compiler (ComfyUI 0.34 and newer) starts in a model's
    forward pass.

    The host stops it only when the node returns. By then it would also have recorded the guidance's tensors
    and the VAE's backward pass, and would free them as if they belonged to the model. Does nothing on hosts
    without the compiler.
    """
    if any(getattr(comfy.model_prefetch, name, None) for name in ALLOCATION_GRAPHS):
        comfy.model_prefetch.cleanup_prefetch_queues()


@contextmanager
def on_device(networks: list[torch.nn.Module], working_bytes: int) -> Iterator[None]:
    """Move `networks`, which the host does not manage, to its device, and back to the CPU at the end.

    The host first frees memory for their weights and `working_bytes`.
    """
    management = comfy.model_management
    device = management.get_torch_device()
    management.free_memory(
        sum(management.module_size(network) for network in networks) + working_bytes, device
    )
    try:
        for network in networks:
            network.to(device)
        yield
    finally:
        for network in networks:
            network.to("cpu")
        management.soft_empty_cache()


def half_is_faster() -> bool:
    """Whether the host runs its own models in float16 on its device."""
    return comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device())
