"""Agreement of Lucid Score with the truth: splats of known quality, made from the demo world, and judged by
the demo prior.

spearman: rank correlation of the score with PSNR against the prompt's object. auc: area under the ROC curve
of the second-face margin, of splats that are given two faces against all others. spearman_faces: rank
correlation of that margin with the measure `faces`, over the objects that have a front.

The score's definition was chosen on other objects (a blue snowman, a purple house, a red mushroom).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy.stats import spearmanr

from demo import measures, score, splats, world
from lucid_core.io import ply
from lucid_core.score.classifier import JudgeSettings, Verdict
from lucid_core.splats import Splats

from .quality.run import FACED, verdict_of

PROMPTS = (
    "an orange snowman",
    "a green snowman",
    "a cyan house",
    "a yellow house",
    "a green mug",
    "a pink mug",
    "a purple mushroom",
    "a yellow cone",
)
DEFECTS = ("mirrored", "turned", "squashed", "blurred", "fog", "wrong color", "wrong thing")
TWO_FACES = "two faces"
EACH = 5  # splats of one object
TRUE_VIEWS = 16
HEADINGS = "object", "version", "PSNR", "faces", "score", "second face", "many faces", "evaluations"


@dataclass(frozen=True)
class Row:
    """One splat. faces: None for an object whose front and back look the same."""

    prompt: str
    version: str
    psnr: float
    faces: float | None
    score: float
    second_face: float
    second_face_error: float
    many_faces_rate: float
    evaluations: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="objects of the demo world")
    parser.add_argument("--evaluations", type=int, default=300, help="most model evaluations for a splat")
    parser.add_argument(
        "--finished",
        type=Path,
        help="also the .ply files in this folder, as of output/benchmarks/quality/cases",
    )


def main(as_json: bool, prompts: list[str], evaluations: int, finished: Path | None) -> None:
    torch.set_num_threads(1)
    settings, rows = JudgeSettings(max_evaluations=evaluations), []
    show = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    show(f"| {' | '.join(HEADINGS)} |\n|---|---|{'---:|' * (len(HEADINGS) - 2)}")
    for prompt, version, one in (*made(prompts), *(finished_in(finished) if finished else ())):
        rows.append(row_of(settings, prompt, version, one))
        show(line(rows[-1]))
    found = summary(rows)
    print(json.dumps(found) if as_json else "\n" + ", ".join(f"{k} {v}" for k, v in found.items()))


def made(prompts: list[str]) -> Iterator[tuple[str, str, Splats]]:
    """(prompt, version, splat): each object as it is, those with a front with two faces, and other defects in
    turn.
    """
    turn = 0
    for prompt in prompts:
        thing = world.parse(prompt)
        if thing is None:
            raise SystemExit(f"error: prompts has {prompt!r}; it must be an object of the demo world")
        versions = ["true", *([TWO_FACES] if thing.kind in FACED else [])]
        while len(versions) < EACH:
            versions.append(DEFECTS[turn % len(DEFECTS)])
            turn += 1
        for version in versions:
            yield prompt, version, version_of(thing, version)


def version_of(thing: world.Thing, version: str) -> Splats:
    """The object as a splat, with the defect `version`."""
    if version == "wrong color":
        return splats.splat_of(splats.other_color(thing))
    if version == "wrong thing":
        return splats.splat_of(splats.other_kind(thing))
    one = splats.splat_of(thing)
    return splats.DEFECTS[version](one) if version in splats.DEFECTS else one


def finished_in(folder: Path) -> Iterator[tuple[str, str, Splats]]:
    """(prompt, version, splat) of the finished runs of `benchmarks quality` in a folder."""
    for path in sorted(folder.glob("*.ply")):
        words, _, seed = path.stem.rpartition("-")[0].rpartition("-")
        prompt = words.replace("-", " ")
        if world.parse(prompt) is None:
            raise SystemExit(f"error: {path} is not named like a-green-mug-1-0123456789ab.ply")
        yield prompt, f"finished, seed {seed}", ply.read(path)


def row_of(settings: JudgeSettings, prompt: str, version: str, one: Splats) -> Row:
    thing = world.parse(prompt)
    truth = score.truth(thing, TRUE_VIEWS)
    _, rgb, _ = score.best_view(one, truth)
    faces = measures.faces(rgb, truth.rgb, truth.mask) if thing.kind in FACED else None
    verdict = verdict_of(one, prompt, settings)
    return Row(prompt, version, score.psnr(rgb, truth.rgb), faces, *numbers_of(verdict))


def numbers_of(verdict: Verdict) -> tuple[float, float, float, float, int]:
    second = verdict.second_face
    return verdict.score, second.mean, second.error, verdict.many_faces_rate, verdict.evaluations


def summary(rows: list[Row]) -> dict[str, float | int]:
    """The numbers for --json."""
    faced = [row for row in rows if row.faces is not None]
    margins = {
        is_two: [row.second_face for row in rows if (row.version == TWO_FACES) == is_two]
        for is_two in (True, False)
    }
    return {
        "spearman": rank_correlation([(row.score, row.psnr) for row in rows]),
        "auc": round(area_under_roc(margins[True], margins[False]), 3),
        "evaluations": max(row.evaluations for row in rows),
        "splats": len(rows),
        "spearman_faces": rank_correlation([(row.second_face, row.faces) for row in faced]),
    }


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's; NaN for fewer than two pairs."""
    return round(float(spearmanr(*zip(*pairs)).statistic), 3) if len(pairs) > 1 else float("nan")


def area_under_roc(positive: list[float], negative: list[float]) -> float:
    """The share of pairs in which the positive one is higher; equal ones count as half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def line(row: Row) -> str:
    """A row of the table."""
    faces = "-" if row.faces is None else f"{row.faces:.2f}"
    return (
        f"| {row.prompt} | {row.version} | {row.psnr:.2f} | {faces} | {row.score:.3f} | "
        f"{row.second_face:+.3f} ± {row.second_face_error:.3f} | {row.many_faces_rate:.0%} | "
        f"{row.evaluations} |"
    )
