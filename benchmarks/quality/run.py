"""Runs cases, measures them and saves the results."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from demo import measures, score, world
from lucid_core.field.grid import Field
from lucid_core.guidance.mixing import GuidanceSource, MixedSource
from lucid_core.io import ply
from lucid_core.io.atomic import atomic_path
from lucid_core.optimize import loop as dream
from lucid_core.optimize.loop import Step, Value
from lucid_core.rasterize import Renderer
from lucid_core.score.classifier import JudgeSettings, Verdict, judge
from lucid_core.score.views import turntable_views
from lucid_core.settings import replace_settings
from lucid_core.splats import Splats

from . import report
from .cases import Case, text_prior, workflow

VIEWS = 32
FACED = ("snowman", "house", "mug")  # the other kinds look the same from front and back, except for the light


@dataclass(frozen=True)
class Result:
    """Result of one case; the measures are those of demo.score and demo.measures. scale: the fitted scale.

    faces: None for an object whose front and back look the same. evaluations: model evaluations. seconds:
    time of the optimisation on one thread. stopped: why the run ended early; None if it did not. score: of
    Lucid Score, by the demo prior; None in older files.
    """

    psnr: float
    ssim: float
    iou: float
    sharpness: float
    faces: float | None
    color: float
    mud: float
    fog: float
    evaluations: int
    seconds: float
    steps: int
    scale: float
    stopped: str | None
    score: float | None = None


def run(case: Case, folder: Path) -> Result:
    """Optimise and measure one case, and save it in `folder`. The .json is written last, so a case with a
    .json is complete.
    """
    splats, facts = distil(case)
    result = measure(splats, world.parse(case.prompt), facts)
    ply.write(folder / f"{case.key}.ply", splats)
    facts = json.dumps(asdict(result) | {"settings": repr(case)}, indent=1) + "\n"
    with atomic_path(folder / f"{case.key}.json") as part:
        part.write_text(facts, encoding="utf-8")
    return result


def kept(case: Case, folder: Path) -> Result | None:
    """The saved result of a case; None if it has not been run."""
    try:
        facts = json.loads((folder / f"{case.key}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    facts.pop("settings")
    return Result(**facts)


def distil(case: Case) -> tuple[Splats, dict[str, Any]]:
    """The splat, and the facts of `finish`."""
    source, splats = case.source(), case.start.splats(case.start_seed)
    return finish(dream.distil(splats, source, case.cameras, case.config, case.seed, "numba"), source)


def finish(
    steps: Iterator[Step[Value]], source: GuidanceSource | MixedSource
) -> tuple[Value, dict[str, Any]]:
    """The result of a run, and the fields of Result that do not come from its images. A run that diverges
    returns its last valid result; raises its error if there is none.
    """
    step, stopped, asked, begun = 0, None, source.evaluations, time.perf_counter()
    try:
        for done in steps:
            step, value = done.step, done.result
    except (FloatingPointError, RuntimeError) as error:
        if step == 0:
            raise
        stopped = str(error)
    seconds = time.perf_counter() - begun
    return value, {
        "evaluations": source.evaluations - asked,
        "seconds": seconds,
        "steps": step,
        "stopped": stopped,
    }


def measure(splats: Splats | Field, thing: world.Thing, facts: dict[str, Any]) -> Result:
    """All measures; a field has no `score`, which is of splats alone."""
    truth = score.truth(thing, VIEWS)
    scale, rgb, alpha = score.best_view(splats, truth)
    prompt = f"a {thing.color} {thing.kind}"
    verdict = verdict_of(splats, prompt).score if isinstance(splats, Splats) else None
    return Result(
        psnr=score.psnr(rgb, truth.rgb),
        ssim=measures.ssim(rgb, truth.rgb),
        iou=score.iou(alpha > 0.5, truth.mask > 0.5),
        sharpness=measures.sharpness(rgb, truth.rgb),
        faces=measures.faces(rgb, truth.rgb, truth.mask) if thing.kind in FACED else None,
        color=measures.color_error(rgb, alpha, truth.rgb, truth.mask),
        mud=measures.mud(rgb, alpha, truth.rgb, truth.mask),
        fog=measures.fog(rgb, truth.mask),
        scale=scale,
        score=verdict,
        **facts,
    )


def verdict_of(splats: Splats, prompt: str, settings: JudgeSettings | None = None) -> Verdict:
    """The demo prior's verdict on the views of a splat."""
    settings, prior = settings or JudgeSettings(), text_prior()
    images, _ = turntable_views(splats, settings.views, score.SIZE, score.ELEVATION_DEG, Renderer("numba"))
    return judge(prior, images, prior.prompts(prompt), settings)


def run_all(cases: list[Case], folder: Path, jobs: int) -> dict[Case, Result]:
    """The results of all cases. Cases without a result in `folder` are run, `jobs` in parallel; its
    table.md is updated after each.
    """
    store = folder / "cases"
    store.mkdir(parents=True, exist_ok=True)
    by_key = {case.key: case for case in cases}  # the same settings under two labels are run once
    results = {key: result for key, case in by_key.items() if (result := kept(case, store))}
    missing = [case for key, case in by_key.items() if key not in results]
    begun = time.monotonic()
    for count, (case, result) in enumerate(_finished(missing, store, jobs), 1):
        results[case.key] = result
        _write_table(cases, results, folder)
        left = (time.monotonic() - begun) / count * (len(missing) - count) / 60
        print(
            f"{count} of {len(missing)}: {case.label}, {case.prompt}, seed {case.seed}: {result.psnr:.2f} dB "
            f"in {result.seconds:.0f} s; {left:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
    return _write_table(cases, results, folder)


def _write_table(cases: list[Case], by_key: dict[str, Result], folder: Path) -> dict[Case, Result]:
    """Write the table of the cases that have a result; returns these results, in the order of `cases`."""
    results = {case: by_key[case.key] for case in cases if case.key in by_key}
    (folder / "table.md").write_text(report.table(report.summaries(results)), encoding="utf-8")
    return results


def _finished(cases: list[Case], store: Path, jobs: int) -> Iterator[tuple[Case, Result]]:
    """Yields cases as they finish. Each runs on one thread of a worker process; workers end with this
    process.
    """
    if not cases:
        return
    with multiprocessing.get_context("spawn").Pool(
        min(jobs, len(cases)), _leave_interrupts_to_the_parent
    ) as pool:
        yield from pool.imap_unordered(_run_apart, [(case, store) for case in cases])


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_apart(job: tuple[Case, Path]) -> tuple[Case, Result]:
    _warm_up()
    return job[0], run(*job)


@lru_cache
def _warm_up() -> None:
    """Run one step, so that compilation and loading at first use do not count in a method's seconds."""
    torch.set_num_threads(1)
    case = workflow()
    distil(replace(case, config=replace_settings(case.config, steps=1)))
