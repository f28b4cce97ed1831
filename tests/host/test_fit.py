"""Lucid Load Views and Lucid Fit Views in the real host."""

import asyncio
import dataclasses
import re

import pytest
from same import same

from lucid_core.optimize.views import PRESETS

from .failing import fails
from .graphs import Graph, camera, node_of, ply_of, summary_of
from .test_cancel import cancelled
from .views import ELEVATION_DEG, FOV_DEG, RADIUS, VIEWS, write_views

FOLDER = "test_views"


@pytest.fixture(scope="module", autouse=True)
def folder(base):
    write_views(base / "input" / FOLDER)


def graph_of(cameras=None, steps=8, **inputs):
    """The folder's pictures, fitted from a small ball. cameras: None = of the folder."""
    graph = Graph()
    sizes = {"max_size": 0, "max_views": 0, "count": 200, "seed": 0, "background": "#ffffff"}
    load = graph.add("LucidLoadViews", folder=FOLDER, split="train", **sizes)
    links = {"splat": [load, 3], "image": [load, 0], "mask": [load, 1]}
    cameras = cameras or {"cameras": "views", "cameras.views": [load, 2]}
    preset = {"preset": "cpu", "preset.steps": steps, "preset.views": 2}
    values = {"seed": 0, "background": "#ffffff", "held_out": 3, "mask_use": "opacity", "grow_grad2d": 1000.0}
    fit = graph.add("LucidFit", **links, **cameras, **preset, **{**values, **inputs})
    graph.add(
        "LucidSave",
        splat=[fit, 0],
        filename_prefix="test/fit",
        turntable_frames=0,
        turntable_size=64,
    )
    return graph


ORBIT = {
    "cameras": "orbit",
    "cameras.azimuths": ", ".join(str(360 * i / VIEWS) for i in range(VIEWS)),
    "cameras.elevations": str(ELEVATION_DEG),
    "cameras.radius": RADIUS,
    "cameras.fov": FOV_DEG,
}


def test_a_folder_becomes_a_splat_that_is_scored_on_held_out_views(client):
    first, entry = client.run(graph_of(steps=1)), client.run(graph_of(steps=40))
    score = summary_of(entry)["score"]
    assert score["held_out"] and score["views"] == 2
    assert score["psnr"] > summary_of(first)["score"]["psnr"] + 3
    assert summary_of(entry)["evaluations"] == 0


def test_the_cameras_of_the_folder_are_those_of_the_orbit(client):
    """And those of the host's Create Camera Info, one socket per picture."""
    of_folder, of_orbit = (summary_of(client.run(graph_of(cameras)))["score"] for cameras in (None, ORBIT))
    assert of_folder["psnr"] == pytest.approx(of_orbit["psnr"], abs=0.05)
    graph = graph_of({"cameras": "camera_info"})
    fit = graph[node_of(graph, "LucidFit")]["inputs"]
    for i in range(VIEWS):
        name = camera(graph, yaw=360 * i / VIEWS, pitch=ELEVATION_DEG)
        graph[name]["inputs"] |= {"fov": FOV_DEG, "mode.distance": RADIUS}
        fit[f"cameras.camera_infos.camera_info{i}"] = [name, 0]
    assert summary_of(client.run(graph))["score"]["psnr"] == pytest.approx(of_orbit["psnr"], abs=0.05)


def test_a_cancelled_fit_is_resumed_to_the_same_splat(client):
    whole = client.run(graph_of(steps=61))
    stopped = cancelled(client, graph_of(steps=61, preview_seconds=0.0), 5, 0, "LucidFit")
    _, texts = asyncio.run(stopped)
    (checkpoint,) = re.findall(r"resume: (\S+)", "\n".join(texts))
    resumed = client.run(graph_of(steps=61, resume=checkpoint))
    assert same(ply_of(client, whole), ply_of(client, resumed))


def test_every_preset_sets_the_widgets_to_its_values(client):
    spec = client.object_info()["LucidFit"]["input"]["required"]["preset"][1]
    for option in spec["options"]:
        shown = {name: widget[1]["default"] for name, widget in option["inputs"]["required"].items()}
        budget = dataclasses.asdict(PRESETS[option["key"]].budget)
        assert shown == {name: budget[name] for name in ("steps", "views")}


@pytest.mark.parametrize(
    "cameras, inputs, kind, name",
    [
        (ORBIT | {"cameras.azimuths": "0, 90"}, {}, "BadSetting", "azimuths is 2 numbers"),
        (ORBIT | {"cameras.azimuths": "front"}, {}, "BadSetting", "azimuths is 'front'"),
        (ORBIT | {"cameras.elevations": "0, 1"}, {}, "BadSetting", "elevations is 2 numbers"),
        (ORBIT | {"cameras.azimuths": ", ".join(["5"] * VIEWS)}, {}, "BadInput", "cameras all look"),
        (None, {"held_out": 1}, "BadSetting", "held_out is 1"),
        (None, {"background": "white"}, "BadSetting", "color is 'white'"),
        (None, {"resume": "lucid/none.safetensors"}, "BadSetting", "resume is"),
    ],
)
def test_bad_input_is_refused_by_name(client, cameras, inputs, kind, name):
    with fails("LucidFit", kind, name):
        client.run(graph_of(cameras, **inputs))


def test_a_folder_that_is_not_there_is_refused(client):
    graph = graph_of()
    graph[node_of(graph, "LucidLoadViews")]["inputs"]["folder"] = "../output"
    with fails("LucidLoadViews", "custom_validation_failed", "folder"):
        client.run(graph)
