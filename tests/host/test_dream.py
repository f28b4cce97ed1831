"""Lucid Dream in the real host: text to splat, seeds, limits, failures, refining."""

import numpy as np
import pytest
import torch
from rounding import ROUNDINGS

from lucid_core.io.ply import read

from .failing import fails
from .graphs import (
    Graph,
    files,
    node_of,
    only_start,
    ply_of,
    summary_of,
    with_model,
    with_selection,
    with_start,
    workflow,
)


def test_text_to_splat_end_to_end(client):
    steps = []
    entry = client.run(workflow(LucidSave={"turntable_frames": 6, "turntable_size": 64}), steps.append)
    splats = ply_of(client, entry)
    assert len(splats) > 100 and splats.means.isfinite().all()
    (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
    assert summary["steps"] == 2 and summary["splats"] == len(splats) and summary["evaluations"] >= 6
    assert [p.step for p in steps if p.node == "LucidDream" and p.steps][-1] == 2
    names = [file["filename"] for kind in ("3d", "images") for file in files(entry, kind)]
    assert any(name.endswith(".ply") for name in names) and any(name.endswith(".mp4") for name in names)


def test_same_seed_gives_the_same_splat_and_another_does_not(client):
    """`turntable_size` changes nothing about the splat but makes the host run LucidSave again; LucidDream
    runs anew.
    """

    def run(seed, count):
        return ply_of(
            client, client.run(workflow(LucidDream={"seed": seed}, LucidPointCloud={"count": count}))
        )

    first, _, again, other = run(11, 300), run(11, 301), run(11, 300), run(12, 300)
    assert torch.equal(first.means, again.means) and torch.equal(first.sh, again.sh)
    assert not torch.equal(first.means, other.means)


def test_dream_does_not_modify_its_cached_input(client):
    graph = workflow()
    start = Graph(graph).add(
        "LucidSave",
        splat=[node_of(graph, "LucidPointCloud"), 0],
        filename_prefix="test/start",
        turntable_frames=0,
        turntable_size=64,
    )
    assert start
    before = ply_of(client, client.run(only_start(graph)))
    client.run(graph)
    after = ply_of(client, client.run(only_start(graph, prefix="test/start2")))
    assert torch.equal(before.means, after.means) and torch.equal(before.opacities, after.opacities)


def test_perp_neg_asks_the_model_about_two_more_prompts(client):
    """With one view from behind: 2 evaluations more in each of 2 steps, and another splat."""

    def run(perp_neg):
        behind = {"azimuth_min_deg": 150.0, "azimuth_max_deg": 160.0}
        graph = workflow(LucidPrompt={"perp_neg": perp_neg}, LucidCameras=behind, LucidDream={"seed": 21})
        entry = client.run(graph)
        (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
        return summary["evaluations"], ply_of(client, entry)

    (plain, splats), (more, pushed) = run(0.0), run(2.0)
    assert more == plain + 4 and not torch.equal(splats.means, pushed.means)


def test_three_gaussians_are_a_splat(client):
    splats = ply_of(client, client.run(with_start("three", LucidDream={"seed": 91})))
    assert len(splats) == 3 and splats.means.isfinite().all()


def test_a_splat_a_million_units_away_is_refused_or_fitted_to_the_view(client):
    with fails("LucidDream", "BadSplats", "the splat's means lie about (1e+06, ", "fit_to_view"):
        client.run(with_start("far", LucidDream={"seed": 92}))
    splats = ply_of(
        client, client.run(with_start("far and huge", LucidDream={"seed": 92, "fit_to_view": True}))
    )
    assert splats.means.isfinite().all() and (splats.means.median(dim=0).values - 1e6).abs().max() < 5e3
    assert (splats.means - 1e6).norm(dim=-1).max() > 1e3  # of the size that it was


def test_the_copy_of_the_vae_is_released_also_after_an_error(client):
    """The host's list of loaded models is as long after a run, and after a failed one, as before."""

    def loaded(change=None):
        graph = {"probe": {"class_type": "LucidTestLoaded", "inputs": {"nonce": np.random.randint(1 << 30)}}}
        return client.run(graph)["outputs"]["probe"]["loaded"]

    client.run(workflow())
    before = loaded()
    client.run(workflow(LucidDream={"seed": 5}))
    assert loaded() == before
    failing = workflow(LucidDream={"seed": 6})
    failing[node_of(failing, "LucidISM")]["inputs"]["model"] = ["failing", 0]
    failing["failing"] = {
        "class_type": "LucidTestModel",
        "inputs": {
            "model": [node_of(failing, "CheckpointLoaderSimple"), 0],
            "vae": [node_of(failing, "CheckpointLoaderSimple"), 2],
            "change": "fails at call 4",
        },
    }
    with fails("LucidDream", "RuntimeError", "", "on purpose"):
        client.run(failing)
    assert loaded() == before


def test_a_model_that_gives_nan_ends_with_the_last_finite_splat(client):
    entry = client.run(with_model("NaN from call 12", LucidDream={"steps": 20, "seed": 31}))
    (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
    assert 0 < summary["steps"] < 20
    assert f"the loss is not finite at step {summary['steps'] + 1} of 20" in summary["stopped"]
    assert all(x.isfinite().all() for x in vars(ply_of(client, entry)).values())


def test_a_model_that_gives_nan_at_once_leaves_the_start_as_it_is(client):
    """The inversion of the first step alone takes more calls than the model has good ones."""
    ism = {"inversion_steps": 20, "delta_s": 0.01}
    graph = with_model("NaN from call 12", LucidDream={"steps": 20, "seed": 32, "views": 1}, LucidISM=ism)
    texts = []
    entry = client.run(graph, lambda now: texts.append(now.text))
    summary = summary_of(entry)
    assert (summary["steps"], summary["evaluations"], summary["checkpoint"]) == (0, 0, None)
    assert "the loss is not finite at step 1 of 20" in summary["stopped"]
    assert any("not finite" in text and "start" in text for text in texts)
    start = Graph(graph)
    start[node_of(graph, "LucidSave")]["inputs"]["splat"] = [node_of(graph, "LucidPointCloud"), 0]
    unchanged = ply_of(client, client.run(start))
    assert all(
        torch.equal(a, b) for a, b in zip(vars(ply_of(client, entry)).values(), vars(unchanged).values())
    )


def test_a_weight_patch_changes_the_splat(client):
    """The guidance asks the patched MODEL: a patch of weights, as a LoRA loader makes it, before LucidISM
    shows.
    """
    plain = ply_of(client, client.run(workflow(LucidDream={"seed": 21})))
    graph = workflow(LucidDream={"seed": 21})
    loader = node_of(graph, "CheckpointLoaderSimple")
    graph["patch"] = {
        "class_type": "LucidTestModel",
        "inputs": {"model": [loader, 0], "vae": [loader, 2], "change": "patched weights"},
    }
    graph[node_of(graph, "LucidISM")]["inputs"]["model"] = ["patch", 0]
    patched = ply_of(client, client.run(graph))
    assert not torch.equal(plain.means, patched.means)


def test_the_prior_is_the_hosts_own_model(client):
    """Through HostPrior: sigma, denoise and encode give what the host's own sampler functions and VAE
    give.
    """
    graph = workflow()
    loader, prompt = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidPrompt")
    probe = {
        "probe": {
            "class_type": "LucidTestPrior",
            "inputs": {"model": [loader, 0], "vae": [loader, 2], "prompt": [prompt, 0]},
        },
        loader: graph[loader],
        prompt: graph[prompt],
    }
    found = client.run(probe)["outputs"]["probe"]
    assert max(found["denoise"] + found["rows"]) < ROUNDINGS * found["rounding"][0]
    assert found["encode"][0] < ROUNDINGS * found["encode rounding"][0]
    assert found["sigma"] == pytest.approx([14.6146, 0.02917], rel=1e-3)
    assert found["gradient"][0] > 0


def test_a_limit_on_the_time_ends_the_run_with_its_splat(client):
    reached = []
    graph = workflow(LucidDream={"steps": 100_000, "max_minutes": 0.05, "seed": 51})
    entry = client.run(graph, lambda progress: reached.append(progress.step))
    summary = summary_of(entry)
    assert 1 < summary["steps"] < 1000 and summary["seconds"] < 10 and len(ply_of(client, entry)) > 0
    assert 100_000 in reached  # the bar is full


def test_views_that_do_not_fit_into_memory_together_are_asked_about_in_halves(client, server):
    settings = {"steps": 3, "views": 4, "seed": 71}
    whole = client.run(workflow(LucidDream=settings))
    halves = client.run(with_model("memory for 4 rows", LucidDream=settings))
    assert "no memory for 4 views at a time; going on with 2" in server.log_tail()
    assert summary_of(halves)["evaluations"] == summary_of(whole)["evaluations"]
    a, b = ply_of(client, whole), ply_of(client, halves)
    assert (a.means - b.means).abs().mean() < 0.2 * 3 * 2.5e-3  # Adam's steps: three of at most 2.5e-3


def test_no_memory_for_one_view_is_said_and_the_splat_is_kept(client, base):
    before = set((base / "output" / "lucid").glob("unfinished_*.ply"))
    graph = with_model("memory for 4 rows until call 12", LucidDream={"steps": 20, "views": 1, "seed": 72})
    with fails("LucidDream", "OutOfMemory", "there is no memory for one view of 64 px"):
        client.run(graph)
    assert len(set((base / "output" / "lucid").glob("unfinished_*.ply")) - before) == 1
    client.run(workflow(LucidDream={"seed": 73}))


def test_no_memory_in_an_update_is_said_and_the_splat_is_kept(client, base):
    """The checkpoint of that step cannot be written, the splat can."""
    before = set((base / "output" / "lucid").glob("unfinished_*.ply"))
    graph = with_model("no memory in the second update", LucidDream={"steps": 20, "views": 1, "seed": 74})
    with fails("LucidDream", "OutOfMemory", "there is no memory for the update of the parameters"):
        client.run(graph)
    (saved,) = set((base / "output" / "lucid").glob("unfinished_*.ply")) - before
    assert len(read(saved)) == 300
    client.run(workflow(LucidDream={"seed": 75}))


def test_frozen_geometry_is_repainted_through_the_node(client):
    """Of a splat far off and large, which is fitted to the view: what is saved has the same places to the
    bit.
    """
    graph = workflow(
        LucidPointCloud={"count": 301, "size": 40.0},
        LucidDream={"steps": 3, "freeze_geometry": True, "fit_to_view": True, "strength": 0.5, "seed": 81},
    )
    before, after = (
        ply_of(client, client.run(only_start(graph, "test/frozen"))),
        ply_of(client, client.run(graph)),
    )
    assert torch.equal(before.means, after.means) and torch.equal(before.scales, after.scales)
    assert torch.equal(before.opacities, after.opacities) and not torch.equal(before.sh, after.sh)


def test_only_the_selection_changes_through_the_node(client):
    graph = with_selection(
        "box", 5.0, 10.0, LucidPointCloud={"count": 302}, LucidDream={"steps": 3, "views": 2, "seed": 82}
    )
    before, entry = ply_of(client, client.run(only_start(graph, "test/part"))), client.run(graph)
    after = ply_of(client, entry)
    outside = before.map(lambda x: x[before.means[:, 0] < 0])
    rest = after.map(lambda x: x[len(after) - len(outside) :])
    assert all(torch.equal(a, b) for a, b in zip(vars(outside).values(), vars(rest).values()))
    assert summary_of(entry)["splats"] == len(after) > len(outside)
    part = {
        "steps": 1,
        "strength": 0.01,
        "resume": summary_of(entry)["checkpoint"],
        "resume_splat_only": True,
    }
    assert len(ply_of(client, client.run(workflow(LucidDream=part)))) == len(after)


def test_a_close_up_changes_the_run_and_a_second_one_is_refused(client):
    def run(close_ups):
        graph = Graph(workflow())
        link = [node_of(graph, "LucidCameras"), 0]
        for _ in range(close_ups):
            link = [graph.add("LucidCloseUp", cameras=link, share=1.0, zoom=3.0, x=0.0, y=-0.3, z=0.0), 0]
        graph[node_of(graph, "LucidDream")]["inputs"]["cameras"] = link
        return ply_of(client, client.run(graph))

    assert not torch.equal(run(0).means, run(1).means)
    with fails("LucidCloseUp", "BadInput", "cameras have a close-up already"):
        run(2)
