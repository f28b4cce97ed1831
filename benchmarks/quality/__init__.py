"""What each method makes of the demo world's things, beside the truth: the same start, cameras, optimiser and seeds, and
equally many model evaluations, all of it as the shipped workflow has it.

output/benchmarks/quality/ gets table.md and a sheet of pictures for each method: for each prompt a row of the truth, then
one for each seed. The splats and numbers of all cases lie in its folder cases/; what is there is not run again. After a
change of the code delete that folder.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from lucid_core.checks import require

from . import report
from .cases import plan
from .methods import METHODS
from .run import run_all

FOLDER = Path(__file__).resolve().parents[2] / "output" / "benchmarks" / "quality"
PROMPTS = ("a red mushroom", "a blue snowman", "a purple house", "a green mug", "a yellow cone", "a pink cube")
SEEDS = (0, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="things of the demo world, each in quotes")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"all, or some of: {', '.join(METHODS)}")
    parser.add_argument("--budget", nargs="+", type=float, default=[1.0], help="model evaluations as shares of the workflow's")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once, each on one thread")


def main(as_json: bool, prompts: list[str], seeds: list[int], methods: list[str], budget: list[float], jobs: int) -> None:
    try:
        require(jobs >= 1, "jobs", jobs, "at least 1")
        cases = plan(prompts, seeds, methods, budget)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes stop with us
    results = run_all(cases, FOLDER, jobs)
    rows = report.summaries(results)
    report.write_sheets(results, FOLDER)
    if as_json:
        print(json.dumps(report.brief(rows)))
        return
    print(report.table(rows))
    for case, result in results.items():
        if result.stopped:
            print(f"{case.label}, {case.prompt}, seed {case.seed} stopped after step {result.steps}: {result.stopped}")
    print(f"Pictures and cases: {FOLDER}")
