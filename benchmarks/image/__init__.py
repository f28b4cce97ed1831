"""One picture to a splat: the camera model, the text model and both on objects of the demo world, compared
with the truth.

The picture is the true front view at elevation 15 (even seeds) or 30 (odd ones). Unseen views are those of
the turntable that are not the picture itself. Writes table.md and contact sheets to output/benchmarks/image/,
as `python -m benchmarks quality` does; existing cases are not run again.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from demo import score, world
from lucid_core.io import ply
from lucid_core.settings import require

from ..quality import PROMPTS, SEEDS, report
from ..quality.run import VIEWS, Result, run_all
from .cases import TEXT, Case, PictureCase, elevation_of, plan
from .methods import METHODS

FOLDER = Path(__file__).resolve().parents[2] / "output" / "benchmarks" / "image"


@dataclass(frozen=True)
class Row:
    """Means over the cases of one method; faces over those with a value. psnr: of the unseen views;
    front_psnr: of the picture's own view. best: number of cases with the highest psnr of all methods.
    """

    psnr: float
    best: int
    front_psnr: float
    iou: float
    faces: float | None
    mud: float
    evaluations: float
    cases: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [*METHODS, TEXT]
    parser.description = __doc__
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="objects of the demo world")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--methods", nargs="+", default=names, help=f"some of: {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=1, help="cases to run in parallel, each on one thread")


def main(as_json: bool, prompts: list[str], seeds: list[int], methods: list[str], jobs: int) -> None:
    try:
        require(jobs >= 1, "jobs", jobs, "at least 1")
        cases = plan(prompts, seeds, methods)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the worker processes are stopped too
    results = run_all(cases, FOLDER, jobs)
    report.write_sheets(results, FOLDER)
    rows = summaries(results)
    print(json.dumps({name: vars(row) for name, row in rows.items()}) if as_json else table(rows))


def summaries(results: Mapping[Case | PictureCase, Result]) -> dict[str, Row]:
    """Label -> its row."""
    seen = {case: views(case, result) for case, result in results.items()}
    of_task: dict[tuple[str, int], list[float]] = {}
    for case, (psnr, _) in seen.items():
        of_task.setdefault((case.prompt, case.seed), []).append(psnr)
    rows = {}
    for label in dict.fromkeys(case.label for case in results):
        mine = [case for case in results if case.label == label]
        best = sum(seen[case][0] == max(of_task[case.prompt, case.seed]) for case in mine)
        rows[label] = _summary([seen[case] for case in mine], [results[case] for case in mine], best)
    return rows


def _summary(seen: list[tuple[float, float]], results: list[Result], best: int) -> Row:
    mean = lambda values: sum(values) / len(values)
    faces = [result.faces for result in results if result.faces is not None]
    return Row(
        psnr=mean([psnr for psnr, _ in seen]),
        best=best,
        front_psnr=mean([front for _, front in seen]),
        iou=mean([result.iou for result in results]),
        faces=mean(faces) if faces else None,
        mud=mean([result.mud for result in results]),
        evaluations=mean([result.evaluations for result in results]),
        cases=len(results),
    )


def views(case: Case | PictureCase, result: Result) -> tuple[float, float]:
    """PSNR in dB of the unseen views (mean) and of the picture's view."""
    thing, elevation_deg = world.parse(case.prompt), elevation_of(case.seed)
    splats = ply.read(FOLDER / "cases" / f"{case.key}.ply").scale_by(result.scale)
    around, front = score.truth(thing, VIEWS), score.truth(thing, 1, elevation_deg)
    first = 1 if elevation_deg == score.ELEVATION_DEG else 0  # view 0 of the turntable is the picture
    unseen = score.view(splats, around)[0][first:]
    return score.psnr(unseen, around.rgb[first:]), score.psnr(score.view(splats, front)[0], front.rgb)


def table(rows: Mapping[str, Row]) -> str:
    """A Markdown table."""
    names = [f.name for f in fields(Row)]
    cell = lambda value: "-" if value is None else f"{value:.4g}"
    lines = [f"| method | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(map(cell, vars(row).values()))} |")
    return "\n".join(lines)
