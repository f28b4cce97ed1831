"""The nodes of the radiance field in the real host."""

import asyncio
import io

import numpy as np
import pytest

from lucid_core.io.ply import read

from .failing import fails
from .graphs import Graph, image, node_of, summary_of, workflow
from .test_cancel import cancelled

trimesh = pytest.importorskip("trimesh")
START = {"shape": "ball", "size": 1.2, "extent": 2.4, "resolution": 24, "color": "#cc3311", "fill": 8.0}


def dream(steps=3, **inputs):
    """text_to_splat, but with a small field as the start: (graph, id of Lucid Dream Field)."""
    graph = Graph(workflow())
    run, old = node_of(graph, "LucidDream"), graph[node_of(graph, "LucidDream")]["inputs"]
    for name in ("LucidPointCloud", "LucidSave", "PreviewGaussianSplat"):
        del graph[node_of(graph, name)]
    graph["start"] = {"class_type": "LucidField", "inputs": START}
    graph[run] = {
        "class_type": "LucidDreamField",
        "inputs": {
            "field": ["start", 0],
            "guidance": old["guidance"],
            "cameras": old["cameras"],
            "seed": 0,
            "preset": "cpu",
            "preset.steps": steps,
            "preset.views": 1,
            "preset.resolution": 64,
            **inputs,
        },
    }
    return graph, run


@pytest.mark.parametrize("name", ["lr_density", "lr_density_last"])
def test_one_of_two_rates_may_be_given(client, name):
    """The other one is that of the preset."""
    rates = {"preset.lr_density": 0.15, "preset.lr_density_last": 0.015}
    found = []
    for changed in ({f"preset.{name}": 0.09}, {**rates, f"preset.{name}": 0.09}, rates):
        graph, run = dream(**changed)
        pictures, _ = show(graph, [run, 0])
        found.append(image(client, client.run(graph), pictures))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[1], found[2])


def show(graph, field):
    view = {"width": 48, "height": 48, "azimuth": 0.0, "elevation": 0.0, "fov": 30.0, "background": "#ffffff"}
    shown = graph.add("LucidRenderField", field=field, frames=2, **view)
    return [graph.save_image([shown, 0]), graph.save_image([shown, 2])]


def add(graph, name, class_type, **inputs):
    graph[name] = {"class_type": class_type, "inputs": inputs}
    return name


def test_a_start_becomes_pictures_a_splat_and_a_mesh(client, tmp_path):
    graph = Graph()
    start = graph.add("LucidField", **START)
    pictures, depths = show(graph, [start, 0])
    splat = graph.add(
        "LucidFieldToSplat",
        field=[start, 0],
        cells=32,
        min_opacity=0.5,
        smoothing=1.0,
        fit_steps=2,
        seed=0,
        backend="auto",
    )
    ply = graph.add(
        "LucidSave", splat=[splat, 0], filename_prefix="test/field", turntable_frames=0, turntable_size=64
    )
    mesh = graph.add("LucidFieldToMesh", field=[start, 0], cells=32, min_opacity=0.5, smoothing=0.5)
    saved = graph.add("SaveGLB", mesh=[mesh, 0], filename_prefix="test/field")
    entry = client.run(graph)

    seen = image(client, entry, pictures)
    assert np.abs(seen[:, 24, 24] - np.array([0xCC, 0x33, 0x11]) / 255).max() < 0.02
    assert seen[:, 0, 0].min() == 1 and image(client, entry, depths)[0, 24, 24].mean() > 0.5
    (cloud,) = entry["outputs"][ply]["3d"]
    (tmp_path / "field.ply").write_bytes(client.view(cloud))
    splats = read(tmp_path / "field.ply")
    assert splats.means.norm(dim=-1).median().item() == pytest.approx(0.6, abs=0.05)
    (file,) = entry["outputs"][saved]["3d"]
    (ball,) = trimesh.load(io.BytesIO(client.view(file)), file_type="glb", process=False).geometry.values()
    assert ball.is_watertight and ball.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.15)


