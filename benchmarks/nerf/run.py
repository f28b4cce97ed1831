"""Runs the cases, measures and keeps them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.quality import run as quality
from benchmarks.quality.run import Result, measure
from demo import score
from lucid_core.field.grid import Field
from lucid_core.field.surface import find_surface, to_splats
from lucid_core.io import ply, video
from lucid_core.io.atomic import atomic_path
from lucid_core.optimize.radiance import distil_field, fit_splats_to_field
from lucid_core.splats import Splats

from .cases import FIT_STEPS, FieldCase

VIEWS = 8  # images per row of a contact sheet
DECIMALS = {"psnr": 2, "ssim": 3, "iou": 3, "sharpness": 2, "mud": 3, "evaluations": 0, "seconds": 0}


def run(case: FieldCase, folder: Path) -> Result:
    """Optimise and measure one case, and keep it in `folder`; the .json is written last."""
    value, facts = convert(case, folder) if case.surface else distil(case)
    answers = case.things()
    nearest = max(answers, key=lambda thing: score.score(value, thing).psnr) if answers[1:] else answers[0]
    if isinstance(value, Field):
        save_file({"grid": value.grid, "extent": torch.tensor(value.extent)}, folder / f"{case.key}.field")
    else:
        ply.write(folder / f"{case.key}.ply", value)
    result = measure(value, nearest, facts)
    facts = asdict(result) | {"answer": nearest.color, "settings": repr(case)}
    with atomic_path(folder / f"{case.key}.json") as part:
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return result


def kept(case: FieldCase, folder: Path) -> Result | None:
    """The kept result of a case; None if it has not been run."""
    path = folder / f"{case.key}.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{name: facts[name] for name in Result.__dataclass_fields__})


def distil(case: FieldCase) -> tuple[Splats | Field, dict[str, Any]]:
    """As `benchmarks.quality.run.distil`, of a field or a splat."""
    if case.field is None:
        return quality.distil(case.case)
    of, (start, settings) = case.case, case.field
    source = of.source()
    arguments = (source, of.cameras, of.config, settings, of.seed, "numba")
    return quality.finish(distil_field(start.field(), *arguments), source)


def convert(case: FieldCase, folder: Path) -> tuple[Splats, dict[str, Any]]:
    """The splat of the field of `case`, which is kept in `folder` and run if it is not there."""
    field_case = replace(case, surface=None)
    found = kept(field_case, folder) or run(field_case, folder)
    field, begun = read_field(folder / f"{field_case.key}.field"), time.perf_counter()
    splats = to_splats(find_surface(field, case.surface))
    for step in fit_splats_to_field(splats, field, FIT_STEPS, case.case.seed, "numba"):
        fitted = step
    facts = {name: getattr(found, name) for name in ("evaluations", "seconds", "steps", "stopped")}
    return fitted.splats, facts | {"seconds": found.seconds + time.perf_counter() - begun}


def read_field(path: Path) -> Field:
    tensors = load_file(path)
    return Field(tensors["grid"], float(tensors["extent"]))


def summaries(results: Mapping[FieldCase, Result]) -> list[dict[str, Any]]:
    """The rows of --json: means over the cases of one representation, method and kind of prompt."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for case, result in results.items():
        key = case.representation, case.case.label, case.prompt_kind
        groups.setdefault(key, []).append(result)
    return [
        {
            **dict(zip(("representation", "method", "prompt_kind"), key)),
            **{
                name: round(sum(getattr(one, name) for one in many) / len(many), digits or None)
                for name, digits in DECIMALS.items()
            },
            "cases": len(many),
        }
        for key, many in groups.items()
    ]


def write_sheets(results: Mapping[FieldCase, Result], folder: Path) -> None:
    """Write a .png for each representation, method and kind of prompt: the truth, then each case."""
    rows: dict[str, list[torch.Tensor]] = {}
    for case, result in results.items():
        path = folder / "cases" / case.key
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        (thing,) = (one for one in case.things() if one.color == facts["answer"])
        is_field = case.representation == "field"
        value = read_field(path.with_suffix(".field")) if is_field else ply.read(path.with_suffix(".ply"))
        images = rows.setdefault(case.name, [])
        images += [score.truth(thing, VIEWS).rgb, score.render(value, thing, result.scale, VIEWS)]
    for name, images in rows.items():
        sheet = video.contact_sheet(torch.cat(images), VIEWS)
        video.write_png(folder / f"{name.replace(' ', '_')}.png", sheet)
