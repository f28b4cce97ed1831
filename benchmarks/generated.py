"""A splat of generated views, which do not quite agree, and what its refinement adds: the workflow
generated_views_to_splat on objects of the demo world, compared with the truth.

The generator is the demo's camera model, used as by the host's nodes: the picture's elevation is not told.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from demo import score, world
from demo.prior import DemoCameraPrior
from lucid_core.cameras import CameraRanges, orbit
from lucid_core.conditioning.picture import Picture, PictureView
from lucid_core.conditioning.picture_prompt import PicturePrompt
from lucid_core.guidance.base import ddim, guided_eps
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.optimize.config import PRESETS
from lucid_core.optimize.loop import distil
from lucid_core.optimize.views import PRESETS as FITS
from lucid_core.optimize.views import PosedImages, ViewFit, fit_views
from lucid_core.settings import bounds_of, replace_settings
from lucid_core.splats import Splats
from lucid_core.starts.shapes import PointCloud

WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "api" / "generated_views_to_splat.json"
PROMPTS = ("a blue mug", "a blue snowman")
AZIMUTH_DEG, ELEVATION_DEG = 30, 15  # of the picture
SIZE = 128
SCORED_DEG = 15.0, 40.0  # elevations


@dataclass(frozen=True)
class Row:
    """PSNR in dB against the truth: of the generated views, of the fit, and of the refined splat, these two
    around at elevation 15 and at 40, which no generated view has.
    """

    generated: float
    fit: float
    fit_above: float
    refined: float
    refined_above: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="objects of the demo world")


def main(as_json: bool, prompts: list[str]) -> None:
    try:
        for prompt in prompts:
            world.thing_of(prompt)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    rows = {prompt: run(prompt) for prompt in prompts}
    if as_json:
        print(json.dumps({prompt: vars(row) for prompt, row in rows.items()}))
        return
    print(f"| object | {' | '.join(f.name.replace('_', ' ') for f in fields(Row))} |")
    print(f"|---|{'---:|' * len(fields(Row))}")
    for prompt, row in rows.items():
        print(f"| {prompt} | {' | '.join(f'{value:.2f}' for value in vars(row).values())} |")


def run(prompt: str, **budget: int) -> Row:
    """Generate, fit and refine as the workflow does; `budget` replaces steps of both runs."""
    thing = world.thing_of(prompt)
    inputs = {node["class_type"]: node["inputs"] for node in json.loads(WORKFLOW.read_text("utf-8")).values()}
    preset = lambda node, names: {name: inputs[node][f"preset.{name}"] for name in names}
    fit, targets, dream = (
        preset("LucidFit", ("steps", "views")),
        ImageTargets(**preset("LucidTargets", bounds_of(ImageTargets))),
        preset("LucidDream", ("steps", "views")),
    )
    ranges, cloud = inputs["LucidCameras"], inputs["LucidPointCloud"]
    ranges = CameraRanges(**{name: ranges[name] for name in bounds_of(CameraRanges)})
    cloud = PointCloud(**{name: cloud[name] for name in bounds_of(PointCloud)})

    prior = DemoCameraPrior()
    azimuth_deg = torch.arange(1, 13) * 30
    turntable = score.truth(thing, 12)  # every 30 degrees
    first = AZIMUTH_DEG // 30
    view = PictureView(elevation_deg=ELEVATION_DEG, azimuth_deg=AZIMUTH_DEG)
    prompts = prior.prompts(Picture(turntable.rgb[first], turntable.mask[first, ..., None], view).at(SIZE))
    images = generate(prior, prompts, azimuth_deg.deg2rad())

    ones = torch.ones(len(images))
    angles = azimuth_deg.deg2rad(), ones * math.radians(ELEVATION_DEG)
    frame = ones * ranges.radius_min, ones * math.radians(ranges.fovy_min_deg)
    views = PosedImages(images, orbit(*angles, *frame, SIZE, SIZE))
    config = replace_settings(FITS["cpu"], **fit | budget)
    *_, fitted = fit_views(cloud.splats(0), views, ViewFit(held_out=0), config, 0, "numba")
    config = replace_settings(PRESETS["cpu"], **dream | budget, resolution=SIZE)
    source = GuidanceSource(prior, targets, prompts)
    *_, refined = distil(fitted.splats, source, ranges, config, 0, "numba")
    generated = score.psnr(images, turntable.rgb[azimuth_deg // 30 % 12])
    return Row(generated, *measure(fitted.splats, thing), *measure(refined.splats, thing))


def generate(prior: DemoCameraPrior, prompts: PicturePrompt, azimuth_rad: Tensor) -> Tensor:
    """The views (V, H, W, 3) at the picture's own elevation, from one noise for all: 20 DDIM steps, cfg 3."""
    picture = replace(prompts.picture, view=replace(prompts.picture.view, elevation_deg=0.0))
    conds = replace(prompts, picture=picture).at(prior, azimuth_rad, torch.zeros_like(azimuth_rad))
    sigmas = [*(prior.sigma(1 - i / 20) for i in range(20)), 0.0]
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    z = sigmas[0] * noise.expand(len(azimuth_rad), -1, -1, -1)
    return prior.decode(ddim(z, sigmas, lambda z, sigma: guided_eps(prior, z, sigma, conds, 3.0)))


def measure(splats: Splats, thing: world.Thing) -> tuple[float, float]:
    """PSNR around at the elevations SCORED_DEG, at the scale that fits the first best."""
    around, above = (score.truth(thing, score.VIEWS, elevation) for elevation in SCORED_DEG)
    scale, rgb, _ = score.best_view(splats, around)
    return score.psnr(rgb, around.rgb), score.psnr(score.view(splats.scale_by(scale), above)[0], above.rgb)
