"""Lucid Image Targets in the real host: alone, behind Lucid ISM, of other families, resumed, and refused."""

import asyncio
import dataclasses
import re

import pytest
from same import same

from lucid_core.guidance.image_targets import PRESETS
from lucid_core.optimize import checkpoint

from .failing import fails
from .family_graphs import FamilyGraph
from .graphs import node_of, ply_of, summary_of, workflow
from .test_cancel import cancelled

FEW = {"views": 2, "fits": 2, "kept": 4, "inversion_steps": 1, "sampling_steps": 2, "last": 0.25}


def targets_of(graph, ism, **settings):
    """Lucid Image Targets, with what the Lucid ISM node `ism` asks."""
    links = {name: graph[ism]["inputs"][name] for name in ("model", "vae", "prompt")}
    values = {
        f"preset.{name}": value
        for name, value in (dataclasses.asdict(PRESETS["cpu"]) | FEW | settings).items()
    }
    return {"class_type": "LucidTargets", "inputs": {**links, "preset": "cpu", **values}}


def alone(seed, steps=8, resume="", **settings):
    graph = workflow(LucidDream={"steps": steps, "seed": seed, "resume": resume})
    ism = node_of(graph, "LucidISM")
    graph[ism] = targets_of(graph, ism, **settings)
    return graph


def test_the_node_fits_the_splat_to_pictures_that_it_seldom_asks_for(client):
    summary = summary_of(client.run(alone(201)))
    rounds = 3  # in the first 6 of 8 steps
    assert summary["steps"] == 8 and summary["evaluations"] == rounds * 2 * (1 + 2 * 2)


def test_every_preset_sets_the_widgets_of_the_node_to_its_values(client):
    spec = client.object_info()["LucidTargets"]["input"]["required"]["preset"][1]
    for option in spec["options"]:
        shown = {name: widget[1]["default"] for name, widget in option["inputs"]["required"].items()}
        assert shown == dataclasses.asdict(PRESETS[option["key"]])


@pytest.mark.parametrize("ism_cfg, cfgs", [({}, {}), ({"cfg": 1.0, "cfg_start": 0.0}, {"cfg": 1.0})])
def test_a_surface_share_is_the_second_part_of_the_run(client, ism_cfg, cfgs):
    """As the node behind Lucid ISM by a Lucid Mix Guidance of the same share, with guidance scales up to that
    of ISM; resumed in it, the run is the run.
    """
    share = workflow(LucidISM={"surface_share": 0.5, **ism_cfg}, LucidDream={"steps": 4, "seed": 202})
    by_share = client.run(share)
    mixed = workflow(LucidISM=ism_cfg, LucidDream={"steps": 4, "seed": 202})
    ism = node_of(mixed, "LucidISM")
    mixed["targets"] = targets_of(mixed, ism, **(dataclasses.asdict(PRESETS["cpu"]) | cfgs))
    inputs = {"first": [ism, 0], "second": ["targets", 0], "mode": "sequence", "share": 0.5}
    mixed["mix"] = {"class_type": "LucidMix", "inputs": inputs}
    mixed[node_of(mixed, "LucidDream")]["inputs"]["guidance"] = ["mix", 0]
    assert same(ply_of(client, by_share), ply_of(client, client.run(mixed)))

    share[node_of(share, "LucidDream")]["inputs"]["resume"] = summary_of(by_share)["checkpoint"]
    assert same(ply_of(client, by_share), ply_of(client, client.run(share)))


def test_the_same_seed_gives_the_same_splat(client):
    first, other = ply_of(client, client.run(alone(203))), ply_of(client, client.run(alone(204)))
    again = alone(203)
    again[node_of(again, "LucidSave")]["inputs"]["filename_prefix"] = "test/again"
    again[node_of(again, "LucidDream")]["inputs"]["checkpoint_minutes"] = 4.0  # so that it is made anew
    assert same(first, ply_of(client, client.run(again))) and not same(first, other)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("family", ["sd2_v", "sdxl", "flux", "qwen_image", "cosmos"])
def test_every_kind_of_family_makes_pictures(client, family):
    """Noise, v and flow prediction, a VAE of video, EDM."""
    graph = FamilyGraph(family)
    graph.dream(steps=4, views=1)
    ism = node_of(graph, "LucidISM")
    graph[ism] = targets_of(graph, ism)
    splats = ply_of(client, client.run(graph))
    assert all(x.isfinite().all() for x in vars(splats).values())


def with_lcm(graph):
    ism = node_of(graph, "LucidISM")
    sampling = {"model": graph[ism]["inputs"]["model"], "sampling": "lcm", "zsnr": False}
    graph["lcm"] = {"class_type": "ModelSamplingDiscrete", "inputs": sampling}
    graph[ism]["inputs"]["model"] = ["lcm", 0]
    return graph


