"""Starts from meshes, images with depth, files and text, in the real host."""

import asyncio

import numpy as np
import pytest
import torch
from tiny_shap_e import RADII, save

from lucid_core.splats import SH_C0
from lucid_core.starts import shap_e

from .failing import fails
from .graphs import Graph, image, node_of, our_render, ply_of, summary_of, workflow
from .test_cancel import cancelled
from .test_render import landmarks  # noqa: F401

SPLAT = {"count": 4000, "size": 1.0, "seed": 0, "opacity": 0.95}


def from_mesh(graph, mesh, **inputs):
    return graph.add("LucidPointsFromMesh", mesh=mesh, color="#808080", thickness=1.0, **{**SPLAT, **inputs})


def from_depth(graph, picture, depth, mask=None, **inputs):
    optional = {"mask": mask} if mask else {}
    settings = {"encoding": "linear", "fov_deg": 35.0, "depth_share": 0.5, **SPLAT, **inputs}
    return graph.add("LucidPointsFromDepth", image=picture, depth=depth, **optional, **settings)


def from_text(graph, **inputs):
    settings = {
        "model": "tiny/shap-e",
        "steps": 3,
        "guidance_scale": 15.0,
        "thickness": 1.0,
        "grid": 32,
        **SPLAT,
        **inputs,
    }
    return graph.add("LucidShapE", **{"text": "a red chair", **settings})


def from_file(graph, file, **inputs):
    return graph.add("LucidPointsFromFile", file=file, **{"axes": "y up", **SPLAT, **inputs})


def saved(graph, start):
    graph.add(
        "LucidSave", splat=[start, 0], filename_prefix="test/start", turntable_frames=0, turntable_size=64
    )
    return graph


def write_ply(path, points, colors):
    """An ASCII point cloud as Open3D and MeshLab write it."""
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property float {name}" for name in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    rows = [f"{x:.6f} {y:.6f} {z:.6f} {r} {g} {b}" for (x, y, z), (r, g, b) in zip(points, colors)]
    path.write_text("\n".join([*header, "end_header", *rows, ""]), encoding="ascii")


def splats_of(client, start):
    """The splats of a graph of `start` alone."""
    graph = Graph()
    return ply_of(client, client.run(saved(graph, start(graph))))


@pytest.fixture(scope="module")
def model(base):
    """A Shap-E with few random weights in models/diffusers: the real ones cannot be had in a test."""
    pytest.importorskip("diffusers")
    return save(base / "models" / "diffusers" / "tiny" / "shap-e")


