"""Replay buffer of image targets with their cameras and backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Replay:
    """Replay buffer of K image targets, oldest first.

    viewmats (K, 4, 4) world-to-camera, Ks (K, 3, 3) in pixels, backgrounds (K, 3) sRGB in [0, 1], pictures
    (K, H, W, 3) uint8 sRGB; rounds: number of times that targets were generated.
    """

    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor
    pictures: Tensor
    rounds: int = 0

    def add(self, other: Replay, kept: int) -> Replay:
        """Append the targets of `other` and keep the newest `kept`."""
        both = {name: torch.cat([value, vars(other)[name]])[-kept:] for name, value in self.tensors().items()}
        return Replay(**both, rounds=other.rounds)

    def draw(self, views: int, generator: Generator) -> Replay:
        """Draw `views` random targets; their counts differ by at most one."""
        order = torch.cat(
            [torch.randperm(len(self.Ks), generator=generator) for _ in range(-(-views // len(self.Ks)))]
        )
        rows = order[:views].to(self.Ks.device)
        return Replay(**{name: value[rows] for name, value in self.tensors().items()}, rounds=self.rounds)

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {
            "viewmats": self.viewmats,
            "Ks": self.Ks,
            "backgrounds": self.backgrounds,
            "pictures": self.pictures,
        }
