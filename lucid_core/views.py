"""View-dependent prompts: how much of "front", "side", "back" and "overhead" each camera sees, and what it does not."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_bounds, setting
from .hints import Hint
from .prior import Cond, Conds, Prior

COMMA = "[,，、،]"
WEIGHT = r":\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?\s*"  # of the host, before a closing parenthesis
UNSPACED = (  # scripts that put no spaces between words, by the names of their letters
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip
VIEWS = ("front", "side", "back", "overhead")


@dataclass(frozen=True)
class ViewBlend:
    """Where one view word gives way to the next.

    The changes lie at azimuth 45 and 135 degrees on both sides, and at `overhead_deg` of elevation; around each the
    weights run linearly over `blend_deg`. 90 is the official front - side - back interpolation, 0 switches at once.
    """

    blend_deg: float = setting(90, 0, 90, "Width in degrees over which one view word blends into the next; 90 = smooth all "
                               "the way, 0 = switch at once.", step=1)  # fmt: skip
    overhead_deg: float = setting(90, 1, 90, "Elevation in degrees at which the overhead word takes over, half of "
                                  "`blend_deg` to both sides. 90 = only half at the pole, and none below 45 degrees: the "
                                  "official code has no such word.", step=1)  # fmt: skip
    perp_neg: float = setting(0.0, 0, 100, "Perp-Neg: pushes a view away from what other sides show, against many faces, for "
                              "up to two more model evaluations. 0 = off, 2 = the official strength.", step=0.1)  # fmt: skip
    perp_neg_front_decay: float = setting(2.0, 0, 100, "How fast Perp-Neg's push away from the front fades towards the front; "
                                          "official: 2.", step=0.1)  # fmt: skip
    perp_neg_side_decay: float = setting(10.0, 0, 100, "How fast Perp-Neg's push away from the side fades towards the side; "
                                         "official: 10.", step=0.1)  # fmt: skip

    def __post_init__(self) -> None:
        check_bounds(self)

    def weights(self, azimuth_rad: Tensor, elevation_rad: Tensor) -> Tensor:
        """(B,) azimuths and elevations -> (B, 4) weights of VIEWS, each row summing to 1."""
        turned = torch.remainder(azimuth_rad + math.pi, 2 * math.pi) - math.pi
        off_front = turned.abs().rad2deg()  # (B,) 0 front, 180 back
        past_front = self._ramp(off_front - 45)
        past_side = self._ramp(off_front - 135)
        overhead = self._ramp(elevation_rad.rad2deg() - self.overhead_deg)
        around = torch.stack([1 - past_front, past_front - past_side, past_side], -1)
        return torch.cat([around * (1 - overhead)[:, None], overhead[:, None]], -1)

    def away(self, azimuth_rad: Tensor, elevation_rad: Tensor) -> Tensor:
        """(B, 2) weights, none above 0, of Perp-Neg's pushes away from the front and from the side prompt.

        LucidDreamer's: between front and side both decay towards their own prompt and are cut off within a fifth of it;
        from side to back the front is always pushed away in full. Overhead there is none (as in threestudio).
        """
        turned = torch.remainder(azimuth_rad + math.pi, 2 * math.pi) - math.pi
        past = turned.abs().rad2deg() / 90  # (B,) 0 front, 1 side, 2 back
        before_side = past < 1
        front = torch.where(past < 0.2 - 1e-6, 0.0, (-(1 - past) * self.perp_neg_front_decay).exp())
        to_side = torch.where(past > 0.8 + 1e-6, 0.0, (-past * self.perp_neg_side_decay).exp())
        from_side = torch.where(past < 1.2 - 1e-6, 0.0, (-(2 - past) * self.perp_neg_side_decay).exp() / 2)
        weights = torch.stack([torch.where(before_side, front, 1.0), torch.where(before_side, to_side, from_side)], -1)
        overhead = self._ramp(elevation_rad.rad2deg() - self.overhead_deg)
        return -self.perp_neg * weights * (1 - overhead)[:, None]

    def _ramp(self, past_deg: Tensor) -> Tensor:
        if self.blend_deg == 0:
            return (past_deg > 0).to(past_deg)
        return (past_deg / self.blend_deg + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Prompts:
    """The conditionings of one object: one for each of VIEWS, the negative one and that of the inversion (one row each).

    `hints` are what ControlNets on them must be shown of the views: see ControlledPrior.
    """

    views: tuple[Cond, Cond, Cond, Cond]
    negative: Cond
    inverse: Cond
    blend: ViewBlend = ViewBlend()
    hints: tuple[Hint, ...] = ()

    def at(self, prior: Prior, azimuth_rad: Tensor, elevation_rad: Tensor) -> Conds:
        """What to ask the model about B views."""
        y = prior.blend(list(self.views), self.blend.weights(azimuth_rad, elevation_rad))
        if not self.blend.perp_neg:
            return Conds(y, self.negative, self.inverse)
        weights = self.blend.away(azimuth_rad, elevation_rad)
        asked = [k for k in range(2) if weights[:, k].any()]  # a prompt that no view is pushed away from costs nothing
        return Conds(y, self.negative, self.inverse, tuple(self.views[k] for k in asked), weights[:, asked])


def without(text: str, words: str) -> tuple[str, list[str]]:
    """`text` less the `words` or phrases, which commas divide; and those of them that the text does not hold.

    Whole words in any case, any letters in scripts without spaces, also within the host's weights ((word, other:1.2)).
    Prompt debiasing (Hong et al., NeurIPS 2023, arXiv 2303.15413) drops words that contradict a view, such as "smiling"
    from behind; there a language model finds them, here they are named.
    """
    named = list(filter(None, (word.strip() for word in re.split(COMMA, words))))
    missing = [word for word in named if not _places(text, word)]
    left = text
    for word in sorted(named, key=len, reverse=True):  # "blue eyes" before "eyes"
        for start, end in reversed(_places(left, word)):
            left = left[:start] + left[end:]
    return (_tidied(left) if left != text else text), missing


def _places(text: str, word: str) -> list[tuple[int, int]]:
    """Where `text` has `word` and no longer one, outside of weights and of names of embeddings."""
    pattern = r"\s+".join(map(re.escape, word.split()))
    kept = [found.span() for found in re.finditer(rf"{WEIGHT}\)|embedding:\S+", text, re.IGNORECASE)]
    around = f" {text} "
    return [
        (start, end)
        for start, end in (found.span() for found in re.finditer(pattern, text, re.IGNORECASE))
        if not (_joined(around[start], around[start + 1]) or _joined(around[end], around[end + 1]))
        and not any(low < end and start < high for low, high in kept)
    ]


def _joined(first: str, second: str) -> bool:
    """Are two letters that follow one another of one word? A mark belongs to the letter before it."""
    if unicodedata.category(second).startswith("M"):
        return True
    in_word = lambda letter: letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")
    return in_word(first) and in_word(second) and not (_is_unspaced(first) or _is_unspaced(second))


def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(UNSPACED)


def _tidied(text: str) -> str:
    """Without empty groups, doubled spaces, and commas that divide nothing."""
    gap, before = rf"(?:\s|{COMMA})", None
    while before != text:
        before = text
        text = re.sub(rf"(?<!\\)\({gap}*(?:{WEIGHT})?\)|\\\({gap}*\\\)", "", text)  # an empty group, with its weight
    text = re.sub(rf"(\\?\(){gap}+", r"\1", text)
    text = re.sub(rf"{gap}+((?:{WEIGHT})?\\?\))", r"\1", text)
    text = re.sub(rf"\s*({COMMA})(?:{gap}*{COMMA})?(\s*)", r"\1\2", text)
    return " ".join(re.sub(rf"^{gap}+|{gap}+$", "", text).split())
