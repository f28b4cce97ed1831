"""Scores of the demo camera model: PSNR of single predicted views on held-out pairs of views, by kind.

    python -m demo.camera_score [--prior FILE] [--sheet PNG]

Views are sampled with 20 DDIM steps from noise, at guidance scales 1 and 3. The pairs are drawn as for the
training, with another seed.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lucid_core.conditioning.picture import Picture, PictureView
from lucid_core.diffusion.prior import Conds
from lucid_core.guidance.base import ddim, guided_eps
from lucid_core.io import video

from . import camera_data, world
from .checkpoint import CAMERA_PRIOR
from .prior import DemoCameraPrior
from .words import COLORS, KINDS
from .world import Thing

SCALES = (1.0, 3.0)
STEPS = 20
PAIRS = 8  # of each kind
SEED = 1_000_000  # not one of the training's


@dataclass(frozen=True)
class Pairs:
    """One picture each of B objects, and B other views of them: rgb (B, S, S, 3) in [0, 1]; angles (B,)."""

    kind: np.ndarray
    pictures: Tensor
    views: Tensor
    picture_angles: tuple[Tensor, Tensor]  # azimuth and elevation in radians
    angles: tuple[Tensor, Tensor]


def draw(pairs: int = PAIRS, seed: int = SEED, size: int = 128) -> Pairs:
    """`pairs` pairs of each kind, in colours and directions drawn as for the training."""
    n = pairs * len(KINDS)
    scenes, rng = camera_data.draw(n, seed), np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(KINDS)), pairs)
    first = np.arange(n) * camera_data.VIEWS
    last = first + rng.integers(camera_data.PICTURES, camera_data.VIEWS, n)
    names = list(COLORS)
    things = [
        Thing(KINDS[k], names[scenes.color[i]], tuple(scenes.rgb[i].tolist())) for k, i in zip(kind, first)
    ]

    def shown(at: np.ndarray) -> Tensor:
        azimuth, elevation = scenes.azimuth_rad[at], scenes.elevation_rad[at]
        rgb, _ = world.render(things, azimuth, elevation, scenes.fovy_rad[at], size, fill=scenes.fill[at])
        return torch.from_numpy(rgb)

    def angles(at: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(scenes.azimuth_rad[at]), torch.from_numpy(scenes.elevation_rad[at])

    return Pairs(kind, shown(first), shown(last), angles(first), angles(last))


@torch.no_grad()
def predict(prior: DemoCameraPrior, conds: Conds, views: int, size: int, cfg: float, seed: int = 0) -> Tensor:
    """`views` views (B, size, size, 3) in [0, 1], sampled with DDIM from noise."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = [*(prior.sigma(1 - i / STEPS) for i in range(STEPS)), 0.0]
    z = sigmas[0] * torch.randn(views, 4, size // 8, size // 8, generator=generator)
    return prior.decode(ddim(z, sigmas, lambda z, sigma: guided_eps(prior, z, sigma, conds, cfg)))


def picture_of(rgb: Tensor, azimuth_rad: float, elevation_rad: float) -> Picture:
    """A true view (S, S, 3) on white as the model's input; its alpha is not needed here."""
    view = PictureView(elevation_deg=math.degrees(elevation_rad), azimuth_deg=math.degrees(azimuth_rad))
    return Picture(rgb, torch.ones_like(rgb[..., :1]), view)


def predict_pairs(prior: DemoCameraPrior, pairs: Pairs, cfg: float) -> Tensor:
    """Predicted views like `pairs.views`."""
    parts = []
    for i in range(len(pairs.kind)):
        one = slice(i, i + 1)
        azimuth_rad, elevation_rad = (float(angle[i]) for angle in pairs.picture_angles)
        prompts = prior.prompts(picture_of(pairs.pictures[i], azimuth_rad, elevation_rad))
        conds = prompts.at(prior, *(angle[one].float() for angle in pairs.angles))
        parts.append(predict(prior, conds, 1, pairs.views.shape[1], cfg, seed=i))
    return torch.cat(parts)


def psnr(images: Tensor, expected: Tensor) -> Tensor:
    """(B,) in dB."""
    return -10 * (images - expected).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def sheet(prior: DemoCameraPrior, things: list[Thing], cfg: float, elevation_deg: float = 15.0) -> Tensor:
    """Two rows of frames for each thing: the picture and true views, the picture and predicted views."""
    azimuth = torch.tensor([0.0, 60.0, 120.0, 180.0, -90.0, -30.0]).deg2rad()
    elevation = torch.tensor([15.0, 0.0, 30.0, 15.0, 45.0, 60.0]).deg2rad()
    own, fovy, rows = math.radians(elevation_deg), math.radians(25.0), []
    for thing in things:
        true, _ = world.render(
            thing, np.append(0.0, azimuth), np.append(own, elevation), np.full(len(azimuth) + 1, fovy), 128
        )
        frames = torch.from_numpy(true)
        conds = prior.prompts(picture_of(frames[0], 0.0, own)).at(prior, azimuth, elevation)
        rows += [frames, frames[:1], predict(prior, conds, len(azimuth), 128, cfg)]
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.camera_score", description=__doc__.splitlines()[0])
    parser.add_argument("--prior", type=Path, default=CAMERA_PRIOR, help="narrow weights")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of views of each kind")
    parser.add_argument("--sheet", type=Path, help="contact sheet to write: true and predicted views")
    arguments = parser.parse_args()
    prior, pairs = DemoCameraPrior(arguments.prior), draw(arguments.pairs)
    found = {cfg: psnr(predict_pairs(prior, pairs, cfg), pairs.views) for cfg in SCALES}
    print(f"| kind | {' | '.join(f'cfg {cfg:g}' for cfg in SCALES)} |\n|---|{'---:|' * len(SCALES)}")
    for k, kind in enumerate([*KINDS, "all"]):
        rows = slice(None) if kind == "all" else torch.from_numpy(pairs.kind == k)
        print(f"| {kind} | {' | '.join(f'{float(found[cfg][rows].mean()):.1f}' for cfg in SCALES)} |")
    if arguments.sheet:
        things = [world.parse(f"a {color} {kind}") for kind, color in zip(KINDS, [*COLORS, *COLORS])]
        video.write_png(arguments.sheet, video.contact_sheet(sheet(prior, things, SCALES[-1]), 7))


if __name__ == "__main__":
    main()
