"""A picture of a report: which word explains each azimuth, the margins, and the measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..optional import load
from .classifier import WORDS, Verdict
from .measures import Numbers
from .report import Report

WIDTH, HEIGHT = 1024, 576
FINE = 2  # drawn at this many times the size, then averaged
COLORS = {"front": (216, 90, 60), "side": (90, 160, 90), "back": (60, 100, 190)}
INK, PALE, PLUS, MINUS, ALARM = (50, 50, 50), (225, 225, 225), (90, 160, 90), (216, 90, 60), (190, 30, 30)
CENTRE, INNER, OUTER, RING = (270, 318), 60, 180, 14  # of the polar chart, in pixels
BARS = (600, 150, 990)  # left, top and right of the bars
FULL = 0.1  # margin between the best and the next word at which a sector has its full length


class Canvas:
    """An RGB picture, drawn in pixels of the final size."""

    def __init__(self, width: int, height: int) -> None:
        self.cv2 = load("cv2", "opencv-python-headless")
        self.pixels = np.full((height * FINE, width * FINE, 3), 255, np.uint8)

    def write(
        self,
        text: str,
        x: float,
        y: float,
        size: float = 0.55,
        color: Sequence[int] = INK,
        bold: bool = False,
    ) -> None:
        """ASCII text, whose lower left corner is at (x, y); other letters become question marks."""
        text = text.encode("ascii", "replace").decode()
        font, thickness = self.cv2.FONT_HERSHEY_SIMPLEX, FINE * (2 if bold else 1)
        self.cv2.putText(self.pixels, text, at(x, y), font, size * FINE, color, thickness, self.cv2.LINE_AA)

    def wedge(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        degrees: float,
        width: float,
        color: Any,
    ) -> None:
        """A sector of a ring about `centre`; `degrees` 0 is down, 90 to the right."""
        angles = np.radians(np.linspace(degrees - width / 2, degrees + width / 2, 24))
        around = np.stack([np.sin(angles), np.cos(angles)], -1)
        corners = np.concatenate([radii[0] * around, radii[1] * around[::-1]]) + centre
        self.cv2.fillPoly(self.pixels, [np.round(corners * FINE).astype(np.int32)], color, self.cv2.LINE_AA)

    def box(self, x: float, y: float, x_end: float, y_end: float, color: Any) -> None:
        self.cv2.rectangle(self.pixels, at(x, y), at(x_end, y_end), color, -1)

    def line(self, x: float, y: float, x_end: float, y_end: float, color: Any) -> None:
        self.cv2.line(self.pixels, at(x, y), at(x_end, y_end), color, FINE, self.cv2.LINE_AA)

    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3), of the final size."""
        height, width = (side // FINE for side in self.pixels.shape[:2])
        small: NDArray[np.uint8] = self.cv2.resize(
            self.pixels, (width, height), interpolation=self.cv2.INTER_AREA
        )
        return small


def at(x: float, y: float) -> tuple[int, int]:
    """A place in pixels of the final size -> one of the drawing."""
    return round(x * FINE), round(y * FINE)


def chart(report: Report) -> Tensor:
    """The picture of `report` (HEIGHT, WIDTH, 3), sRGB in [0, 1].

    Left: the object from above, with its front at the bottom. The ring shows the word that describes each
    view, the sectors the word that explains it best; long = by a clear margin.
    """
    canvas, verdict = Canvas(WIDTH, HEIGHT), report.verdict
    second = verdict.second_face
    title = "SECOND FACE" if second.is_sure else "one face"
    canvas.write(f"score {verdict.score:.2f}", 24, 44, 1.0, bold=True)
    canvas.write(title, 270, 44, 1.0, ALARM if second.is_sure else PLUS, bold=True)
    if report.text:
        canvas.write(f"'{report.text[:48]}'", 560, 40, 0.6)
    draw_sectors(canvas, verdict)
    draw_margins(canvas, report)
    draw_numbers(canvas, report)
    return torch.from_numpy(canvas.picture() / 255).float()


def draw_sectors(canvas: Canvas, verdict: Verdict) -> None:
    """The polar chart and its legend."""
    means = verdict.log_errors[..., : len(WORDS)].mean(0).sort(-1).values
    lead = ((means[:, 1] - means[:, 0]) / FULL).clamp(0.15, 1).tolist()  # (V,)
    width = 360 / len(lead)
    rows = zip(verdict.azimuth_deg.tolist(), verdict.word.tolist(), verdict.best_word.tolist(), lead)
    for degrees, word, best, length in rows:
        ring = (OUTER + 6, OUTER + 6 + RING)
        canvas.wedge(CENTRE, (INNER, OUTER), degrees, width - 2, PALE)
        canvas.wedge(CENTRE, ring, degrees, width - 2, COLORS[WORDS[word]])
        reach = INNER + length * (OUTER - INNER)
        canvas.wedge(CENTRE, (INNER, reach), degrees, width - 2, COLORS[WORDS[best]])
    margins = verdict.front_margins()
    for i in verdict.away:
        if margins[i].is_sure:
            angle = math.radians(float(verdict.azimuth_deg[i]))
            x, y = (CENTRE[k] + (OUTER - 18) * f for k, f in enumerate((math.sin(angle), math.cos(angle))))
            canvas.write("!", x - 5, y + 9, 0.9, ALARM, bold=True)
    for word, x, y in (("back", 250, 98), ("front", 248, HEIGHT - 24)):
        canvas.write(word, x, y)
    for i, word in enumerate(WORDS):
        canvas.write(word, CENTRE[0] - 24, CENTRE[1] - 14 + 20 * i, 0.5, COLORS[word], bold=True)


def draw_margins(canvas: Canvas, report: Report) -> None:
    """One bar per text: how much better the prompt explains the views."""
    left, top, right = BARS
    bars = list(report.texts().items())[:5]
    bars.append(("second face", report.verdict.second_face))
    reach = max(0.05, *(abs(margin.mean) + margin.error for _, margin in bars))
    middle = (left + 170 + right - 60) / 2
    half = (right - 60 - left - 170) / 2
    canvas.write("prompt against other texts", left - 40, top - 24, 0.6, bold=True)
    for i, (name, margin) in enumerate(bars):
        y = top + 30 * i + (22 if name == "second face" else 0)
        good = (margin.mean > 0) != (name == "second face")
        end = middle + half * margin.mean / reach
        canvas.box(min(middle, end), y, max(middle, end), y + 18, PLUS if good else MINUS)
        low, high = (middle + half * (margin.mean + sign * margin.error) / reach for sign in (-1, 1))
        canvas.line(low, y + 9, high, y + 9, INK)
        canvas.write(name[:20], left - 40, y + 14, 0.5)
        canvas.write(f"{margin.mean:+.3f}", right - 54, y + 14, 0.5)
    canvas.line(middle, top - 4, middle, top + 30 * len(bars) + 18, INK)


def joined(found: Numbers, name: str) -> str:
    """Several numbers in one text."""
    values = found[name]
    return " ".join(f"{value:.2f}" for value in (values if isinstance(values, list) else [values]))


def draw_numbers(canvas: Canvas, report: Report) -> None:
    """The measures, as text."""
    verdict, found = report.verdict, report.measures
    rows = [
        ("many-faces rate", f"{verdict.many_faces_rate:.0%} of {len(verdict.away)} views"),
        ("right word", f"{float((verdict.word == verdict.best_word).float().mean()):.0%} of the views"),
        ("saturation 10 50 90%", joined(found, "saturation")),
        ("brightness 10 50 90%", joined(found, "brightness")),
        ("high frequency", f"{found['high_frequency']:.2%}"),
    ]
    if "splats" in found:
        rows.append(("fog", f"{found['fog']:.2f} of 255"))
        rows.append(("Gaussians", f"{found['splats']:,}, aspect 50 95%: {joined(found, 'aspect')}"))
        rows.append(("floaters", f"{found['floaters']:.2%} of the opacity"))
    if report.similarity:
        rows.append(("least similar view", f"{min(report.similarity):.3f} (cosine with the front)"))
    rows.append(("evaluations", f"{verdict.evaluations}, {len(verdict.log_errors)} noise levels"))
    for i, (name, value) in enumerate(rows):
        y = HEIGHT - 18 - 22 * (len(rows) - 1 - i)
        canvas.write(name, BARS[0] - 40, y, 0.5)
        canvas.write(value, BARS[0] + 180, y, 0.5)
