"""Text embeddings of captions, in a compact form: six rows instead of 77 tokens.

`checkpoint.text_encoder` does not mix tokens, and all positions share one embedding. So a prompt of k words
becomes the start token, k word vectors and 76 - k copies of one filler vector. Attention to n equal tokens is
the same as attention to one of them with log n added to its logit. The six rows are start, colour, kind,
view, background and filler.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Scenes
from .words import BACKGROUNDS, COLORS, CONCEPTS, FILLER, KINDS, START, VIEWS

WIDTH = 768
# Logit bias of a dropped word. Finite, so that the softmax of a row with only such logits is not NaN.
MASKED = -30000.0
DROP_WORD = torch.tensor([0.15, 0.03, 0.15, 0.70])  # probability for colour, kind, view, background
DROP_ALL = 0.10  # probability of an empty caption, for classifier-free guidance


def word_vectors(seed: int = 1234) -> Tensor:
    """(26, 768) fp16: a random vector for each of CONCEPTS. The last, for FILLER, is the position
    embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randn(len(CONCEPTS) - 1, WIDTH, generator=generator)
    position = torch.randn(1, WIDTH, generator=generator) * 0.5
    return torch.cat([concepts, position]).half()


def encoded(words: Tensor) -> Tensor:
    """Text encoder output for each concept, (26, 768); `words` as returned by `word_vectors`."""
    words = words.float()
    return F.layer_norm(torch.cat([words[:-1] + words[-1], words[-1:]]), (WIDTH,))


def rows(scenes: Scenes) -> Tensor:
    """(N, 6) indices into CONCEPTS: the six rows of each scene's caption."""
    n = len(scenes)
    base = {words: CONCEPTS.index(next(iter(words))) for words in (KINDS, tuple(COLORS), VIEWS, BACKGROUNDS)}
    columns = [
        torch.full((n,), CONCEPTS.index(START)),
        torch.from_numpy(scenes.color) + base[tuple(COLORS)],
        torch.from_numpy(scenes.kind) + base[KINDS],
        torch.from_numpy(scenes.view) + base[VIEWS],
        torch.from_numpy(scenes.background_word) + base[BACKGROUNDS],
        torch.full((n,), CONCEPTS.index(FILLER)),
    ]
    return torch.stack(columns, dim=1)


def bias(keep: Tensor) -> Tensor:
    """Attention bias (B, 6) of captions; `keep` (B, 4) bool: which of their words are present."""
    start = torch.zeros(len(keep), 1)
    words = torch.where(keep, 0.0, MASKED)
    filler = (76 - keep.sum(1, keepdim=True)).log()
    return torch.cat([start, words, filler], dim=1)


def dropout(n: int, generator: torch.Generator) -> Tensor:
    """(n, 4) bool: which words of n captions are kept."""
    keep = torch.rand(n, 4, generator=generator) >= DROP_WORD
    return keep & (torch.rand(n, 1, generator=generator) >= DROP_ALL)
