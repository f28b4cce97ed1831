"""The report of a score: all numbers as one dictionary, and the lines that a node shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .classifier import NEGATIVE, WORDS, Margin, Verdict
from .measures import Numbers

DIGITS = 4


@dataclass(frozen=True)
class Report:
    """What is known about one splat.

    text: its prompt, "" = unknown. measures: of `measures`. similarity: cosine of each view's embedding with
    that of the front; None = there are no embeddings.
    """

    verdict: Verdict
    text: str
    measures: Numbers
    similarity: list[float] | None = None

    def texts(self) -> dict[str, Margin]:
        """The margin of the prompt against the negative and each other text, by name."""
        names = ("negative", *self.verdict.others)
        return {name: self.verdict.margin_against(NEGATIVE + i) for i, name in enumerate(names)}

    def contents(self) -> dict[str, Any]:
        """All numbers, for JSON. `views` has a row per azimuth: the winning word and ln e of each text."""
        v = self.verdict
        second = v.second_face
        found = {
            "prompt": self.text,
            "score": v.score,
            "fit": v.fit,
            "many_faces_rate": v.many_faces_rate,
            "second_face": vars(second),
            "has_second_face": second.is_sure,
            "margins": {name: vars(margin) for name, margin in self.texts().items()},
            "confusion": dict(zip(WORDS, v.confusion().tolist())),
            "measures": self.measures,
            "evaluations": v.evaluations,
            "noise_levels": len(v.log_errors),
            "views": self.views(),
        }
        rounded: dict[str, Any] = round_numbers(found)
        return rounded

    def views(self) -> list[dict[str, Any]]:
        """The rows of `views` in `contents`."""
        v = self.verdict
        words, best, means = v.word.tolist(), v.best_word.tolist(), v.log_errors.mean(0).tolist()
        rows = [
            {
                "azimuth_deg": azimuth,
                "word": WORDS[words[i]],
                "best_word": WORDS[best[i]],
                "log_errors": dict(zip((*WORDS, "negative", *v.others), means[i])),
                "front_margin": vars(margin),
            }
            for i, (azimuth, margin) in enumerate(zip(v.azimuth_deg.tolist(), v.front_margins()))
        ]
        for row, cosine in zip(rows, self.similarity or []):
            row["similarity"] = cosine
        return rows

    def lines(self) -> list[str]:
        """What a node shows."""
        v, second = self.verdict, self.verdict.second_face
        faces = "a second face" if second.is_sure else "no second face"
        margins = ", ".join(f"{name} {m.mean:+.3f} ± {m.error:.3f}" for name, m in self.texts().items())
        return [
            f"score {v.score:.3f}, {faces} ({second.mean:+.3f} ± {second.error:.3f}), many-faces rate "
            f"{v.many_faces_rate:.0%}",
            f"margin against {margins}",
            f"{v.evaluations} model evaluations",
        ]


def round_numbers(value: Any) -> Any:
    """The same, nested, with floats rounded to DIGITS decimals."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: round_numbers(one) for name, one in value.items()}
    return [round_numbers(one) for one in value] if isinstance(value, (list, tuple)) else value
