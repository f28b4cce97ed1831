"""Pictures with captions, for contact sheets and comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .chart import INK, PLUS, Canvas

LINE = 20  # height of a line of text in pixels
LETTER = 0.55  # largest size of the letters, in OpenCV's units
LETTERS_PX = 8.6  # width of a letter at this size, in pixels, with room to spare


def caption(images: Tensor, lines: Sequence[str], is_best: bool = False) -> Tensor:
    """Images (V, H, W, 3) with a white strip of text under each -> (V, H + strip, W, 3), sRGB in [0, 1].

    The text shrinks to the width of the images. The first line is bold, and green if `is_best`.
    """
    width = images.shape[2]
    longest = max(len(line) for line in lines)
    size = min(1.0, (width - 12) / (LETTERS_PX * longest))
    canvas = Canvas(width, LINE * len(lines) + 8)
    for i, line in enumerate(lines):
        color = PLUS if is_best and i == 0 else INK
        canvas.write(line, 6, LINE * (i + 0.8), LETTER * size, color, bold=i == 0)
    strip = torch.from_numpy(canvas.picture() / 255).float()
    return torch.cat([images.cpu(), strip.expand(len(images), *strip.shape)], 1)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Batches (V, H, W, 3) of one width or several -> (V, highest H, sum of W, 3); white where one is
    lower.
    """
    height = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, 0, 0, 0, 0, height - part.shape[1]), value=1.0) for part in parts], 2)


def contact_sheet(rows: Sequence[Tensor]) -> Tensor:
    """Rows of one size, each (1, H, W, 3), one under the other -> (1, sum of H, W, 3)."""
    return torch.cat(list(rows), 1)
