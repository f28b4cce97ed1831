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
    missing = []
    for word in filter(None, (word.strip() for word in re.split(COMMA, words))):
        left = re.sub(_whole(word), "", text, flags=re.IGNORECASE)
        missing += [word] if left == text else []
        text = left
    return _tidied(text), missing


def _whole(word: str) -> str:
    """A pattern that finds `word` but no part of a longer one, where its script has words that spaces divide."""
    begins, ends = (bool(re.match(r"\w", letter)) and not _without_spaces(letter) for letter in (word[0], word[-1]))
    spaced = r"\s+".join(map(re.escape, word.split()))
    return (r"(?<!\w)" if begins else "") + spaced + (r"(?!\w)" if ends else "")


def _without_spaces(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(
        ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
    )


def _tidied(text: str) -> str:
    """Without empty groups, doubled spaces, and commas that divide nothing."""
    before = None
    while before != text:
        before = text
        text = re.sub(r"\\\(\s*\\\)", "", text)  # parentheses of the text itself
        text = re.sub(rf"(?<!\\)\((?:\s|{COMMA})*(:\s*[\d.]+\s*)?\)", "", text)  # an empty group, with its weight
    text = re.sub(rf"(?<!\\)\((?:\s|{COMMA})+", "(", text)
    text = re.sub(rf"(?:\s|{COMMA})+(:\s*[\d.]+\s*)?(?<!\\)\)", r"\1)", text)
    parts = re.split(f"({COMMA})", text)  # texts at even places, commas at odd ones
    kept = [(" ".join(part.split()), comma) for part, comma in zip(parts[::2], ["", *parts[1::2]]) if part.strip()]
    space = lambda comma: ", " if comma == "," else comma
    return "".join((space(comma) if i else "") + part for i, (part, comma) in enumerate(kept))
