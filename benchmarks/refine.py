"""Restyling and refining of existing splats by Lucid Dream: two tests in the demo world, where the truth is
known.

restyle: a blue mushroom becomes red, with locked geometry and the settings of
workflows/api/restyle_splat.json. Target: its colours are as close to the truth as those of a red mushroom
made from scratch, and its silhouette is unchanged. refine: a splat with half of its Gaussians displaced,
recoloured or missing is optimised with the settings of workflows/api/refine_splat.json. Target: its PSNR
rises by 3 dB.

PSNR, silhouette IoU and colour error are against the truth, at the best-fitting scale; kept is the IoU of the
silhouette with that of the initial splat.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam

from demo import measures, score, world
from demo.prior import DemoPrior
from lucid_core.cameras import CameraRanges
from lucid_core.conditioning.view_prompts import ViewBlend
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.io import ply, video
from lucid_core.optimize import loop
from lucid_core.optimize.config import PRESETS, Budget, DreamConfig, Task
from lucid_core.rasterize import rasterize
from lucid_core.settings import bounds_of, replace_settings
from lucid_core.splats import SH_C0, Splats, activate, parameters
from lucid_core.starts.shapes import PointCloud

from .quality import cases
from .quality.run import distil

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "output" / "benchmarks" / "refine"
VIEWS = 32
FIT_VIEWS, FIT_BATCH, FIT_STEPS = 48, 4, 240
FIT_RATES = {"means": 4e-3, "quats": 1e-2, "scales": 2e-2, "opacities": 1e-1, "sh0": 3e-2, "shN": 0.0}
DISPLACED = 0.15  # standard deviation in splat units; a mushroom is about 1 high
ROW = "| {name} | {psnr:.2f} | {iou:.3f} | {color:.3f} | {kept:.3f} |"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--steps", type=int, help="steps of each run (default: those of the workflows)")
    parser.add_argument("--only", choices=("restyle", "refine"), help="default: both")


def main(as_json: bool, steps: int | None, only: str | None) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not as_json:
        print("| splat | PSNR dB | IoU | colour error | kept |\n|---|---:|---:|---:|---:|")
    rows = {}
    for name, demonstrate in (("restyle", restyle), ("refine", refine)):
        if only in (None, name):
            rows |= demonstrate(steps, None if as_json else show)
    if as_json:
        print(json.dumps(rows))


def show(name: str, row: dict[str, float]) -> None:
    print(ROW.format(name=name, **row), flush=True)


Rows = dict[str, dict[str, float]]
Show = Callable[[str, dict[str, float]], None] | None


def restyle(steps: int | None, show: Show) -> Rows:
    red, blue = world.parse("a red mushroom"), world.parse("a blue mushroom")
    base = cases.workflow()
    fresh = distil(
        replace(base, config=replace_settings(base.config, steps=steps or base.config.budget.steps))
    )[0]
    start = fitted(blue)
    after = changed(start, "a red mushroom", settings_of("restyle_splat"), steps)
    return reported(
        "restyle", red, {"a red one, made anew": fresh, "the blue one": start, "restyled": after}, start, show
    )


def refine(steps: int | None, show: Show) -> Rows:
    thing = world.parse("a red mushroom")
    whole = fitted(thing)
    start = broken(whole, seed=0)
    after = changed(start, "a red mushroom", settings_of("refine_splat"), steps)
    return reported(
        "refine", thing, {"a whole one": whole, "the broken one": start, "refined": after}, start, show
    )


@dataclass(frozen=True)
class Settings:
    """The settings of a run in a workflow."""

    guidance: ImageTargets
    config: DreamConfig
    cameras: CameraRanges
    blend: ViewBlend


def settings_of(workflow: str) -> Settings:
    graph = json.loads((ROOT / "workflows" / "api" / f"{workflow}.json").read_text(encoding="utf-8"))
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    of = lambda kind, node, prefix="": {
        name: inputs[node][prefix + name] for name in bounds_of(kind) if prefix + name in inputs[node]
    }
    return Settings(
        ImageTargets(**of(ImageTargets, "LucidTargets", "preset.")),
        replace_settings(
            PRESETS[inputs["LucidDream"]["preset"]],
            **of(Budget, "LucidDream", "preset."),
            **of(Task, "LucidDream"),
        ),
        CameraRanges(**of(CameraRanges, "LucidCameras")),
        ViewBlend(**of(ViewBlend, "LucidPrompt")),
    )


def changed(
    start: Splats, prompt: str, settings: Settings, steps: int | None = None, seed: int = 0
) -> Splats:
    """The result of Lucid Dream for `start`."""
    prior = DemoPrior()
    config = replace_settings(settings.config, steps=steps or settings.config.budget.steps)
    prompts = prior.prompts(prompt, blend=settings.blend)
    source = GuidanceSource(prior, settings.guidance, prompts)
    *_, last = loop.distil(start, source, settings.cameras, config, seed, "numba")
    return last.splats


def fitted(thing: world.Thing, count: int = 8000, seed: int = 0) -> Splats:
    """A splat of `thing`, fitted to its true images by least squares of colour and coverage."""
    generator = torch.Generator().manual_seed(seed)
    views = cases.workflow().cameras.sample(FIT_VIEWS, 0.0, 128, 128, generator)
    poses, Ks = views.cameras.viewmats, views.cameras.Ks
    rgb, mask = (
        torch.from_numpy(x)
        for x in world.render(
            thing,
            views.azimuth_rad,
            views.elevation_rad,
            2 * (64 / Ks[:, 0, 0]).atan(),
            128,
            radius=poses[:, :3, 3].norm(dim=-1),
        )
    )
    params = parameters(PointCloud(count=count, size=1.2).splats(seed))
    optimizer = Adam([{"params": [params[name]], "lr": rate} for name, rate in FIT_RATES.items()])
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / FIT_STEPS))
    for _ in range(FIT_STEPS):
        picks = torch.randperm(FIT_VIEWS, generator=generator)[:FIT_BATCH]
        seen_by = replace(views.cameras, viewmats=poses[picks], Ks=Ks[picks])
        render = rasterize(activate(params), seen_by, 128, 128, background=torch.ones(3), backend="numba")
        loss = (render.rgb - rgb[picks]).square().mean() + (
            render.alpha[..., 0] - mask[picks]
        ).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return activate(params).detach()


def broken(splats: Splats, seed: int) -> Splats:
    """`splats` with a sixth of the Gaussians displaced, a sixth in random colours and a sixth missing."""
    generator = torch.Generator().manual_seed(seed)
    displaced, recolored, missing, _ = torch.randperm(len(splats), generator=generator).tensor_split(
        [len(splats) * part // 6 for part in (1, 2, 3)]
    )
    means, sh = splats.means.clone(), splats.sh.clone()
    means[displaced] += DISPLACED * torch.randn(len(displaced), 3, generator=generator)
    sh[recolored, 0] = (torch.rand(len(recolored), 3, generator=generator) - 0.5) / SH_C0
    there = torch.ones(len(splats), dtype=torch.bool)
    there[missing] = False
    return replace(splats, means=means, sh=sh).map(lambda x: x[there])


def reported(name: str, thing: world.Thing, splats: dict[str, Splats], start: Splats, show: Show) -> Rows:
    """Measure each of `splats` against `thing`, and write them and their images, below the true ones, to
    FOLDER.
    """
    truth, rows, pictures = score.truth(thing, VIEWS), {}, [score.truth(thing, 8).rgb]
    silhouette = alpha_of(start, truth)
    for label, each in splats.items():
        scale, rgb, alpha = score.best_view(each, truth)
        rows[f"{name}: {label}"] = row = {
            "psnr": score.psnr(rgb, truth.rgb),
            "iou": score.iou(alpha > 0.5, truth.mask > 0.5),
            "color": measures.color_error(rgb, alpha, truth.rgb, truth.mask),
            "kept": score.iou(alpha_of(each, truth) > 0.5, silhouette > 0.5),
        }
        if show:
            show(f"{name}: {label}", row)
        pictures.append(score.render(each, thing, scale, 8))
        ply.write(FOLDER / f"{name}_{label.replace(' ', '_').replace(',', '')}.ply", each)
    video.write_png(FOLDER / f"{name}.png", video.contact_sheet(torch.cat(pictures), 8))
    return rows


def alpha_of(splats: Splats, truth: score.Truth) -> Tensor:
    """Alpha (V, S, S) at the splat's own scale, not the fitted one."""
    with torch.no_grad():
        return rasterize(splats, truth.cameras, score.SIZE, score.SIZE, backend="numba").alpha[..., 0]
