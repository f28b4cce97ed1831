"""Splats of known quality: Gaussians on the true surface of an object of the demo world, and defects of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from lucid_core.optimize.selection import join_splats
from lucid_core.splats import Splats, round_splats

from . import shapes
from .words import COLORS, KINDS
from .world import Thing

SCALE, OPACITY = 0.02, 0.95  # of each Gaussian, in world units
DEPTH = (-0.038, -0.022)  # 1.5 standard deviations under the surface: the silhouette is then the object's own


def splat_of(thing: Thing, count: int = 3000, seed: int = 0) -> Splats:
    """The object as `count` round Gaussians under its surface, each in the colour that the world gives it
    there.
    """
    kind, rng = KINDS.index(thing.kind), np.random.default_rng(seed)
    points, colors = [], []
    while len(points) < count:
        for point in rng.uniform(-1, 1, (10_000, 3)).tolist():
            distance, material = shapes.surface(kind, *point)
            if DEPTH[0] < distance < DEPTH[1]:
                albedo = thing.rgb if material == shapes.MAIN else shapes.MATERIALS[material]
                points.append(point)
                colors.append(np.minimum(np.array(albedo) * shapes.light_at(kind, *point), 1))
    means, colors = np.array(points[:count]) * [1, -1, -1], np.array(colors[:count])
    return round_splats(torch.tensor(means).float(), SCALE, OPACITY, torch.tensor(colors).float())


def two_faced(splats: Splats) -> Splats:
    """The front half, and the same again as the back half, turned by half a turn."""
    front = splats.map(lambda x: x[splats.means[:, 2] < 0])
    return join_splats(front, move(front, [-1.0, 1.0, -1.0]))


def mirrored(splats: Splats) -> Splats:
    """Left and right changed over."""
    return move(splats, [-1.0, 1.0, 1.0])


def turned(splats: Splats) -> Splats:
    """Turned by a quarter about the vertical: the front looks to a side."""
    means = splats.means[:, [2, 1, 0]] * torch.tensor([1.0, 1.0, -1.0])
    return replace(splats, means=means)


def squashed(splats: Splats) -> Splats:
    """Two thirds as high."""
    return move(splats, [1.0, 0.65, 1.0])


def blurred(splats: Splats) -> Splats:
    """Four times as thick Gaussians."""
    return replace(splats, scales=4 * splats.scales, opacities=0.3 * splats.opacities)


def fogged(splats: Splats) -> Splats:
    """With half as many large, faint, grey Gaussians around it."""
    count = len(splats) // 2
    means = torch.randn(count, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    fog = splats.map(lambda x: x[:count].clone())
    fog = replace(fog, means=means, scales=6 * fog.scales, sh=torch.zeros_like(fog.sh))
    return join_splats(splats, replace(fog, opacities=0.08 * torch.ones(count)))


def move(splats: Splats, factors: list[float]) -> Splats:
    """Positions times `factors`, one per axis; the Gaussians are round and stay as they are."""
    return replace(splats, means=splats.means * torch.tensor(factors))


DEFECTS: dict[str, Callable[[Splats], Splats]] = {
    "two faces": two_faced,
    "mirrored": mirrored,
    "turned": turned,
    "squashed": squashed,
    "blurred": blurred,
    "fog": fogged,
}


def other_color(thing: Thing) -> Thing:
    """The same object in the colour four places further on."""
    names = list(COLORS)
    color = names[(names.index(thing.color) + 4) % len(names)]
    return Thing(thing.kind, color, COLORS[color])


def other_kind(thing: Thing) -> Thing:
    """The object four places further on, in the same colour."""
    return replace(thing, kind=KINDS[(KINDS.index(thing.kind) + 4) % len(KINDS)])
