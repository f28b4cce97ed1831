"""Gradients of ISM and SDS at defective views, compared with those at true views, by noise level.

Views of an object of the demo world are encoded unchanged, blurred and speckled. gain: the fraction of the
defect that the mean gradient corrects, 1 = all of it. push: the mean gradient at the true views, where it
should be 0, divided by the correction of the defect (both root mean square). Above 1, the method moves away
from the truth faster than it corrects the defect.
"""

from __future__ import annotations

import argparse
import json
import math

import cv2
import numpy as np
import torch
from torch import Tensor

from demo import world
from demo.prior import DemoPrior
from lucid_core.conditioning.view_prompts import ViewBlend
from lucid_core.diffusion.prior import Conds
from lucid_core.guidance.base import guided_eps
from lucid_core.guidance.ism import ISM, PRESETS, interval_score

AZIMUTH_DEG, ELEVATION_DEG = (0.0, 50.0, 150.0, 300.0), (10.0, 15.0, 30.0, 20.0)
RADIUS, FOVY_DEG, SIZE = 5.3, 26.0, 128
TIMES, SCALES, NOISES = (0.15, 0.3, 0.6), (1.0, 2.0, 5.0), 4
ROW = "| {t} | {cfg:g} | {method} | {push:.1f} | {blur:.2f} | {speckle:.2f} |"
BLUR_PX, SPECKLE, SPECKLE_CELLS = 2.5, 0.15, 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--prompt", default="a purple house")


def main(as_json: bool, prompt: str) -> None:
    prior, rows = DemoPrior(), []
    azimuth, elevation = torch.tensor(AZIMUTH_DEG).deg2rad(), torch.tensor(ELEVATION_DEG).deg2rad()
    conds = prior.prompts(prompt, blend=ViewBlend(blend_deg=20.0)).at(prior, azimuth, elevation)
    images, _ = world.render(
        world.parse(prompt), azimuth, elevation, math.radians(FOVY_DEG), SIZE, radius=RADIUS, supersample=3
    )
    with torch.no_grad():
        truth, *defects = (
            prior.encode(torch.from_numpy(x)) for x in (images, blurred(images), speckled(images))
        )
        if not as_json:
            print(
                "| t | cfg | method | push / blur's pull | gain blur | gain speckle "
                "|\n|---:|---:|---|---:|---:|---:|"
            )
        for t in TIMES:
            for cfg in SCALES:
                for name, settings in (
                    ("SDS", None),
                    ("ISM", PRESETS["official"]),
                    ("ISM, 1 stride", PRESETS["fast"]),
                ):
                    row = {
                        "t": t,
                        "cfg": cfg,
                        "method": name,
                        **measure(prior, settings, cfg, t, truth, defects, conds),
                    }
                    rows.append(row)
                    if not as_json:
                        print(ROW.format(**row), flush=True)
    if as_json:
        print(json.dumps(rows))


def measure(
    prior: DemoPrior,
    ism: ISM | None,
    cfg: float,
    t: float,
    truth: Tensor,
    defects: list[Tensor],
    conds: Conds,
) -> dict[str, float]:
    at_truth, *at_defects = (mean_gradient(prior, ism, cfg, t, z0, conds) for z0 in (truth, *defects))
    gains = [
        float(((g - at_truth) * (z0 - truth)).sum() / (z0 - truth).square().sum())
        for g, z0 in zip(at_defects, defects)
    ]
    pull = max(gains[0], 1e-3) * (defects[0] - truth).square().mean().sqrt()
    return {"push": float(at_truth.square().mean().sqrt() / pull), "blur": gains[0], "speckle": gains[1]}


def mean_gradient(
    prior: DemoPrior, ism: ISM | None, cfg: float, t: float, z0: Tensor, conds: Conds
) -> Tensor:
    """Mean gradient for latents `z0` (B, 4, h, w) over NOISES noises, the same at every call. `ism` None
    = SDS.
    """
    generator, total, sigma = torch.Generator().manual_seed(3), torch.zeros_like(z0), prior.sigma(t)
    for _ in range(NOISES):
        noise = torch.randn(z0.shape, generator=generator)
        if ism is None:
            total += sigma * (guided_eps(prior, z0 + sigma * noise, sigma, conds, cfg) - noise)
        else:
            settings = ISM(cfg=cfg, delta_s=ism.delta_s, inversion_steps=ism.inversion_steps)
            total += interval_score(settings, prior, z0, noise, t, t - settings.delta_t, conds, generator)
    return total / NOISES


def blurred(images: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(image, (0, 0), BLUR_PX) for image in images])


def speckled(images: np.ndarray) -> np.ndarray:
    """Coarse random colours added to the object, not to the white background; images (B, H, W, 3)."""
    cells = np.random.default_rng(1).standard_normal(
        (len(images), SPECKLE_CELLS, SPECKLE_CELLS, 3), dtype=np.float32
    )
    noise = np.stack([cv2.resize(cell, images.shape[1:3]) for cell in cells])
    return (images + SPECKLE * noise * (images.min(-1, keepdims=True) < 0.95)).clip(0, 1).astype(np.float32)
