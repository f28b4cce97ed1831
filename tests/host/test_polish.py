"""Lucid Polish Texture in the real host: the texture changes and the shape stays; cancelled and refused."""

import asyncio
import re

import numpy as np
import pytest

from .failing import fails
from .graphs import Graph, node_of, workflow
from .test_bake import BAKE, glb_of, mesh_of, sphere
from .test_cancel import cancelled
from .test_targets import targets_of

trimesh = pytest.importorskip("trimesh")


def polished(by_ism=False, **settings):
    """A baked ball, polished: (graph, node of the bake, node of the polish)."""
    known = workflow()
    checkpoint, prompt, ism = (
        node_of(known, name) for name in ("CheckpointLoaderSimple", "LucidPrompt", "LucidISM")
    )
    guidance = known[ism] if by_ism else targets_of(known, ism)
    graph = Graph({checkpoint: known[checkpoint], prompt: known[prompt], "3": guidance})
    assert {checkpoint, prompt} == {"1", "2"}  # so that the next one is 4
    splat = sphere(graph)
    baked = graph.add("LucidBakeTexture", splat=[splat, 0], mesh=[mesh_of(graph, splat), 0], **BAKE)
    values = {"steps": 6, "views": 2, "resolution": 64, "seed": 5} | settings
    return graph, baked, graph.add("LucidPolishTexture", mesh=[baked, 1], guidance=["3", 0], **values)


def texture_of(mesh):
    return np.asarray(mesh.visual.material.baseColorTexture)[..., :3].astype(int)


def test_the_texture_changes_and_the_shape_stays(client):
    graph, baked, node = polished()
    saved = [graph.add("SaveGLB", mesh=[one, 0], filename_prefix="test/polished") for one in (baked, node)]
    entry = client.run(graph)
    before, after = (glb_of(client, entry, one) for one in saved)
    np.testing.assert_array_equal(after.vertices, before.vertices)
    np.testing.assert_array_equal(after.faces, before.faces)
    np.testing.assert_allclose(after.visual.uv, before.visual.uv, atol=1e-7)
    change = np.abs(texture_of(after) - texture_of(before))
    assert 1 < change.mean() < 6 * 0.02 * 255  # steps times learning rate


def test_a_cancelled_polish_keeps_what_it_has(client, base):
    graph, _, node = polished(steps=10_000)
    graph.add("SaveGLB", mesh=[node, 0], filename_prefix="test/polished")
    _, said = asyncio.run(cancelled(client, graph, when_step=2, wait_s=0.0, node="LucidPolishTexture"))
    found = re.fullmatch(r"Stopped at step (\d+) of 10000\. The mesh: (\S+)", said[-1])
    (mesh,) = trimesh.load(base / "output" / found[2], process=False).geometry.values()
    assert int(found[1]) >= 2 and texture_of(mesh).std() > 0


def test_a_guidance_without_pictures_is_refused(client):
    graph, _, node = polished(by_ism=True)
    graph.add("SaveGLB", mesh=[node, 0], filename_prefix="test/polished")
    with fails("LucidPolishTexture", "BadInput", "guidance makes no pictures"):
        client.run(graph)


def test_a_mesh_without_a_texture_is_refused(client):
    graph, baked, node = polished()
    graph[node]["inputs"]["mesh"] = graph[baked]["inputs"]["mesh"]
    graph.add("SaveGLB", mesh=[node, 0], filename_prefix="test/polished")
    with fails("LucidPolishTexture", "BadInput", "the mesh has no texture"):
        client.run(graph)
