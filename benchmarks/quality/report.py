"""The table and the contact sheets of finished cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo import score, world
from lucid_core.io import ply, video

if TYPE_CHECKING:
    from .cases import Case
    from .run import Result

Row = dict[str, float | None]
VIEWS = 8  # images per row of a contact sheet
MEANS = {  # measures whose mean over the cases is reported -> decimals
    "psnr": 2,
    "ssim": 3,
    "iou": 3,
    "sharpness": 2,
    "faces": 2,
    "color": 3,
    "mud": 3,
    "fog": 2,
    "score": 3,
    "evaluations": 0,
    "seconds": 0,
    "steps": 0,
}
DECIMALS = MEANS | {"worst psnr": 2, "cases": 0}


def summaries(results: Mapping[Case, Result]) -> dict[str, Row]:
    """Label -> means over its cases (faces: over those with a value), the worst PSNR, the number of cases."""
    by_label: dict[str, list[Result]] = {}
    for case, result in results.items():
        by_label.setdefault(case.label, []).append(result)
    return {label: _summary(many) for label, many in by_label.items()}


def _summary(results: list[Result]) -> Row:
    values = {name: [v for result in results if (v := getattr(result, name)) is not None] for name in MEANS}
    means = {name: sum(many) / len(many) if many else None for name, many in values.items()}
    return means | {"worst psnr": min(values["psnr"]), "cases": len(results)}


def brief(rows: dict[str, Row]) -> dict[str, Row]:
    """The columns for --json."""
    return {
        label: {name: row[name] for name in row if name not in ("steps", "worst psnr")}
        for label, row in rows.items()
    }


def table(rows: dict[str, Row]) -> str:
    """A Markdown table with aligned columns."""
    cell = lambda value, decimals: "-" if value is None else f"{value:,.{decimals}f}"
    body = [
        [label, *(cell(row[name], decimals) for name, decimals in DECIMALS.items())]
        for label, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(["method", *DECIMALS], *body)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = lambda line: [
        line[0].ljust(widths[0]),
        *(text.rjust(width) for text, width in zip(line[1:], widths[1:])),
    ]
    return "".join(f"| {' | '.join(padded(line))} |\n" for line in (["method", *DECIMALS], rule, *body))


def write_sheets(results: Mapping[Case, Result], folder: Path) -> None:
    """Write a .png for each label: for each prompt a row of true images, then a row for each seed."""
    by_label: dict[str, dict[str, list[Tensor]]] = {}
    for case, result in results.items():
        thing = world.parse(case.prompt)
        rows = by_label.setdefault(case.label, {}).setdefault(case.prompt, [score.truth(thing, VIEWS).rgb])
        rows.append(score.render(ply.read(folder / "cases" / f"{case.key}.ply"), thing, result.scale, VIEWS))
    for label, prompts in by_label.items():
        frames = torch.cat([row for rows in prompts.values() for row in rows])
        video.write_png(folder / f"{label}.png", video.contact_sheet(frames, VIEWS))
