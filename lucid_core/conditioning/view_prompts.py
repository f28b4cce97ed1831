"""View-dependent prompts: weights of the front, side, back and overhead prompt per camera, and Perp-Neg."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.prior import Cond, Conds, Prior
from ..settings import check_bounds, setting
from .control_images import Hint

COMMA = "[,，、،]"
WEIGHT = r":\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?\s*"  # ComfyUI's prompt weight, before ")"
UNSPACED = (  # scripts without spaces between words, by the Unicode names of their letters
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
VIEWS = ("front", "side", "back", "overhead")


@dataclass(frozen=True)
class ViewBlend:
    """Blending of the view prompts by camera direction, and Perp-Neg weights.

    The blends are centred at azimuth 45 and 135 degrees on both sides, and at elevation `overhead_deg`. The
    weights change linearly over `blend_deg` degrees: 90 is the official front - side - back interpolation, 0
    a hard switch. Raises BadSetting for a setting out of its bounds.
    """

    blend_deg: float = setting(
        90,
        0,
        90,
        "Angle in degrees over which one view prompt blends into the next. 90 = continuous blending, "
        "0 = hard switch.",
        step=1,
    )
    overhead_deg: float = setting(
        90,
        1,
        90,
        "Elevation in degrees at the middle of the blend to the overhead prompt. 90 = half weight at the "
        "pole and none below 45 degrees (at blend_deg 90); the official code has no overhead prompt.",
        step=1,
    )
    perp_neg: float = setting(
        0.0,
        0,
        100,
        "Perp-Neg strength: pushes each view away from the prompts of other views to avoid multiple faces, "
        "at up to two more model evaluations. 0 = off, 2 = official.",
        step=0.1,
    )
    perp_neg_front_decay: float = setting(
        2.0,
        0,
        100,
        "Decay rate of the front prompt's Perp-Neg weight towards the front. 0 = no decay, 2 = official.",
        step=0.1,
    )
    perp_neg_side_decay: float = setting(
        10.0,
        0,
        100,
        "Decay rate of the side prompt's Perp-Neg weight towards the side. 0 = no decay, 10 = official.",
        step=0.1,
    )

    def __post_init__(self) -> None:
        check_bounds(self)

    def weights(self, azimuth_rad: Tensor, elevation_rad: Tensor) -> Tensor:
        """(B,) azimuths and elevations in radians -> (B, 4) weights of VIEWS; each row sums to 1."""
        wrapped = torch.remainder(azimuth_rad + math.pi, 2 * math.pi) - math.pi
        off_front = wrapped.abs().rad2deg()  # (B,) 0 front, 180 back
        past_front = self._ramp(off_front - 45)
        past_side = self._ramp(off_front - 135)
        overhead = self._ramp(elevation_rad.rad2deg() - self.overhead_deg)
        around = torch.stack([1 - past_front, past_front - past_side, past_side], -1)
        return torch.cat([around * (1 - overhead)[:, None], overhead[:, None]], -1)

    def away(self, azimuth_rad: Tensor, elevation_rad: Tensor) -> Tensor:
        """(B,) azimuths and elevations in radians -> (B, 2) Perp-Neg weights <= 0 of front and side prompt.

        As in LucidDreamer: between front and side, each weight decays towards its own view and is 0 within a
        fifth of it; from side to back, the front weight stays at full strength. Overhead views have none (as
        in threestudio).
        """
        wrapped = torch.remainder(azimuth_rad + math.pi, 2 * math.pi) - math.pi
        past = wrapped.abs().rad2deg() / 90  # (B,) 0 front, 1 side, 2 back
        before_side = past < 1
        front = torch.where(past < 0.2 - 1e-6, 0.0, (-(1 - past) * self.perp_neg_front_decay).exp())
        to_side = torch.where(past > 0.8 + 1e-6, 0.0, (-past * self.perp_neg_side_decay).exp())
        from_side = torch.where(past < 1.2 - 1e-6, 0.0, (-(2 - past) * self.perp_neg_side_decay).exp() / 2)
        weights = torch.stack(
            [torch.where(before_side, front, 1.0), torch.where(before_side, to_side, from_side)], -1
        )
        overhead = self._ramp(elevation_rad.rad2deg() - self.overhead_deg)
        return -self.perp_neg * weights * (1 - overhead)[:, None]

    def _ramp(self, past_deg: Tensor) -> Tensor:
        if self.blend_deg == 0:
            return (past_deg > 0).to(past_deg)
        return (past_deg / self.blend_deg + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Prompts:
    """The conditionings of one object (one row each): one per view in VIEWS, the negative and the inversion
    prompt.

    hints: the ControlNet images that they need, see Prior.show.
    """

    views: tuple[Cond, Cond, Cond, Cond]
    negative: Cond
    inverse: Cond
    blend: ViewBlend = ViewBlend()
    hints: tuple[Hint, ...] = ()

    def at(self, prior: Prior, azimuth_rad: Tensor, elevation_rad: Tensor) -> Conds:
        """Return the conditionings of B views with azimuths and elevations (B,) in radians."""
        y = prior.blend(list(self.views), self.blend.weights(azimuth_rad, elevation_rad))
        if not self.blend.perp_neg:
            return Conds(y, self.negative, self.inverse)
        weights = self.blend.away(azimuth_rad, elevation_rad)
        used = [k for k in range(2) if weights[:, k].any()]  # saves the evaluation of an unused prompt
        return Conds(y, self.negative, self.inverse, tuple(self.views[k] for k in used), weights[:, used])


def without(text: str, words: str) -> tuple[str, list[str]]:
    """Remove the comma-separated `words` or phrases from `text`.

    Returns the new text and the words that it does not contain. Matches are whole words (any letters in
    scripts without spaces), ignoring case, also inside ComfyUI's weights such as (word, other:1.2).

    Prompt debiasing (Hong et al., NeurIPS 2023, arXiv 2303.15413) drops words that contradict a view, such as
    "smiling" from behind. The paper finds them by a language model; here the user names them.
    """
    named = list(filter(None, (word.strip() for word in re.split(COMMA, words))))
    missing = [word for word in named if not _places(text, word)]
    left = text
    for word in sorted(named, key=len, reverse=True):  # "blue eyes" before "eyes"
        for start, end in reversed(_places(left, word)):
            left = left[:start] + left[end:]
    return (_tidy(left) if left != text else text), missing


def _places(text: str, word: str) -> list[tuple[int, int]]:
    """Return the spans of the whole word `word` in `text`, outside of weights and embedding names."""
    pattern = r"\s+".join(map(re.escape, word.split()))
    kept = [found.span() for found in re.finditer(rf"{WEIGHT}\)|embedding:\S+", text, re.IGNORECASE)]
    around = f" {text} "
    return [
        (start, end)
        for start, end in (found.span() for found in re.finditer(pattern, text, re.IGNORECASE))
        if not (_in_one_word(around[start], around[start + 1]) or _in_one_word(around[end], around[end + 1]))
        and not any(low < end and start < high for low, high in kept)
    ]


def _in_one_word(first: str, second: str) -> bool:
    """Return whether two adjacent characters belong to one word; a mark belongs to the letter before it."""
    if unicodedata.category(second).startswith("M"):
        return True
    return all(_is_in_word(letter) and not _is_unspaced(letter) for letter in (first, second))


def _is_in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")


def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(UNSPACED)


def _tidy(text: str) -> str:
    """Remove empty groups, repeated spaces and surplus commas."""
    gap, before = rf"(?:\s|{COMMA})", None
    while before != text:
        before = text
        # empty groups, with their weights
        text = re.sub(rf"(?<!\\)\({gap}*(?:{WEIGHT})?\)|\\\({gap}*\\\)", "", text)
    text = re.sub(rf"(\\?\(){gap}+", r"\1", text)
    text = re.sub(rf"{gap}+((?:{WEIGHT})?\\?\))", r"\1", text)
    text = re.sub(rf"\s*({COMMA})(?:{gap}*{COMMA})?(\s*)", r"\1\2", text)
    return " ".join(re.sub(rf"^{gap}+|{gap}+$", "", text).split())
