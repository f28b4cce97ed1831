"""From a splat to a textured mesh in the real host: its mesh extraction, our bake, its SaveGLB."""

import io

import numpy as np
import pytest

from .failing import fails
from .graphs import Graph, image

trimesh = pytest.importorskip("trimesh")
BAKE = {"size": 128, "faces": 500, "views": 8, "angle_power": 4.0}


def sphere(graph):
    return graph.add(
        "LucidPointCloud",
        shape="sphere",
        count=3000,
        size=1.0,
        color="#cc3311",
        seed=0,
        color_noise=0.0,
        opacity=0.95,
    )


def mesh_of(graph, splat):
    """The host's mesh of the solid of `splat`."""
    solid = graph.add("LucidSolidSplat", splat=[splat, 0], cells=24, min_opacity=0.1)
    settings = {"kernel": 5, "smooth": 10, "level": 0.8, "min_component": 100, "min_opacity": 0.02}
    return graph.add("SplatToMesh", splat=[solid, 0], resolution=64, color_sharpen=2.0, **settings)


def glb_of(client, entry, node):
    """The mesh that a SaveGLB node wrote."""
    (file,) = entry["outputs"][node]["3d"]
    (mesh,) = trimesh.load(io.BytesIO(client.view(file)), file_type="glb", process=False).geometry.values()
    return mesh


def test_a_splat_becomes_a_textured_mesh(client):
    graph = Graph()
    splat = sphere(graph)
    baked = graph.add("LucidBakeTexture", splat=[splat, 0], mesh=[mesh_of(graph, splat), 0], **BAKE)
    ours = graph.add("SaveGLB", mesh=[baked, 0], filename_prefix="test/baked")
    theirs = graph.add("SaveGLB", mesh=[baked, 1], filename_prefix="test/baked")
    picture = graph.save_image([baked, 2])
    entry = client.run(graph)

    mesh = glb_of(client, entry, ours)
    assert 400 < len(mesh.faces) <= 500
    assert np.linalg.norm(mesh.vertices, axis=-1) == pytest.approx(0.5, abs=0.06)  # a cell and a half
    texture = np.asarray(mesh.visual.material.baseColorTexture)[..., :3]
    assert np.abs(texture - np.array([0xCC, 0x33, 0x11])).max() <= 2
    host = glb_of(client, entry, theirs)
    np.testing.assert_array_equal(np.asarray(host.visual.material.baseColorTexture)[..., :3], texture)
    np.testing.assert_array_equal(host.vertices, mesh.vertices)
    np.testing.assert_allclose(host.visual.uv, mesh.visual.uv, atol=1e-7)
    np.testing.assert_array_equal((image(client, entry, picture)[0] * 255).round(), texture)


def test_a_splat_of_another_place_is_refused(client):
    graph = Graph()
    splat = sphere(graph)
    still = dict.fromkeys(("translate_y", "translate_z", "rotate_x", "rotate_y", "rotate_z"), 0.0)
    scale = dict.fromkeys(("scale_x", "scale_y", "scale_z"), 1.0)
    moved = graph.add("TransformSplat", splat=[splat, 0], translate_x=20.0, **still, **scale)
    baked = graph.add("LucidBakeTexture", splat=[moved, 0], mesh=[mesh_of(graph, splat), 0], **BAKE)
    graph.save_image([baked, 2])
    with fails("LucidBakeTexture", "BadInput", "the splat lies in the box"):
        client.run(graph)
