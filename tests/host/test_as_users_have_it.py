"""Splats, files and settings as users bring them: shown, saved and told about as they would expect."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lucid_core.io import ply

from .failing import fails
from .graphs import ROOT, Graph, files, image, node_of, ply_of, summary_of, with_start, workflow


def said(client, graph):
    """-> the history entry, and all that the nodes said."""
    texts = []
    entry = client.run(graph, lambda now: texts.append(now.text))
    return entry, "\n".join(dict.fromkeys(texts))


def shown(change, **inputs):
    """A Lucid Render of a changed ball, saved."""
    graph = Graph()
    ball = {
        "shape": "ball",
        "count": 200,
        "size": 1.0,
        "color": "#ff0000",
        "seed": 0,
        "color_noise": 0.0,
        "opacity": 0.9,
    }
    cloud = graph.add("LucidPointCloud", **ball)
    splat = graph.add("LucidTestSplat", splat=[cloud, 0], change=change)
    defaults = {"width": 64, "height": 64, "frames": 1, "azimuth": 0.0, "elevation": 15.0, "fov": 35.0}
    render = graph.add("LucidRender", splat=[splat, 0], background="#ffffff", **defaults | inputs)
    return graph, splat, graph.save_image([render, 0])


@pytest.mark.parametrize("change", ["one", "two", "on one spot", "tiny", "far and huge", "zero rows"])
def test_a_splat_of_any_kind_is_seen(client, change):
    graph, splat, saved = shown(change)
    video = graph.add(
        "LucidSave", splat=[splat, 0], filename_prefix="test/odd", turntable_frames=2, turntable_size=64
    )
    entry, text = said(client, graph)
    picture = image(client, entry, saved)[0]
    red = (picture[..., 0] > 0.7) & (picture[..., 1:].max(-1) < 0.5)
    assert 40 < red.sum() < 64 * 64 * 0.8 and "Nothing" not in text
    assert len(entry["outputs"][video]["images"]) == 1


def test_what_cannot_be_seen_is_said_on_the_node(client):
    graph, splat, _ = shown("faint")
    graph.add(
        "LucidSave", splat=[splat, 0], filename_prefix="test/odd", turntable_frames=2, turntable_size=64
    )
    _, text = said(client, graph)
    assert (
        "The splat is not visible: no Gaussian is more opaque than 0.0001" in text and "in the video" in text
    )


@pytest.mark.parametrize("prefix", ["", "test/folder/"])
def test_a_prefix_without_a_name_overwrites_nothing(client, base, prefix):
    graph = Graph()
    for color in ("#ff0000", "#00ff00"):
        cloud = graph.add(
            "LucidPointCloud",
            shape="ball",
            count=50,
            size=1.0,
            color=color,
            seed=0,
            color_noise=0.0,
            opacity=0.5,
        )
        graph.add(
            "LucidSave", splat=[cloud, 0], filename_prefix=prefix, turntable_frames=0, turntable_size=64
        )
    entries = files(client.run(graph), "3d")
    paths = [base / "output" / entry["subfolder"] / entry["filename"] for entry in entries]
    colors = [ply.read(path).sh[0, 0].tolist() for path in paths]
    assert len(set(paths)) == 2 and colors[0] != colors[1]


def test_rows_of_zeros_are_no_gaussians(client):
    graph = workflow()
    cloud = [node_of(graph, "LucidPointCloud"), 0]
    graph["start"] = {"class_type": "LucidTestSplat", "inputs": {"splat": cloud, "change": "zero rows"}}
    graph[node_of(graph, "LucidSave")]["inputs"]["splat"] = ["start", 0]
    assert len(ply_of(client, client.run(graph))) == 1


def test_a_splat_that_the_cameras_see_as_a_speck_is_named_on_the_node(client):
    _, text = said(client, with_start("tiny", LucidDream={"seed": 301}))
    assert "a speck in what the cameras see" in text and "fit_to_view" in text
    _, text = said(client, with_start("tiny", LucidDream={"seed": 302, "fit_to_view": True}))
    assert "speck" not in text


def runs(base):
    return sorted(path.name for path in (base / "output" / "lucid").glob("run_*"))


def test_old_checkpoints_are_deleted_and_renamed_ones_stay(client, base):
    dream = lambda seed, **more: client.run(workflow(LucidDream={"seed": seed, **more}))
    dream(311)
    named = base / "output" / "lucid" / "run_mine.safetensors"
    (base / "output" / "lucid" / runs(base)[-1]).rename(named)
    dream(312)
    resumed = runs(base)[0]
    before = [name for name in runs(base) if name != named.name]
    dream(313, checkpoints_kept=2)
    left = runs(base)
    assert named.name in left and len(left) == 3 and before[-1] in left
    newest = summary_of(dream(314, checkpoints_kept=1))["checkpoint"].split("/")[-1]
    assert runs(base) == sorted([newest, named.name]) and resumed not in runs(base)
    again = summary_of(dream(314, checkpoints_kept=1, resume=f"lucid/{newest}"))["checkpoint"].split("/")[-1]
    assert runs(base) == sorted([newest, again, named.name])
    assert summary_of(dream(315, save_checkpoint=False))["checkpoint"] is None
    assert runs(base) == sorted([newest, again, named.name])
    named.unlink()


def test_front_words_that_the_text_does_not_hold_are_named_on_the_node(client):
    words = {"text": "a red mushroom", "front_words": "smiling, red"}
    _, text = said(client, workflow(LucidPrompt=words, LucidDream={"seed": 321}))
    assert "the text does not contain 'smiling'" in text


def test_strays_of_a_file_are_counted_on_the_node(client, base):
    points = np.random.default_rng(0).random((100, 3)) + np.array([450123.4, 4601234.7, 120.0])
    np.savez(base / "input" / "survey.npz", points=np.concatenate([points, [[1e9, 0, 0]]]))
    graph = Graph()
    cloud = graph.add(
        "LucidPointsFromFile",
        file="survey.npz",
        axes="z up",
        count=100_000,
        size=1.0,
        seed=0,
        opacity=0.5,
        copies=3,
        scatter=0.01,
    )
    graph.add(
        "LucidSave", splat=[cloud, 0], filename_prefix="test/survey", turntable_frames=0, turntable_size=64
    )
    entry, text = said(client, graph)
    assert "1 of 101 points are removed as outliers" in text
    splats = ply_of(client, entry)
    assert (
        len(splats) == 300 and len(splats.means[::3, 0].unique()) == 100 and splats.means.abs().max() < 0.52
    )


def test_a_lora_in_the_format_of_luciddreamer_is_refused_by_its_name(client, base):
    name = "lucid_test_cloneofsimo.safetensors"
    weights = {
        f"{part}:{i}:{way}": torch.rand(4, 4)
        for part in ("unet", "text_encoder")
        for i in range(2)
        for way in ("up", "down")
    }
    save_file(weights, base / "models" / "loras" / name)
    graph = workflow(LucidDream={"seed": 331})
    loader, ism = node_of(graph, "CheckpointLoaderSimple"), graph[node_of(graph, "LucidISM")]
    lora = {
        "model": [loader, 0],
        "clip": [loader, 1],
        "lora_name": name,
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    graph["lora"] = {"class_type": "LoraLoader", "inputs": lora}
    ism["inputs"]["model"] = ["lora", 0]
    with fails("LucidISM", "BadFile", f"{name}: ", "cloneofsimo/lora"):
        client.run(graph)


def test_the_client_ends_well_where_the_console_cannot_print_a_path(server, base, tmp_path):
    command = [
        sys.executable,
        ROOT / "workflows" / "api" / "client.py",
        "text_to_splat.json",
        "--server",
        server.address,
    ]
    tiny = {
        "LucidPointCloud.count": 300,
        "LucidDream.steps": 1,
        "LucidDream.views": 1,
        "LucidDream.resolution": 64,
    }
    tiny |= {
        "LucidISM.surface_share": 0,
        "LucidSave.turntable_frames": 0,
        "LucidSave.filename_prefix": "test/点群",
    }
    for target, value in tiny.items():
        command += ["--set", f"{target}={value}"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert any("点群" in path.name for path in tmp_path.iterdir()) and b"\\u70b9" in done.stdout
