"""Memory and precision in the real host: the copy of the VAE, TAESD, half precision, compiled models."""

import asyncio

import numpy as np
import pytest
import torch
from rounding import ROUNDINGS
from safetensors.torch import load_file, save_file

from devtools.host import Server
from workflows.api.client import Client

from .failing import fails
from .families import TAEF2, file_of
from .graphs import Graph, node_of, ply_of, with_model, workflow
from .test_cancel import cancelled


@pytest.fixture(scope="module")
def taesd(base):
    """The demo's VAE as TAESD's two files: what Load VAE lists as "taesd"."""
    folder = base / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    weights = load_file(base / "models" / "checkpoints" / "lucid_demo_prior.safetensors")
    for part in ("encoder", "decoder"):
        prefix = f"first_stage_model.taesd_{part}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        save_file(own, folder / f"taesd_{part}.safetensors")


def probed(client, vae_node, slot):
    graph = Graph({"vae": vae_node})
    probe = graph.add("LucidTestVae", vae=["vae", slot])
    return client.run(graph)["outputs"][probe]


@pytest.mark.parametrize("name", ["of the checkpoint", "taesd", TAEF2, "wan_vae", "rgba_vae", "taew"])
def test_gradients_pass_the_vae_whole_in_parts_and_with_its_weights_offloaded(client, taesd, families, name):
    """A checkpoint's VAE is copied from its file; TAESD, of two files, from its weights. A video VAE, and the
    tiny one of its latents, gets every view as a video of one frame."""
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "lucid_demo_prior.safetensors"}}
    if name != "of the checkpoint":
        loader = {
            "class_type": "VAELoader",
            "inputs": {"vae_name": name if name in ("taesd", TAEF2) else file_of(name)},
        }
    found = probed(client, loader, 2 if name == "of the checkpoint" else 0)
    assert found["gradient"][0] > 0
    assert all(found[way][0] < ROUNDINGS * found[f"{way} rounding"][0] for way in ("encode", "decode"))
    assert len(found["shape"]) == 4 and found["decoded"] == [2, 64, 64, 3]
    assert all(found[way][0] < ROUNDINGS * found["rounding"][0] for way in ("parts", "blocks", "low"))
    assert found["fitting"] == [None] and found["kept"][0] < 0.75
    assert found["lowvram"] == [True] and found["loaded"][0] < 1e5


def test_a_splat_is_distilled_through_taesd(client, taesd):
    graph = workflow(LucidDream={"seed": 101})
    graph["taesd"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}}
    graph[node_of(graph, "LucidISM")]["inputs"]["vae"] = ["taesd", 0]
    splats = ply_of(client, client.run(graph))
    assert len(splats) > 100 and all(x.isfinite().all() for x in vars(splats).values())


def test_a_cancelled_run_leaves_no_bytes_behind(client):
    """Its state is some 3 MB for each copy of the splat; a whole run before leaves what the host keeps."""
    graph = lambda seed: with_model(
        "2 s from call 12", LucidPointCloud={"count": 20_000}, LucidDream={"steps": 20, "seed": seed}
    )
    bytes_alive = lambda: probe_alive(client)["bytes"][0]
    cancel = lambda seed: asyncio.run(cancelled(client, graph(seed), when_step=2, wait_s=0.5))
    cancel(111)
    before = bytes_alive()
    cancel(112)
    cancel(113)
    assert bytes_alive() <= before + 2**16


def probe_alive(client):
    graph = {"probe": {"class_type": "LucidTestAlive", "inputs": {"nonce": np.random.randint(1 << 30)}}}
    return client.run(graph)["outputs"]["probe"]


def test_the_copy_of_the_vae_is_gone_after_a_run_an_error_and_a_cancel(client):
    client.run(workflow())
    before = probe_alive(client)["vaes"]
    client.run(workflow(LucidDream={"seed": 102}))
    assert probe_alive(client)["vaes"] == before
    with fails("LucidDream", "RuntimeError", "", "on purpose"):
        client.run(with_model("fails at call 4", LucidDream={"seed": 103}))
    assert probe_alive(client)["vaes"] == before
    graph = with_model("2 s from call 12", LucidDream={"steps": 20, "seed": 104})
    asyncio.run(cancelled(client, graph, when_step=2, wait_s=0.5))
    assert probe_alive(client)["vaes"] == before


def test_a_compiled_model_gives_the_same_splat(client):
    """LucidTestCompile is the host's Torch Compile Model but for its backend."""
    settings = {"seed": 105, "views": 2}
    plain = ply_of(client, client.run(workflow(LucidDream=settings)))
    graph = workflow(LucidDream=settings)
    graph["compiled"] = {
        "class_type": "LucidTestCompile",
        "inputs": {"model": [node_of(graph, "CheckpointLoaderSimple"), 0]},
    }
    graph[node_of(graph, "LucidISM")]["inputs"]["model"] = ["compiled", 0]
    compiled = ply_of(client, client.run(graph))
    assert torch.allclose(plain.means, compiled.means, atol=1e-3)


def test_a_host_of_other_formats_distils(host_path, base, client, tmp_path):
    """VAE in float16, weights as channels_last: another server, which differs from the first by a
    rounding.
    """
    settings = {"seed": 106, "steps": 3, "views": 2}
    plain = ply_of(client, client.run(workflow(LucidDream=settings)))
    flags = ("--fp16-vae", "--force-channels-last")
    with Server(host_path, base, tmp_path / "server.log", flags=flags) as server:
        other = Client(server.address, server.log_tail)
        half = ply_of(other, other.run(workflow(LucidDream=settings)))
    assert "dtype: torch.float16" in (tmp_path / "server.log").read_text()
    assert (
        0 < (half.means - plain.means).abs().mean() < 0.2 * 3 * 2.5e-3
    )  # Adam's steps: three of at most 2.5e-3