def test_a_field_is_optimised_resumed_and_its_checkpoint_is_no_splat(client):
    graph, run = dream(steps=4)
    add(
        graph,
        "shown",
        "LucidRenderField",
        field=[run, 0],
        width=32,
        height=32,
        frames=1,
        azimuth=0.0,
        elevation=0.0,
        fov=30.0,
        background="#ffffff",
    )
    add(graph, "image", "SaveImage", images=["shown", 0], filename_prefix="test/field")
    whole = client.run(graph)
    summary = summary_of(whole)
    assert summary["steps"] == 4 and summary["resolution"] == 24
    assert {"gradient norm", "tv", "entropy"} <= set(summary["losses"])

    checkpoint = summary["checkpoint"]
    graph[run]["inputs"]["resume"] = checkpoint
    again = client.run(graph)
    assert summary_of(again)["evaluations"] == summary["evaluations"]
    np.testing.assert_array_equal(image(client, again, "image"), image(client, whole, "image"))

    graph[run]["inputs"] |= {"resume": "", "preset.image_residual": False}  # on in the preset
    through_encoder = client.run(graph)
    assert np.abs(image(client, through_encoder, "image") - image(client, whole, "image")).max() > 0

    with fails("LucidDream", "BadFile", "", "a checkpoint of a field", "optimises a splat"):
        client.run(workflow(LucidDream={"resume": checkpoint}))
    splat = summary_of(client.run(workflow()))["checkpoint"]
    graph[run]["inputs"]["resume"] = splat
    with fails("LucidDreamField", "BadFile", "", "a checkpoint of a splat", "optimises a field"):
        client.run(graph)


def test_a_cancelled_run_says_how_to_go_on(client):
    graph, run = dream(steps=400)
    add(
        graph,
        "shown",
        "LucidRenderField",
        field=[run, 0],
        width=32,
        height=32,
        frames=1,
        azimuth=0.0,
        elevation=0.0,
        fov=30.0,
        background="#ffffff",
    )
    add(graph, "image", "SaveImage", images=["shown", 0], filename_prefix="test/field")
    _, said = asyncio.run(cancelled(client, graph, 2, 0.0, "LucidDreamField"))
    assert "To go on, resume: lucid/run_" in said[-1]


def test_no_memory_in_an_update_keeps_the_field(client, base):
    """It is written alone: a run can start from it, but not go on."""
    files = lambda: set((base / "output" / "lucid").glob("unfinished_*.safetensors"))
    graph, run = dream(steps=20)
    ism = graph[node_of(graph, "LucidISM")]["inputs"]
    add(
        graph,
        "fault",
        "LucidTestModel",
        model=ism["model"],
        vae=ism["vae"],
        change="no memory in the second update",
    )
    ism.update(model=["fault", 0], vae=["fault", 1])
    show(graph, [run, 0])
    before = files()
    with fails("LucidDreamField", "OutOfMemory", "there is no memory for the update of the parameters"):
        client.run(graph)
    (saved,) = files() - before
    again, run = dream(steps=2, resume=f"lucid/{saved.name}")
    show(again, [run, 0])
    with fails("LucidDreamField", "OtherRun"):
        client.run(again)
    again[run]["inputs"]["resume_field_only"] = True
    assert summary_of(client.run(again))["steps"] == 2


def test_a_field_without_density_says_what_helps(client):
    graph = Graph()
    start = graph.add("LucidField", **{**START, "size": 0.1, "fill": 0.01, "resolution": 64})
    mesh = graph.add("LucidFieldToMesh", field=[start, 0], cells=32, min_opacity=0.9, smoothing=1.0)
    graph.add("SaveGLB", mesh=[mesh, 0], filename_prefix="test/field")
    with fails("LucidFieldToMesh", "BadInput", "", "is nowhere solid", "lower min_opacity"):
        client.run(graph)
