"""ISM against SDS on a radiance field and on splats, at equal numbers of model evaluations (the paper's
figure 5b). Closed prompts name the colour; open ones ("a mug") leave it free, and are scored against the
nearest of the eight right answers.

Writes a contact sheet for each representation, method and kind of prompt to output/benchmarks/nerf/. Results
of all cases are in its folder cases/; existing ones are not run again. Delete that folder after a change of
the code.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from lucid_core.settings import require

from .cases import COLOR_OF, CONVERTED, KINDS_OF_PROMPT, REPRESENTATIONS, THINGS, plan
from .run import kept, run, summaries, write_sheets

FOLDER = Path(__file__).resolve().parents[2] / "output" / "benchmarks" / "nerf"
METHODS = ("ism", "sds", "sds_high", "sds_100")
SEEDS = (0, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--things", nargs="+", default=THINGS, help="objects of the demo world")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of `benchmarks quality`")
    parser.add_argument(
        "--representations", nargs="+", default=REPRESENTATIONS, choices=(*REPRESENTATIONS, CONVERTED)
    )
    parser.add_argument("--kinds", nargs="+", default=KINDS_OF_PROMPT, choices=KINDS_OF_PROMPT)
    parser.add_argument("--budget", type=float, default=1.0, help="share of the 3,120 evaluations of `ism`")


def main(
    as_json: bool,
    things: list[str],
    seeds: list[int],
    methods: list[str],
    representations: list[str],
    kinds: list[str],
    budget: float,
) -> None:
    try:
        require(all(thing in COLOR_OF for thing in things), "things", things, f"among {', '.join(COLOR_OF)}")
        cases = plan(things, seeds, methods, representations, kinds, budget)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    store = FOLDER / "cases"
    store.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = {}
    for number, case in enumerate(cases, 1):
        results[case] = kept(case, store) or run(case, store)
        line = f"{number} of {len(cases)}: {case.name}, {case.case.prompt}: {results[case].psnr:.2f} dB"
        print(line, file=sys.stderr, flush=True)
    rows = summaries(results)
    write_sheets(results, FOLDER)
    if as_json:
        print(json.dumps(rows))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{x:,.3f}" if isinstance(x, float) else str(x) for x in row.values()) + " |")