def test_a_model_that_is_sampled_as_lcm_is_refused_and_isms_offered(client):
    graph = with_lcm(workflow())
    client.run(graph)  # ISM alone asks it
    ism = node_of(graph, "LucidISM")
    graph[ism]["inputs"]["surface_share"] = 0.5
    with fails("LucidISM", "BadInput", "model is sampled as LCM"):
        client.run(graph)
    graph[ism] = targets_of(graph, ism)
    with fails("LucidTargets", "BadInput", "model is sampled as LCM"):
        client.run(graph)


@pytest.mark.parametrize(
    "settings, kind, name",
    [
        ({"t_last": 0.9}, "BadSetting", "t_last is 0.9"),
        ({"kept": 1}, "BadSetting", "kept is 1"),
        ({"t_spread": 0.4}, "BadSetting", "t_spread is 0.4"),
        ({"views": 0}, "value_smaller_than_min", "preset.views"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(client, settings, kind, name):
    graph = alone(205, **settings)
    graph[node_of(graph, "CheckpointLoaderSimple")] = {"class_type": "LucidTestNeverLoaded", "inputs": {}}
    with fails("LucidTargets", kind, name):
        client.run(graph)


@pytest.mark.parametrize("mode", ["add", "alternate"])
def test_pictures_are_no_gradient_to_add(client, mode):
    graph = workflow(LucidDream={"steps": 4, "seed": 206})
    ism = node_of(graph, "LucidISM")
    graph["targets"] = targets_of(graph, ism)
    graph["mix"] = {
        "class_type": "LucidMix",
        "inputs": {"first": [ism, 0], "second": ["targets", 0], "mode": mode, "share": 0.5},
    }
    graph[node_of(graph, "LucidDream")]["inputs"]["guidance"] = ["mix", 0]
    with fails("LucidMix", "BadSetting", f"mode is '{mode}'"):
        client.run(graph)


def of_two_models(family, seed):
    """Image targets of the demo's model and of a family's, made together."""
    graph, other = FamilyGraph("demo"), FamilyGraph(family)
    for one in (graph, other):
        one.dream(steps=4, views=1, resolution=64, seed=seed)
    moved = lambda value: [f"o{value[0]}", value[1]] if isinstance(value, list) else value
    for name, node in other.items():
        inputs = {key: moved(value) for key, value in node["inputs"].items()}
        if node["class_type"] not in ("LucidDream", "LucidSave", "PreviewGaussianSplat"):
            graph[f"o{name}"] = {**node, "inputs": inputs}
    isms = node_of(graph, "LucidISM"), f"o{node_of(other, 'LucidISM')}"
    for name, ism, t in zip(("first", "second"), isms, (0.3, 0.4)):
        graph[name] = targets_of(graph, ism, t=t, t_last=t, t_spread=0.0)
    mixed = {"first": ["first", 0], "second": ["second", 0], "mode": "add", "share": 0.25}
    graph["mix"] = {"class_type": "LucidMix", "inputs": mixed}
    graph[node_of(graph, "LucidDream")]["inputs"]["guidance"] = ["mix", 0]
    return graph


@pytest.mark.usefixtures("families")
def test_two_models_of_the_same_latents_make_images_together(client):
    """Both predict in each of the two sampling steps; the first inverts."""
    entry = client.run(of_two_models("sd2_v", 211))
    assert len(ply_of(client, entry)) > 100
    rounds = 2  # in the first 3 of 4 steps
    assert summary_of(entry)["evaluations"] == rounds * 2 * (1 + 2 * 2 * 2)
    with fails("LucidMix", "BadInput", "second has a model with latents of SDXL"):
        client.run(of_two_models("sdxl", 212))


def test_a_run_that_is_cancelled_between_two_fits_goes_on_with_its_pictures(client, base):
    graph = alone(207, steps=600, fits=600)
    _, said = asyncio.run(cancelled(client, graph, when_step=20, wait_s=0.0))
    found = re.match(r"Stopped at step (\d+) of 600\. .*\nTo go on, resume: (\S+)", said[-1])
    step, resume = found.groups()
    kept, _ = checkpoint.read(base / "output" / resume)
    assert 20 <= int(step) == kept.step < 600
    assert kept.group("replay")["pictures"].shape == (2, 64, 64, 3)
    resumed = client.run(alone(207, steps=600, fits=600, resume=resume))
    whole = client.run(graph)
    assert same(ply_of(client, resumed), ply_of(client, whole))
    assert summary_of(resumed)["evaluations"] == summary_of(whole)["evaluations"] == 2 * (1 + 2 * 2)
