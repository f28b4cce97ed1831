"""What the page is shown while a run goes on: pictures of the splat, pace and time left."""

import re

import cv2
import numpy as np
import pytest

from .graphs import summary_of, workflow


def shown(client, graph):
    """-> the previews (H, W, 3) of a run, and what its nodes said."""
    seen = []
    client.run(graph, seen.append)
    pictures = [
        cv2.imdecode(np.frombuffer(each.picture, np.uint8), cv2.IMREAD_COLOR) for each in seen if each.picture
    ]
    return pictures, list(dict.fromkeys(each.text for each in seen if each.text))


@pytest.mark.parametrize("wanted, shape", [(False, (512, 512, 3)), (True, (256, 512, 3))])
def test_pictures_pace_and_time_left_are_shown(client, wanted, shape):
    settings = {
        "steps": 12,
        "views": 1,
        "resolution": 128,  # the model's own: at 64 px its x0 of a noisy view may be a blank
        "seed": 91 + wanted,
        "preview_seconds": 0.01,
        "preview_wanted": wanted,
    }
    pictures, texts = shown(client, workflow(LucidDream=settings))
    assert pictures and {picture.shape for picture in pictures} == {shape}  # the host enlarges them
    texts, losses = zip(*(text.splitlines() for text in texts))
    assert texts[0] == "step 1 of 12, 300 Gaussians"
    assert all(
        re.fullmatch(r"step \d+ of 12, \d+\.\d\d s a step, \d+ s left, \d+ Gaussians", text)
        for text in texts[1:]
    )
    assert all(re.fullmatch(r"gradient norm \S+, tv \S+, scale \S+", text) for text in losses)
    assert texts[-1].startswith("step 12 of 12") and ", 0 s left" in texts[-1]
    if wanted:  # a picture, not a blank
        assert pictures[-1][:, 256:].std() > 5


def test_previews_take_at_most_three_percent_of_the_time(client):
    """However often they are wanted; the first, which compiles, and the one at the end are always made."""
    settings = {"steps": 60, "views": 1, "seed": 95, "preview_seconds": 0.001}
    entry = client.run(workflow(LucidDream=settings))
    summary = summary_of(entry)
    print(f"previews took {summary['preview_seconds']} of {summary['seconds']} s")
    assert 0 < summary["preview_seconds"] <= 0.03 * summary["seconds"]


def test_without_previews_only_the_end_is_shown(client):
    settings = {"steps": 12, "views": 1, "seed": 93, "preview_seconds": 0.0}
    pictures, texts = shown(client, workflow(LucidDream=settings))
    assert len(pictures) == len(texts) == 1
