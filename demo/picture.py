"""A picture of one object of the demo world with a transparent background, for the image workflows.

python -m demo.picture OUT.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lucid_core.io.video import write_png

from . import score, world

PROMPT = "a blue mug"
AZIMUTH_DEG = 30.0  # the handle is seen
SIZE = 256


def draw(prompt: str = PROMPT, azimuth_deg: float = AZIMUTH_DEG, size: int = SIZE) -> NDArray[np.uint8]:
    """The object of `prompt` (size, size, 4), RGBA uint8, at the elevation and framing of `score`.

    Raises ValueError unless the prompt names one object and one colour of the world.
    """
    thing = world.thing_of(prompt)
    angles = (math.radians(x) for x in (azimuth_deg, score.ELEVATION_DEG, score.FOVY_DEG))
    rgb, alpha = world.render(thing, *angles, size, fill=score.FILL, background=0.0, supersample=4)
    cover = alpha[0, ..., None]
    color = np.where(cover > 0, rgb[0] / np.maximum(cover, 1e-6), 1.0)  # white for readers that drop the alpha
    rgba = np.concatenate([color, cover], -1)
    return (255 * rgba.clip(0, 1)).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.picture", description=__doc__)
    parser.add_argument("out", type=Path)
    write_png(parser.parse_args().out, draw())


if __name__ == "__main__":
    main()