@pytest.fixture(scope="module")
def points(base):
    """A file of red points in a ball and of green ones on top of it (y up)."""
    ball = np.random.default_rng(0).normal(size=(600, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True) * 2
    top = ball[:200] * 0.4 + [0, 0.7, 0]
    colors = np.array([[255, 0, 0]] * 600 + [[0, 255, 0]] * 200, np.uint8)
    write_ply(base / "input" / "points.ply", np.concatenate([ball, top]), colors)
    return "points.ply"


@pytest.mark.parametrize("kind", ["vertex colours", "base colour", "texture"])
def test_the_front_of_a_mesh_is_seen_by_the_front_camera(client, kind):
    graph = Graph()
    start = from_mesh(graph, [graph.add("LucidTestMesh", kind=kind), 0])
    views = {"front": (0.0, 0.0), "side": (90.0, 0.0), "top": (0.0, 89.0), "back": (180.0, 0.0)}
    pictures = {
        name: graph.save_image([our_render(graph, [start, 0], azimuth=azimuth, elevation=elevation), 0])
        for name, (azimuth, elevation) in views.items()
    }
    entry = client.run(graph)
    seen = {
        name: image(client, entry, node)[0, 60:100, 76:116].mean((0, 1)) for name, node in pictures.items()
    }
    factor = [0.5, 0.5, 1.0] if kind == "base colour" else 1.0
    expected = {"front": [1, 0, 0], "side": [0, 1, 0], "top": [1, 1, 1], "back": [0, 0, 1]}
    for name, color in expected.items():
        assert np.abs(seen[name] - np.multiply(color, factor)).max() < 0.1, name


def test_the_hosts_own_mesh_of_a_splat_keeps_its_colours(client):
    """A splat, Extract Mesh from Splat, and back: its colours are linear light in a mesh."""
    graph = Graph()
    ball = graph.add(
        "LucidPointCloud",
        shape="sphere",
        count=4000,
        size=1.0,
        color="#c06020",
        seed=0,
        color_noise=0.0,
        opacity=0.95,
    )
    mesh = graph.add(
        "SplatToMesh",
        splat=[ball, 0],
        resolution=64,
        kernel=5,
        smooth=0,
        level=0.4,
        min_component=0,
        min_opacity=0.02,
        color_sharpen=2.0,
    )
    splats = ply_of(client, client.run(saved(graph, from_mesh(graph, [mesh, 0]))))
    color = (splats.sh[:, 0] * SH_C0 + 0.5).mean(0)
    torch.testing.assert_close(color, torch.tensor([0xC0, 0x60, 0x20]) / 255, atol=0.02, rtol=0)
    assert len(splats) == 4000 and (splats.means.amax(0) - splats.means.amin(0) - 1).abs().max() < 0.1


def test_an_image_with_depth_is_rendered_back(client, landmarks):  # noqa: F811
    """Lucid Render's image, mask and depth of an object, and what the points of these show to the same
    camera.
    """
    source, splat = landmarks
    graph = Graph(source)
    view = our_render(graph, splat, elevation=0.0)
    start = from_depth(graph, [view, 0], [view, 2], [view, 1], count=40_000)
    again = our_render(graph, [start, 0], camera_info=[start, 1])
    front = our_render(graph, [start, 0], elevation=0.0)
    nodes = {
        "was": [view, 0],
        "is": [again, 0],
        "front": [front, 0],
        "mask": [graph.add("MaskToImage", mask=[view, 1]), 0],
    }
    nodes = {name: graph.save_image(link) for name, link in nodes.items()}
    entry = client.run(graph)
    was, now, front, mask = (image(client, entry, node)[0] for node in nodes.values())
    solid = mask[..., 0] > 0.9
    assert solid.sum() > 2000 and np.abs(was - now)[solid].mean() < 0.05
    assert front[80, 96].max() > 0.2 and np.abs(front[75:85, 90:102].mean((0, 1)) - [1, 0, 0]).max() < 0.25


def test_a_file_of_points_is_listed_loaded_and_read_again_when_it_changes(client, base, points):
    kind, options = client.object_info()["LucidPointsFromFile"]["input"]["required"]["file"]
    assert points in (kind if isinstance(kind, list) else options["options"])
    splats = splats_of(client, lambda graph: from_file(graph, points))
    colors = splats.sh[:, 0] * SH_C0 + 0.5
    red, green = (splats.means[colors[:, channel] > 0.9] for channel in (0, 1))
    assert (len(red), len(green)) == (600, 200) and green[:, 1].mean() < red[:, 1].mean() - 0.3  # up is -y
    write_ply(base / "input" / points, np.random.default_rng(0).random((50, 3)), np.zeros((50, 3), int))
    assert len(splats_of(client, lambda graph: from_file(graph, points))) == 50


def test_text_becomes_a_splat_by_the_real_pipeline(client, model):
    """diffusers' own Shap-E, with few random weights whose surface is an ellipsoid (see tiny_shap_e)."""
    kind, options = client.object_info()["LucidShapE"]["input"]["required"]["model"]
    assert (kind if isinstance(kind, list) else options["options"]) == ["tiny/shap-e", "openai/shap-e"]
    steps = []
    graph = Graph()
    entry = client.run(saved(graph, from_text(graph)), steps.append)
    splats = ply_of(client, entry)
    extent = splats.means.amax(0) - splats.means.amin(0)
    torch.testing.assert_close(extent, RADII[[0, 2, 1]] / RADII[0], atol=0.08, rtol=0)
    assert max(p.step for p in steps if p.node == "LucidShapE" and p.steps) == 2 * 3 - 1 + 32**3 // 4096
    again = splats_of(client, lambda graph: from_text(graph, count=3999))
    same = splats_of(client, lambda graph: from_text(graph))
    assert torch.equal(same.means, splats.means) and len(again) == 3999


def test_text_to_splat_can_be_cancelled(client, model):
    graph = Graph()
    saved(graph, from_text(graph, steps=1000))
    seconds, _ = asyncio.run(cancelled(client, graph, 2, 0.0, "LucidShapE"))
    assert seconds < 5
    splats_of(client, lambda graph: from_text(graph, seed=3))


def test_a_model_that_is_not_there_is_named_with_the_way_to_it(client):
    if shap_e.in_hub_cache():
        pytest.skip("this machine's hub cache holds Shap-E")
    graph = Graph()
    with fails("LucidShapE", "BadInput", "model openai/shap-e is not", "hf download openai/shap-e"):
        client.run(saved(graph, from_text(graph, model="openai/shap-e")))


@pytest.mark.parametrize("kind, name", [("batch", "mesh is a batch of 2"), ("empty", "the mesh is empty")])
def test_bad_meshes_are_refused(client, kind, name):
    graph = Graph()
    with fails("LucidPointsFromMesh", "BadSetting", name):
        client.run(saved(graph, from_mesh(graph, [graph.add("LucidTestMesh", kind=kind), 0])))


@pytest.mark.parametrize("name", ["none.ply", "../output/a.ply"])
def test_a_file_that_is_not_there_is_refused(client, name):
    graph = Graph()
    with fails("LucidPointsFromFile", "custom_validation_failed", "file"):
        client.run(saved(graph, from_file(graph, name)))


@pytest.mark.parametrize("start", ["mesh", "depth", "file", "text"])
def test_every_start_can_be_dreamt_on(client, base, model, start):
    graph = Graph(workflow())
    if start == "mesh":
        name = from_mesh(graph, [graph.add("LucidTestMesh", kind="plain"), 0], count=300, opacity=0.1)
    elif start == "depth":
        view = our_render(graph, [node_of(graph, "LucidPointCloud"), 0])
        name = from_depth(graph, [view, 0], [view, 1], count=300, opacity=0.1)
    elif start == "file":
        np.savez(base / "input" / "points.npz", points=np.random.default_rng(0).random((400, 3)))
        name = from_file(graph, "points.npz", count=300, opacity=0.1)
    else:
        name = from_text(graph, count=300, opacity=0.1)
    graph[node_of(graph, "LucidDream")]["inputs"]["splat"] = [name, 0]
    entry = client.run(graph)
    assert summary_of(entry)["steps"] == 2 and ply_of(client, entry).means.isfinite().all()


def test_a_body_and_its_skeleton_are_at_one_place(client):
    """The body of points with `size` 0; every Gaussian of the skeleton is in it or at its face."""
    body = lambda graph: graph.add("LucidBody", pose="walking", height=2.0)
    points = splats_of(client, lambda graph: from_mesh(graph, [body(graph), 0], size=0.0))
    graph = Graph()
    save = {"filename_prefix": "test/start", "turntable_frames": 0, "turntable_size": 64}
    graph.add("LucidSave", splat=[body(graph), 1], **save)
    skeleton = ply_of(client, client.run(graph))
    low, high = points.means.amin(0), points.means.amax(0)
    assert low[1] == pytest.approx(-1.0, abs=0.02) and high[1] == pytest.approx(0.97, abs=0.03)  # y is down
    assert ((skeleton.means > low - 0.05) & (skeleton.means < high + 0.05)).all()
    colors = skeleton.sh[:, 0] * SH_C0 + 0.5
    red = (colors - torch.tensor([1.0, 0.0, 0.0])).abs().amax(-1) < 0.01  # the nose
    torch.testing.assert_close(
        skeleton.means[red].mean(0), torch.tensor([0.0, -0.85, -0.144]), atol=0.01, rtol=0
    )
