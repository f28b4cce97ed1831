from __future__ import annotations

import json
import math
import string
from typing import Any

import torch
from comfy_api.latest import IO

from ..lucid_core.errors import BadInput
from ..lucid_core.rasterize import Renderer
from ..lucid_core.score.measures import measure_splats, measure_views
from ..lucid_core.score.sheet import caption, contact_sheet, side_by_side
from ..lucid_core.score.views import turntable_views
from ..lucid_core.settings import require
from . import host
from .inputs import CATEGORY, backend_input, errors_of

ELEVATION_DEG = 15.0
SHEET_VIEWS = 4  # views of each splat on the contact sheet
MOST_SPLATS = 8
NUMBERS = ("score", "many_faces_rate", "second_face")  # of a report, that are shown
SAME_JUDGE = ("prompt", "evaluations", "noise_levels")  # must be equal where scores are compared


class LucidSeeds(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidSeeds",
            display_name="Lucid Seeds",
            category=CATEGORY,
            search_aliases=["seed list", "several seeds", "best of n", "batch of seeds"],
            description="A list of seeds. Every node after it runs once for each seed, up to Lucid Best Of, "
            "which takes the results together.",
            inputs=[
                IO.Int.Input(
                    "first_seed",
                    default=0,
                    min=0,
                    max=2**64 - 1 - 64,
                    control_after_generate=True,
                    tooltip="The first seed; the others follow it.",
                ),
                IO.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Number of seeds, and of runs of the nodes after it.",
                ),
            ],
            outputs=[
                IO.Int.Output(
                    display_name="seed", is_output_list=True, tooltip="The seeds, for Lucid Dream's `seed`."
                )
            ],
        )

    @classmethod
    def execute(cls, first_seed, count) -> IO.NodeOutput:
        return IO.NodeOutput([first_seed + i for i in range(count)])


