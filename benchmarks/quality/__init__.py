"""Quality of each method on objects of the demo world, compared with the truth. All methods have the start,
cameras, optimiser and seeds of the shipped workflow, and the same number of model evaluations unless
they end in image targets.

Writes table.md and a contact sheet for each method to output/benchmarks/quality/: for each prompt a row of
true images, then a row for each seed. Splats and results of all cases are in its folder cases/; existing
cases are not run again. Delete that folder after a change of the code.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from lucid_core.settings import require

from . import report
from .cases import plan
from .methods import METHODS
from .run import run_all

FOLDER = Path(__file__).resolve().parents[2] / "output" / "benchmarks" / "quality"
PROMPTS = (
    "a red mushroom",
    "a blue snowman",
    "a purple house",
    "a green mug",
    "a yellow cone",
    "a pink cube",
)
SEEDS = (0, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument(
        "--prompts", nargs="+", default=PROMPTS, help="objects of the demo world, each in quotes"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help=f"all, or some of: {', '.join(METHODS)}"
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        type=float,
        default=[1.0],
        help="fractions of the 3,120 model evaluations of `ism`; recipes: of their own steps",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cases to run in parallel, each on one thread")


def main(
    as_json: bool, prompts: list[str], seeds: list[int], methods: list[str], budget: list[float], jobs: int
) -> None:
    try:
        require(jobs >= 1, "jobs", jobs, "at least 1")
        cases = plan(prompts, seeds, methods, budget)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the worker processes are stopped too
    results = run_all(cases, FOLDER, jobs)
    rows = report.summaries(results)
    report.write_sheets(results, FOLDER)
    if as_json:
        print(json.dumps(report.brief(rows)))
        return
    print(report.table(rows))
    for case, result in results.items():
        if result.stopped:
            print(
                f"{case.label}, {case.prompt}, seed {case.seed} stopped after step {result.steps}: "
                f"{result.stopped}"
            )
    print(f"Pictures and cases: {FOLDER}")
