"""Rendering within the available memory: fewer views at a time, then the next backend.

If all views fit together, their autograd graph is kept for the backward pass. Otherwise they are rendered in
parts without a graph, and the backward pass renders each part again (gradient checkpointing, Chen et al.
2016, arXiv 1604.06174). This needs the memory of a single part and gives the same images and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cameras import Cameras
from ..splats import Splats
from . import choice
from .contract import Arguments, Outputs

Gradients = Sequence[Tensor | None]
T = TypeVar("T")


def render(backend: str, arguments: Arguments) -> Outputs:
    """Render `arguments` with `backend`, as many views at a time as fit into memory.

    If gradients are required, means2d is a leaf whose `grad` is filled by the backward pass. Raises
    RenderError as `first_that_fits`.
    """
    splats, background = arguments[0], arguments[-1]
    inputs = (*vars(splats).values(), background)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return first_that_fits(backend, arguments, partial(in_parts, arguments))
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    job = Job(backend, (Splats(*leaves[:-1]), *arguments[1:-1], leaves[-1]), leaves)
    *images, means2d, radii = job.forward()
    means2d = means2d.detach().requires_grad_()
    detached = (image.detach() for image in images)
    rgb, alpha, depth = Rendered.apply(job, *detached, means2d, *inputs)  # type: ignore[no-untyped-call]  # torch gives no type
    return rgb, alpha, depth, means2d, radii


class Rendered(torch.autograd.Function):
    """Autograd node that returns the images of a job and delegates the backward pass to it."""

    @staticmethod
    def forward(
        ctx: Any, job: Job, rgb: Tensor, alpha: Tensor, depth: Tensor, means2d: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.job = job
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return rgb.view_as(rgb), alpha.view_as(alpha), depth.view_as(depth)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # raises if they were changed in place: the job shares their storage
        if all(x is None for x in gradients):
            return None, None, None, None, None, *(None for _ in inputs)
        return None, None, None, None, *ctx.job.backward(gradients)


class Job:
    """One render with gradients; keeps its autograd graph until the first backward pass if all views fit."""

    def __init__(self, backend: str, arguments: Arguments, leaves: list[Tensor]) -> None:
        self.backend, self.arguments, self.leaves = backend, arguments, leaves
        self.graph: tuple[str, Outputs] | None = None  # (backend, its outputs)

    def forward(self) -> Outputs:
        """Render; raises RenderError."""
        return first_that_fits(self.backend, self.arguments, self._render)

    def backward(self, gradients: Gradients) -> Gradients:
        """Gradients of the images (None if unused) -> gradients of means2d and of the leaves."""
        return first_that_fits(self.backend, self.arguments, partial(self._backpropagate, gradients))

    def _render(self, name: str, size: int) -> Outputs:
        if size < len(self.arguments[1]):
            return in_parts(self.arguments, name, size)
        outputs = choice.renderer(name)(*self.arguments)
        self.graph = name, outputs
        return outputs

    @torch.enable_grad()
    def _backpropagate(self, gradients: Gradients, name: str, size: int) -> Gradients:
        graph, self.graph = self.graph, None
        if graph and graph[0] == name:
            return gradients_through(graph[1], self.leaves, gradients)
        del graph
        found = []
        rows = zip(*([None] * len(self.arguments[1]) if x is None else x.split(size) for x in gradients))
        for part, of_images in zip(parts_of(self.arguments, size), rows):
            outputs = choice.renderer(name)(*part)
            found.append(gradients_through(outputs, self.leaves, of_images))
            del outputs
        of_means2d, *of_leaves = zip(*found)
        return [None if of_means2d[0] is None else torch.cat(of_means2d), *map(total, of_leaves)]


@torch.no_grad()
def in_parts(arguments: Arguments, name: str, size: int) -> Outputs:
    """Render all views, at most `size` at a time, without an autograd graph."""
    parts = [choice.renderer(name)(*part) for part in parts_of(arguments, size)]
    if len(parts) == 1:
        return parts[0]
    rgb, alpha, depth, means2d, radii = (torch.cat(x) for x in zip(*parts))
    return rgb, alpha, depth, means2d, radii


def parts_of(arguments: Arguments, size: int) -> Iterator[Arguments]:
    """Split `arguments` into batches of at most `size` views."""
    splats, cameras, *rest, background = arguments
    for viewmats, Ks, color in zip(*(x.split(size) for x in (cameras.viewmats, cameras.Ks, background))):
        yield splats, Cameras(viewmats, Ks), *rest, color


def gradients_through(outputs: Outputs, leaves: list[Tensor], gradients: Gradients) -> Gradients:
    """Backpropagate through a render -> gradients of means2d and of the leaves; None if not required."""
    *images, means2d, _ = outputs
    used, gradients = zip(*((x, g) for x, g in zip(images, gradients) if g is not None))
    inputs = [means2d, *leaves]
    found = iter(
        torch.autograd.grad(used, [x for x in inputs if x.requires_grad], gradients, allow_unused=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def total(gradients: Gradients) -> Tensor | None:
    """The sum of the gradients that are not None, or None."""
    found = [x for x in gradients if x is not None]
    return sum(found[1:], found[0]) if found else None


def first_that_fits(backend: str, arguments: Arguments, work: Callable[[str, int], T]) -> T:
    """Call work(backend, views at a time) with the first backend and the largest batch that fit into memory.

    Raises RenderError if one view is too much for the last backend, and at once for other failures.
    """
    device, views = arguments[0].means.device.type, len(arguments[1])
    names = choice.candidates(device) if backend == "auto" else iter([backend])
    while True:
        name = next(names)  # the last one returns or raises
        if backend == "auto":
            choice.say(name, device)
        last = backend != "auto" or name == "numba"
        size = min(choice.views_at_a_time(name), views)
        while size:
            try:
                return work(name, size)
            except (RuntimeError, MemoryError) as error:
                size = choice.after_failure(name, size, error, last)