class LucidBestOf(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidBestOf",
            display_name="Lucid Best Of",
            category=CATEGORY,
            search_aliases=["best of n", "pick best splat", "select splat by score", "contact sheet"],
            description="Takes all splats of a list, such as those of Lucid Seeds, and returns the one with "
            "the highest score, with a contact sheet of all.",
            is_input_list=True,
            inputs=[
                IO.Splat.Input("splat", tooltip="The splats: the output of a node that ran once per seed."),
                IO.Float.Input(
                    "score",
                    force_input=True,
                    tooltip="A score for each splat, from Lucid Score; the highest is the best.",
                ),
                IO.Int.Input(
                    "size",
                    default=192,
                    min=64,
                    max=1024,
                    step=8,
                    tooltip="Side of each view on the contact sheet in pixels.",
                ),
                backend_input(),
            ],
            outputs=[
                IO.Splat.Output(display_name="splat", tooltip="The splat with the highest score."),
                IO.Int.Output(display_name="index", tooltip="Its place in the list; 0 = the first."),
                IO.Float.Output(display_name="score", tooltip="Its score."),
                IO.Image.Output(
                    display_name="sheet",
                    tooltip="Front, right, back and left of every splat, with its score; the best is green.",
                ),
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, splat, score, size, backend=("auto",)) -> IO.NodeOutput:
        with errors_of(cls):
            items = [item for one in splat for item in host.to_splats(one)]
            require_scores(items, score)
            best = max(range(len(items)), key=lambda i: score[i])
            rows = []
            for i, item in enumerate(items):
                views, _ = turntable_views(
                    item, SHEET_VIEWS, size[0], ELEVATION_DEG, Renderer(backend[0]), check_after_view
                )
                row = side_by_side(views[:, None].unbind(0))
                said = f"{i}: score {score[i]:.3f}" + ("   best" if i == best else "")
                rows.append(caption(row, [said], i == best))
            host.show_text(
                host.node_of_page(cls.hidden), f"splat {best} of 0 to {len(items) - 1} has the highest score"
            )
            made = host.from_splats(items[best])
            return IO.NodeOutput(made, best, score[best], contact_sheet(rows))


def require_scores(items: list, scores: list[float]) -> None:
    """Raise BadInput unless there is a finite score for each of `items`."""
    if len(items) != len(scores):
        raise BadInput(
            "score", f"has {len(scores)} numbers for {len(items)} splats; connect a Lucid Score of each splat"
        )
    bad = [i for i, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        raise BadInput("score", f"is not a finite number for splat {bad[0]}; leave that splat out")


def check_after_view(done: int, picture: torch.Tensor) -> None:
    host.check_interrupt()


def compare_outputs() -> list[IO.Output]:
    return [
        IO.Image.Output(display_name="image", tooltip="The turntable, for Save Image or a video."),
        IO.String.Output(
            display_name="preferred",
            tooltip="Label of the splat with the highest score; empty without reports.",
        ),
        IO.Image.Output(
            display_name="sheet",
            tooltip="Contact sheet: front, right, back and left of every splat, with its numbers.",
        ),
    ]


class LucidCompare(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        splat = IO.Splat.Input("splat", tooltip="A splat to compare.")
        report = IO.String.Input("report", optional=True, tooltip="Its report, from Lucid Score.")
        return IO.Schema(
            node_id="LucidCompare",
            display_name="Lucid Compare",
            category=CATEGORY,
            search_aliases=["side by side", "compare splats", "user study", "turntable comparison"],
            description="Shows splats side by side in one turntable, with their numbers below. With reports "
            "of Lucid Score it says which one the model prefers.",
            inputs=[
                IO.Autogrow.Input(
                    "splats",
                    template=IO.Autogrow.TemplatePrefix(splat, prefix="splat", min=2, max=MOST_SPLATS),
                    tooltip="Splats to compare, 2 to 8.",
                ),
                IO.Autogrow.Input(
                    "reports",
                    template=IO.Autogrow.TemplatePrefix(report, prefix="report", min=0, max=MOST_SPLATS),
                    optional=True,
                    tooltip="A report of Lucid Score for each splat, in their order. None = measures without "
                    "a model.",
                ),
                IO.String.Input(
                    "labels",
                    default="",
                    tooltip="Names of the splats, separated by |, e.g. 'ISM | SDS'. Empty = A, B, C.",
                ),
                IO.Int.Input(
                    "frames", default=24, min=1, max=480, tooltip="Frames of the turntable, one full turn."
                ),
                IO.Int.Input(
                    "size",
                    default=320,
                    min=64,
                    max=1024,
                    step=8,
                    tooltip="Side of each splat's view in pixels.",
                ),
                backend_input(),
            ],
            outputs=compare_outputs(),
        )

    @classmethod
    def execute(cls, splats, labels, frames, size, reports=None, backend="auto") -> IO.NodeOutput:
        with errors_of(cls):
            items = [host.one_splat(one) for one in splats.values() if one is not None]
            names = labels_of(labels, len(items))
            found = reports_of(reports, len(items))
            best = preferred(found)
            progress, columns, rows = host.Progress(len(items) * frames), [], []
            shown = min(SHEET_VIEWS, frames)
            for i, item in enumerate(items):

                def show(done, picture, i=i):
                    host.check_interrupt()
                    progress.update(i * frames + done, picture)

                views, alpha = turntable_views(item, frames, size, ELEVATION_DEG, Renderer(backend), show)
                measures = {**measure_views(views, alpha), **measure_splats(item, alpha)}
                lines = numbers_of(names[i], measures, found[i] if found else None, i == best)
                columns.append(caption(views, lines, i == best))
                row = side_by_side([views[[k * frames // shown]] for k in range(shown)])
                rows.append(caption(row, lines, i == best))
            label = "" if best is None else names[best]
            return IO.NodeOutput(side_by_side(columns), label, contact_sheet(rows))


def labels_of(labels: str, count: int) -> list[str]:
    """A label for each of `count` splats. Raises BadSetting for another number of labels."""
    if not labels.strip():
        return list(string.ascii_uppercase[:count])
    names = [name.strip() for name in labels.split("|")]
    require(len(names) == count, "labels", repr(labels), f"empty or {count} names, separated by |")
    return names


def reports_of(reports: dict[str, str | None] | None, count: int) -> list[dict[str, Any]]:
    """The reports of Lucid Score; empty if there are none. Raises BadInput unless there is one per splat."""
    texts = [text for text in (reports or {}).values() if text]
    if not texts:
        return []
    if len(texts) != count:
        raise BadInput("reports", f"are {len(texts)} for {count} splats; connect one for each, or none")
    try:
        found = [json.loads(text) for text in texts]
        known = all({*NUMBERS, *SAME_JUDGE} <= one.keys() for one in found)
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise BadInput("reports", "hold something else than reports of Lucid Score; connect these")
    return found


def preferred(reports: list[dict[str, Any]]) -> int | None:
    """The index of the highest score; None without reports. Raises BadInput for scores that say nothing about
    each other.
    """
    if not reports:
        return None
    for name in SAME_JUDGE:
        values = {repr(report[name]) for report in reports}
        if len(values) > 1:
            differ = f"differ in {name}: {', '.join(sorted(values))}"
            raise BadInput("reports", f"{differ}; score all splats with one model, prompt and settings")
    return max(range(len(reports)), key=lambda i: reports[i]["score"])


def numbers_of(
    label: str, measures: dict[str, Any], report: dict[str, Any] | None, is_best: bool
) -> list[str]:
    """The lines under a splat."""
    lines = [label + ("   preferred" if is_best else "")]
    if report:
        face = report["second_face"]
        lines += [
            f"score {report['score']:.3f}, many faces {report['many_faces_rate']:.0%}",
            f"second face {face['mean']:+.3f} +- {face['error']:.3f}",
        ]
    return [
        *lines,
        f"{measures['splats']:,} Gaussians, floaters {measures['floaters']:.1%}",
        f"fog {measures['fog']:.2f}, high frequency {measures['high_frequency']:.2%}",
    ]
