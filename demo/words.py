"""The vocabulary of the demo world: the words that a prompt may contain, and their CLIP tokens."""

from __future__ import annotations

import re

KINDS = ("cube", "sphere", "cone", "cylinder", "torus", "snowman", "house", "mushroom", "mug")
COLORS = {  # albedo, linear in the renderer
    "red": (0.86, 0.10, 0.09),
    "orange": (0.97, 0.50, 0.06),
    "yellow": (0.97, 0.86, 0.12),
    "green": (0.14, 0.62, 0.18),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.13, 0.27, 0.85),
    "purple": (0.48, 0.16, 0.70),
    "pink": (0.98, 0.52, 0.72),
}
VIEWS = ("front", "side", "back", "overhead")
BACKGROUNDS = ("white", "gray", "dark")

SYNONYMS = {
    "sphere": ("ball", "orb"),
    "cube": ("box", "block"),
    "cylinder": ("tube",),
    "torus": ("donut", "doughnut", "ring"),
    "house": ("cottage", "hut", "cabin"),
    "mug": ("cup",),
    "purple": ("violet",),
    "cyan": ("turquoise",),
    "overhead": ("top", "above"),
    "back": ("rear", "behind"),
    "side": ("profile",),
    "gray": ("grey",),
    "dark": ("black",),
}

# The rows of the prior's word vectors, in this order; the last two are the start token and all other tokens.
START, FILLER = "<start>", "<filler>"
CONCEPTS = (*KINDS, *COLORS, *VIEWS, *BACKGROUNDS, START, FILLER)

# CLIP-L token id -> concept. Obtained with the host's tokenizer (comfy.sd1_clip.SD1Tokenizer): the first id
# of each word and synonym. "torus" and "cyan" are two tokens ("tor" "us", "cy" "an"); the second is filler. A
# test compares.
TOKENS = {
    49406: START,
    11353: "cube",
    2063: "cube",
    4593: "cube",
    6987: "sphere",
    1069: "sphere",
    36958: "sphere",
    10266: "cone",
    22092: "cylinder",
    3308: "cylinder",
    937: "torus",
    18471: "torus",
    32555: "torus",
    2540: "torus",
    22668: "snowman",
    1212: "house",
    12155: "house",
    16503: "house",
    14178: "house",
    13011: "mushroom",
    9722: "mug",
    1937: "mug",
    736: "red",
    4287: "orange",
    4481: "yellow",
    1901: "green",
    1470: "cyan",
    19899: "cyan",
    1746: "blue",
    5496: "purple",
    16118: "purple",
    3360: "pink",
    2184: "front",
    1145: "side",
    6444: "side",
    893: "back",
    10223: "back",
    2403: "back",
    20321: "overhead",
    1253: "overhead",
    4348: "overhead",
    1579: "white",
    7048: "gray",
    5046: "gray",
    3144: "dark",
    1449: "dark",
}

_CONCEPT_OF = {word: word for word in CONCEPTS} | {s: word for word, many in SYNONYMS.items() for s in many}


def concepts_in(prompt: str) -> list[str]:
    """The concepts in `prompt`, in order. Synonyms are resolved, other words are skipped."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return [_CONCEPT_OF[word] for word in words if word in _CONCEPT_OF]
