"""Cancelling a run: at once, nothing lost, the host as before."""

import asyncio
import re
import struct
import time
import uuid

import numpy as np
import pytest

from lucid_core.io import ply
from lucid_core.optimize import checkpoint
from workflows.api.client import _queue

from .graphs import ply_of, summary_of, with_model, workflow

TEXT = 3  # the host's kind of binary message that writes on a node


async def cancelled(client, graph, when_step, wait_s, node="LucidDream"):
    """Queue `graph`, interrupt it `wait_s` after step `when_step` of `node`, 0 = its begin.

    Returns the seconds until it ended, and what the nodes said.
    """
    client_id, said, asked = uuid.uuid4().hex, [], None
    async with (
        client._session() as session,
        session.ws_connect("/ws", params={"clientId": client_id}, max_msg_size=0) as events,
    ):
        prompt = await _queue(session, graph, client_id)
        async for message in events:
            if not isinstance(message.data, str):
                (kind,) = struct.unpack(">I", message.data[:4])
                said += [message.data[4:]] if kind == TEXT else []
                continue
            event = message.json()
            if event["data"].get("prompt_id") != prompt:
                continue
            begun = graph.get(event["data"].get("node"), {}).get("class_type") == node
            if begun and event["data"].get("value", 0) >= when_step and asked is None:
                await asyncio.sleep(wait_s)
                asked = time.monotonic()
                await session.post("/interrupt", json={})
            assert event["type"] != "execution_success", "it ended before it was cancelled"
            if event["type"] == "execution_interrupted":
                break
        ended = time.monotonic() - asked
        while (await (await session.get("/queue")).json())["queue_running"]:
            await asyncio.sleep(0.05)
    return ended, [text[4 + struct.unpack(">I", text[:4])[0] :].decode() for text in said]


def loaded(client):
    """The models that the host holds."""
    graph = {"probe": {"class_type": "LucidTestLoaded", "inputs": {"nonce": np.random.randint(1 << 30)}}}
    return client.run(graph)["outputs"]["probe"]["loaded"]


@pytest.fixture(scope="module")
def stopped(client, base):
    """A run of 20 steps that is cancelled in a model call of its fourth or fifth."""
    client.run(workflow())
    before = loaded(client)
    graph = with_model("2 s from call 12", LucidDream={"steps": 20, "seed": 61, "views": 1})
    seconds, said = asyncio.run(cancelled(client, graph, when_step=2, wait_s=1.0))
    return seconds, said[-1].splitlines(), before, loaded(client)


def test_a_run_ends_within_one_model_call(stopped):
    """A step takes three and more, of two seconds each: before a second one could end, on a slow machine
    too.
    """
    assert stopped[0] < 4


def test_the_node_names_the_files_that_were_kept(stopped, base):
    _, (stop, resume), _, _ = stopped
    step, splat = re.fullmatch(r"Stopped at step (\d+) of 20\. Splat: (\S+)", stop).groups()
    step, resume = int(step), resume.removeprefix("To go on, resume: ")
    assert 2 <= step < 20
    kept, _ = checkpoint.read(base / "output" / resume)
    saved = ply.read(base / "output" / splat)
    assert kept.step == step and len(kept.splats()) == len(saved)
    np.testing.assert_array_equal(saved.means.numpy(), kept.splats().means.numpy())


def test_a_cancelled_run_is_resumed_to_the_splat_of_a_whole_one(stopped, client):
    resume = stopped[1][1].split("resume: ")[1]
    settings = {"steps": 20, "seed": 61, "views": 1}
    resumed = client.run(with_model("none", LucidDream={**settings, "resume": resume}))
    whole = client.run(workflow(LucidDream=settings))
    np.testing.assert_array_equal(ply_of(client, resumed).means.numpy(), ply_of(client, whole).means.numpy())
    assert summary_of(resumed)["evaluations"] == summary_of(whole)["evaluations"]


def test_the_host_holds_no_more_models_than_before_and_goes_on(stopped, client):
    _, _, before, after = stopped
    assert set(after) <= set(before)
    assert len(ply_of(client, client.run(workflow(LucidDream={"seed": 62}))))


def test_a_run_that_is_cancelled_before_its_first_step_says_so(client):
    graph = with_model("2 s from call 12", LucidDream={"steps": 20, "seed": 63, "views": 1})
    ism = next(node for node in graph.values() if node["class_type"] == "LucidISM")
    ism["inputs"].update({"preset.inversion_steps": 50, "preset.delta_s": 0.005, "preset.t_min": 0.25})
    _, said = asyncio.run(cancelled(client, graph, when_step=0, wait_s=1.5))
    assert said[-1] == "Stopped before the first step was finished."
