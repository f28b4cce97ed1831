"""Backward pass through a VAE encoder: gradient scaling for half precision, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Encode = Callable[[Tensor], Tensor]
EXPONENTS = 120  # largest power of two used as a scale: it and its inverse fit in float32


def encode_in(dtype: torch.dtype, encode: Encode, pixels: Tensor) -> Tensor:
    """Return `encode(pixels)` computed in `dtype`; pixels (B, C, H, W) and latents (B, ...) are float32.

    In the backward pass the gradient of each view is scaled by a power of two before the cast to `dtype`, so
    that its largest value is 0.5 to 1, and scaled back in float32 afterwards, which is exact. Without this,
    float16 flushes values below 6e-8 to zero, and the whole gradient of a step at a low noise level.
    """
    if dtype == torch.float32:
        return encode(pixels)
    exponents = torch.zeros(())  # (B, 1, 1, 1) once the backward pass has set it

    def enter(grad: Tensor) -> Tensor:
        nonlocal exponents
        largest = grad.abs().amax((1, 2, 3), keepdim=True)
        # the exponent of frexp, which MPS does not implement
        exponents = (largest.log2().floor() + 1).clamp(-EXPONENTS, EXPONENTS)
        return torch.ldexp(grad, -exponents)

    needed = torch.is_grad_enabled() and pixels.requires_grad
    if needed:
        pixels = pixels.view_as(pixels)  # a new tensor, so that the hook affects only this use of the pixels
        pixels.register_hook(lambda grad: torch.ldexp(grad, exponents))
    latents = encode(pixels.to(dtype)).float()
    if needed:
        latents.register_hook(enter)
    return latents


def encode_in_parts(encode: Encode, images: Tensor, size: int) -> Tensor:
    """Return `encode(images)` for images (B, H, W, 3), computed `size` views at a time.

    The backward pass recomputes each part, so that the activations of only one part are kept. Gradient
    checkpointing (Chen et al. 2016, arXiv 1604.06174) with the whole encoder as one segment.
    """
    return torch.cat([again(encode, part) for part in images.split(size)])


def encode_in_blocks(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Apply gradient checkpointing to each block of `kinds` in `network`, in place.

    Only the block inputs are kept for the backward pass, which recomputes one block at a time. For a single
    view whose activations do not fit into memory.
    """
    for block in network.modules():
        if isinstance(block, kinds):
            block.forward = partial(again, block.forward)


def again(compute: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    """Return `compute(*arguments, **named)`, with its activations recomputed in the backward pass.

    Errors of `compute` are raised outside of checkpoint(): before torch 2.13, checkpoint() keeps its
    saved-tensor hooks active after an error until the traceback is freed, and treats later operations as part
    of `compute`.
    """
    failure: Exception | None = None
    is_again = False

    def attempt(*arguments: Any, **named: Any) -> Tensor | None:
        nonlocal failure
        try:
            return compute(*arguments, **named)
        except Exception as error:
            if is_again:  # torch stops the recomputation by an exception of its own
                raise
            failure = error
            return None

    result: Tensor = checkpoint(attempt, *arguments, use_reentrant=False, preserve_rng_state=False, **named)
    is_again = True
    if failure is None:
        return result
    try:
        raise failure
    finally:
        failure = None  # breaks the reference cycle between the traceback and this frame
