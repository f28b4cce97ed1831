"""The way back through a VAE's encoder: gradients that half precision does not lose, and memory for few views at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Encode = Callable[[Tensor], Tensor]
EXPONENTS = 120  # of two, at most: a factor that float32 holds, and its inverse


def encode_in(dtype: torch.dtype, encode: Encode, pixels: Tensor) -> Tensor:
    """`encode(pixels)` computed in `dtype`; pixels (B, C, H, W) and latents are float32.

    On the way back the gradient of each view enters `dtype` with a largest value of 0.5 to 1, by a power of two that is taken
    out again in float32 behind it, so exactly. Without it float16 loses what is below 6e-8, and all of a step at little noise.
    """
    if dtype == torch.float32:
        return encode(pixels)
    exponents: Tensor | None = None  # (B, 1, 1, 1), of the backward pass that is under way

    def enter(grad: Tensor) -> Tensor:
        nonlocal exponents
        largest = grad.abs().amax((1, 2, 3), keepdim=True)
        exponents = (largest.log2().floor() + 1).clamp(-EXPONENTS, EXPONENTS)  # frexp's, which Apple's GPUs do not have
        return torch.ldexp(grad, -exponents)

    needed = torch.is_grad_enabled() and pixels.requires_grad
    if needed:
        pixels = pixels.view_as(pixels)  # the hook is on this use of them alone
        pixels.register_hook(lambda grad: torch.ldexp(grad, exponents))
    latents = encode(pixels.to(dtype)).float()
    if needed:
        latents.register_hook(enter)
    return latents


def encode_in_parts(encode: Encode, images: Tensor, size: int) -> Tensor:
    """`encode(images)` by `size` at a time. Backpropagation encodes each part again, so that it needs the memory of one alone.

    Chen et al. 2016 (arXiv 1604.06174), with the whole encoder as the one segment.
    """
    return torch.cat([again(encode, part) for part in images.split(size)])


def encode_in_blocks(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """From now on backpropagation keeps what enters each block of these `kinds` in `network`, and computes the rest again.

    The same work, with the blocks as segments: for one view whose graph is too large. It holds one block's at a time.
    """
    for block in network.modules():
        if isinstance(block, kinds):
            block.forward = partial(again, block.forward)


def again(compute: Callable, *arguments: Any, **named: Any) -> Tensor:
    """`compute(*arguments, **named)`, which backpropagation computes a second time.

    Before torch 2.13 checkpoint() leaves its hooks on saved tensors active where `compute` raises, until that traceback is
    freed: what is computed until then would be computed again as if it were part of `compute`. So it must not see an error.
    """
    failure: Exception | None = None
    is_again = False

    def attempt(*arguments: Any, **named: Any) -> Tensor | None:
        nonlocal failure
        try:
            return compute(*arguments, **named)
        except Exception as error:
            if is_again:  # torch itself ends the second computation by an exception
                raise
            failure = error
            return None

    result = checkpoint(attempt, *arguments, use_reentrant=False, preserve_rng_state=False, **named)
    is_again = True
    if failure is None:
        return result
    try:
        raise failure
    finally:
        failure = None  # it holds this frame
