"""Checkpoints through the node: what is resumed, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lucid_core.optimize import checkpoint

from .failing import fails
from .graphs import node_of, ply_of, summary_of, with_model, workflow

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def broken_off(client):
    """(the finished run of six steps with seed 41, the name of the checkpoint of one that a NaN ended
    before).
    """
    whole = client.run(workflow(LucidDream={"steps": 6, "seed": 41}))
    broken = client.run(with_model("NaN from call 12", LucidDream={"steps": 6, "seed": 41}))
    assert 0 < summary_of(broken)["steps"] < 6
    return whole, summary_of(broken)["checkpoint"]


def test_a_run_that_broke_off_is_resumed_to_the_same_splat(client, broken_off):
    whole, checkpoint = broken_off
    assert checkpoint.startswith("lucid/run_")
    resumed = client.run(with_model("none", LucidDream={"steps": 6, "seed": 41, "resume": checkpoint}))
    a, b = ply_of(client, whole), ply_of(client, resumed)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))
    first, second = summary_of(whole), summary_of(resumed)
    assert (second["steps"], second["evaluations"]) == (6, first["evaluations"])
    assert second["checkpoint"] not in (checkpoint, first["checkpoint"])


def test_a_full_disk_costs_the_checkpoint_and_not_the_splat(client, server):
    graph = with_model("full disk", LucidDream={"steps": 3, "seed": 43})
    entry = client.run(graph)
    assert summary_of(entry)["steps"] == 3 and summary_of(entry)["checkpoint"] is None
    assert len(ply_of(client, entry)) > 100
    assert "could not save its checkpoint: [Errno 28] No space left on device" in server.log_tail()


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda good: good[: len(good) // 2], "damaged or no checkpoint"),
        (lambda good: b"ply\n" + good, "damaged or no checkpoint"),
        (
            lambda good: good.replace(b'\\"format\\": 2', b'\\"format\\": 9'),
            "has format 9, this version reads up to 2",
        ),
    ],
    ids=["truncated", "foreign", "newer"],
)
def test_a_broken_checkpoint_is_refused(client, base, broken_off, change, word):
    (base / "output" / "lucid" / "bad.safetensors").write_bytes(
        change((base / "output" / broken_off[1]).read_bytes())
    )
    with fails("LucidDream", "BadFile", "", "bad.safetensors: ", word):
        client.run(workflow(LucidDream={"steps": 6, "seed": 41, "resume": "lucid/bad.safetensors"}))


def test_a_finished_run_is_resumed_at_its_end(client, broken_off):
    whole, _ = broken_off
    name = summary_of(whole)["checkpoint"]
    again = client.run(workflow(LucidDream={"steps": 6, "seed": 41, "resume": name}))
    assert torch.equal(ply_of(client, whole).means, ply_of(client, again).means)
    assert summary_of(again)["evaluations"] == summary_of(whole)["evaluations"]


def test_a_checkpoint_of_another_run_gives_its_splat_alone(client, broken_off):
    _, checkpoint = broken_off
    other = {"steps": 3, "seed": 42, "resume": checkpoint}
    with fails("LucidDream", "OtherRun", "", "seed was 41, is 42; steps was 6, is 3."):
        client.run(with_model("none", LucidDream=other))
    assert summary_of(client.run(workflow(LucidDream={**other, "resume_splat_only": True})))["steps"] == 3


def test_a_checkpoint_knows_its_model_and_prompt(client, broken_off):
    same = {"steps": 6, "seed": 41, "resume": broken_off[1]}
    with fails("LucidDream", "OtherRun", "", "run: model was "):
        client.run(with_model("patched weights", LucidDream=same))
    with fails("LucidDream", "OtherRun", "", "run: model was "):
        client.run(workflow(LucidDream=same))  # without the patch of its model
    words = ("run: prompt was a red mushroom, is a blue mug; ", "conditioning was")
    with fails("LucidDream", "OtherRun", "", *words):
        client.run(with_model("none", LucidDream=same, LucidPrompt={"text": "a blue mug"}))


PATCHED = {
    "APG": [
        {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5},
        {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.4},
    ],
    "FreeU_V2": [{"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}],
    "RescaleCFG": [{"multiplier": 0.7}, {"multiplier": 0.8}],
    "PerturbedAttentionGuidance": [{"scale": 2.0}, {"scale": 3.0}],
    "ModelSamplingDiscrete": [{"sampling": "eps", "zsnr": False}, {"sampling": "eps", "zsnr": True}],
    "LucidTestHolder": [{"strength": 0.9}, {"strength": 0.8}],
    "LucidTestRemembers": [{"strength": 0.9}, {"strength": 0.8}],
}


@pytest.mark.parametrize("node", PATCHED)
def test_a_checkpoint_knows_the_patches_of_its_model(client, base, node):
    """By their numbers, and the same in every run."""

    def model_of(seed, inputs):
        graph = workflow(LucidDream={"steps": 1, "views": 1, "seed": seed})
        loader, ism = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidISM")
        graph["patch"] = {"class_type": node, "inputs": {"model": [loader, 0], **inputs}}
        graph[ism]["inputs"]["model"] = ["patch", 0]
        settings = checkpoint.read(base / "output" / summary_of(client.run(graph))["checkpoint"])[1]
        return {name: value for name, value in settings.items() if name.startswith(("model", "patch"))}

    some, other = PATCHED[node]
    first = model_of(141, some)
    assert first == model_of(
        142, some
    )  # the patch of before, which the host kept: APG's has changed its mean
    assert first != model_of(143, other) and first == model_of(144, some)


def test_a_patch_that_remembers_what_it_saw_does_not_stop_a_resume(client):
    """In the same host, whose patch has seen the run that is resumed; with another strength it is another
    patch.
    """
    graph = workflow(LucidDream={"steps": 4, "seed": 145})
    loader, ism = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidISM")
    graph["patch"] = {"class_type": "LucidTestRemembers", "inputs": {"model": [loader, 0], "strength": 0.9}}
    graph[ism]["inputs"]["model"] = ["patch", 0]
    graph[node_of(graph, "LucidDream")]["inputs"]["resume"] = summary_of(client.run(graph))["checkpoint"]
    assert summary_of(client.run(graph))["steps"] == 4
    graph["patch"]["inputs"]["strength"] = 0.8
    with fails("LucidDream", "OtherRun", "", "run: patch LucidTestRemembers.", "combine: strength 1 was"):
        client.run(graph)


@pytest.mark.parametrize("name", ["lucid/none.safetensors", "../../etc/hostname", "lucid"])
def test_a_checkpoint_that_is_not_there_is_refused(client, name):
    with fails("LucidDream", "BadSetting", f"resume is {name!r}"):
        client.run(workflow(LucidDream={"resume": name}))


HASHES = ("start", "conditioning", "model", "vae")  # of numbers that another CPU may round differently


def test_a_workflow_and_a_checkpoint_of_before_run_on(client, base):
    """Both were written by the version before the settings were grouped (checkpoints of format 1)."""
    graph = json.loads((DATA / "workflow_format_1.json").read_text())
    whole = client.run(graph)
    today = checkpoint.read(base / "output" / summary_of(whole)["checkpoint"])[1]
    with safe_open(DATA / "checkpoint_format_1.safetensors", "pt") as file:
        header = json.loads(file.metadata()[checkpoint.HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["format"] == 1 and header["step"] == 4
    header["settings"] |= {name: today[name] for name in HASHES}
    save_file(tensors, base / "output/lucid/format_1.safetensors", {checkpoint.HEADER: json.dumps(header)})
    graph[node_of(graph, "LucidDream")]["inputs"]["resume"] = "lucid/format_1.safetensors"
    resumed = client.run(graph)
    assert summary_of(resumed)["steps"] == 6
    assert summary_of(resumed)["evaluations"] == summary_of(whole)["evaluations"]
    for value, expected in zip(vars(ply_of(client, resumed)).values(), vars(ply_of(client, whole)).values()):
        torch.testing.assert_close(value, expected, rtol=0, atol=0.02)
