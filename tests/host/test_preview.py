"""What the page is shown while a run goes on: pictures of the splat, pace and time left."""

import asyncio
import re
import struct
import uuid

import cv2
import numpy as np
import pytest

from demo.client import _queue

from .graphs import workflow

IMAGE, TEXT = 1, 3  # the host's kinds of binary messages


async def shown(client, graph):
    """-> the previews (H, W, 3) of a run, and what its nodes said."""
    client_id, messages = uuid.uuid4().hex, []
    connect = {"params": {"clientId": client_id}, "max_msg_size": 0}
    async with client._session() as session, session.ws_connect("/ws", **connect) as events:
        prompt = await _queue(session, graph, client_id)
        async for message in events:
            if not isinstance(message.data, str):
                messages.append((struct.unpack(">I", message.data[:4])[0], message.data[4:]))
                continue
            event = message.json()
            ended = event["type"] == "executing" and event["data"]["node"] is None
            if ended and event["data"].get("prompt_id") == prompt:
                break
    pictures = [cv2.imdecode(np.frombuffer(data[4:], np.uint8), cv2.IMREAD_COLOR) for kind, data in messages if kind == IMAGE]
    texts = [data[4 + struct.unpack(">I", data[:4])[0] :].decode() for kind, data in messages if kind == TEXT]
    return pictures, texts


@pytest.mark.parametrize("wanted, shape", [(False, (512, 512, 3)), (True, (256, 512, 3))])
def test_pictures_pace_and_time_left_are_shown(client, wanted, shape):
    settings = {"steps": 12, "views": 1, "seed": 91 + wanted, "preview_seconds": 0.01, "preview_wanted": wanted}
    pictures, texts = asyncio.run(shown(client, workflow(LucidDream=settings)))
    assert pictures and {picture.shape for picture in pictures} == {shape}  # the host enlarges them
    assert texts[0] == "step 1 of 12, 300 splats"
    assert all(re.fullmatch(r"step \d+ of 12, \d+\.\d\d s a step, \d+ s left, \d+ splats", text) for text in texts[1:])
    assert texts[-1].startswith("step 12 of 12") and ", 0 s left" in texts[-1]
    if wanted:  # a picture, not a blank
        assert pictures[-1][:, 256:].std() > 5


def test_without_previews_only_the_end_is_shown(client):
    settings = {"steps": 12, "views": 1, "seed": 93, "preview_seconds": 0.0}
    pictures, texts = asyncio.run(shown(client, workflow(LucidDream=settings)))
    assert len(pictures) == len(texts) == 1
