"""Replay buffer of image targets with their cameras and backgrounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Replay:
    """Replay buffer of K image targets, oldest first.

    viewmats (K, 4, 4) world-to-camera, Ks (K, 3, 3) in pixels, backgrounds (K, 3) sRGB in [0, 1], pictures
    (K, H, W, 3) uint8 sRGB; rounds: grows with every round of targets. masks (K, H, W, 1) uint8,
    255 = object, and disparities (K, H, W, 1) of any scale belong to given views; None = there are none.
    ignore: pixels outside of the masks are not compared.
    """

    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor
    pictures: Tensor
    rounds: int = 0
    masks: Tensor | None = None
    disparities: Tensor | None = None
    ignore: bool = False

    def add(self, other: Replay, kept: int) -> Replay:
        """Append the targets of `other` and keep the newest `kept`."""
        both: dict[str, Any] = {
            name: torch.cat([value, vars(other)[name]])[-kept:] for name, value in self.tensors().items()
        }
        return replace(self, **both, rounds=other.rounds)

    def draw(self, views: int, generator: Generator) -> Replay:
        """Draw `views` random targets; their counts differ by at most one."""
        order = torch.cat(
            [torch.randperm(len(self.Ks), generator=generator) for _ in range(-(-views // len(self.Ks)))]
        )
        rows = order[:views].to(self.Ks.device)
        return self.select(rows)

    def select(self, rows: Tensor) -> Replay:
        """The targets `rows` (n,)."""
        chosen: dict[str, Any] = {name: value[rows] for name, value in self.tensors().items()}
        return replace(self, **chosen)

    def cover(self, images: Tensor, pictures: Tensor) -> Tensor:
        """`images` (K, H, W, 3) with the pixels that are not compared taken from `pictures`."""
        if self.masks is None or not self.ignore:
            return images
        return torch.where(self.masks >= 128, images, pictures)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without absent ones."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
