"""Lucid Edit Image in the real host: what the text does not change stays; what it cannot edit is refused."""

import asyncio
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devtools.base import PICTURE

from .failing import fails
from .test_cancel import cancelled
from .test_targets import targets_of

API = Path(__file__).resolve().parents[2] / "workflows" / "api" / "edit_image.json"


@pytest.fixture
def graph():
    """The workflow edit_image with few steps."""
    found = json.loads(API.read_text(encoding="utf-8"))
    found["5"]["inputs"] |= {"steps": 3, "seed": 7}
    found["6"]["inputs"]["filename_prefix"] = "test/edited"
    return found


def picture_of(client, entry):
    """The saved picture (H, W, 3) as integers."""
    (image,) = entry["outputs"]["6"]["images"]
    return np.asarray(Image.open(io.BytesIO(client.view(image))).convert("RGB")).astype(int)


def test_the_mug_changes_and_the_background_stays(client, graph, base):
    graph["10"] = {"class_type": "MaskToImage", "inputs": {"mask": ["5", 1]}}

    def saved(source):
        graph["6"]["inputs"]["images"] = source
        return picture_of(client, client.run(graph))

    result, mask, before = saved(["5", 0]), saved(["10", 0])[..., 0], saved(["8", 0])
    moved = np.abs(result - before).max(-1)
    assert result.shape == before.shape == (128, 128, 3)
    assert moved[mask == 0].max() <= 1 and 0.2 < (mask == 0).mean() < 0.7  # 8 bits hide a mask below 1/255
    assert moved[40:90, 40:80].mean() > 2  # the body of the mug
    assert Image.open(base / "input" / PICTURE).getpixel((0, 0)) == (255, 255, 255, 0)


def test_a_mask_decides_where(client, graph):
    graph["9"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}}
    graph["5"]["inputs"]["mask"] = ["9", 0]
    with fails("LucidEditImage", "BadInput", "mask", "64 x 128", "128 x 128"):
        client.run(graph)
    graph["9"]["inputs"] |= {"width": 128, "value": 0.0}
    with fails("LucidEditImage", "BadInput", "mask", "empty"):
        client.run(graph)


def test_a_cancel_keeps_the_pictures_that_are_finished(client, graph, base):
    """The second of two is stopped."""
    graph["11"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": graph["5"]["inputs"]["image"], "amount": 2},
    }
    graph["5"]["inputs"] |= {"image": ["11", 0], "steps": 20, "seed": 8}
    _, said = asyncio.run(cancelled(client, graph, 22, 0.0, "LucidEditImage"))
    name = re.fullmatch(r"Stopped\. 1 finished: (lucid/unfinished_\d+_\.png)", said[-1])[1]
    assert Image.open(base / "output" / name).size == (128, 128)


def test_image_targets_are_refused(client, graph):
    graph["4"] = targets_of(graph, "4")
    with fails("LucidEditImage", "BadInput", "guidance", "Lucid Image Targets"):
        client.run(graph)


def test_a_bad_setting_is_refused_before_a_model_is_loaded(client, graph):
    graph["5"]["inputs"]["steps"] = 0
    with fails("LucidEditImage", "value_smaller_than_min", "steps"):
        client.run(graph)
