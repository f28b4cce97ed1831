"""Presets, cameras, baselines and Lucid Optimizer: what the widgets set."""

import dataclasses

import pytest
import torch

from lucid_core.guidance import ism
from lucid_core.guidance.baselines import METHODS
from lucid_core.optimize.config import PRESETS
from lucid_core.settings import bounds_of

from .failing import fails
from .graphs import Graph, image, node_of, only_start, ply_of, with_baseline, workflow


def test_cameras_show_where_they_stand(client):
    graph = workflow()
    node = node_of(graph, "LucidCameras")
    graph[node]["inputs"][
        "azimuth_min_deg"
    ] = -171.0  # not as in another test: what is cached is not shown again
    only = Graph({node: graph[node]})
    saved = only.save_image([node, 1])
    entry = client.run(only)
    assert image(client, entry, saved).shape == (1, 320, 640, 3)
    assert [file["type"] for file in entry["outputs"][node]["images"]] == ["temp"]


def test_every_preset_sets_the_widgets_of_the_node_to_its_values(client):
    """Choosing a preset in the web page makes its widgets anew with these defaults: from there each can be
    changed.
    """
    spec = client.object_info()["LucidISM"]["input"]["required"]["preset"][1]
    for option in spec["options"]:
        shown = {name: widget[1]["default"] for name, widget in option["inputs"]["required"].items()}
        assert shown == dataclasses.asdict(ism.PRESETS[option["key"]])
    assert [option["key"] for option in spec["options"]] == list(ism.PRESETS)


@pytest.mark.parametrize("method", METHODS)
def test_every_rival_of_ism_runs_in_its_place(client, method):
    entry = client.run(with_baseline(method))
    splats = ply_of(client, entry)
    assert len(splats) > 100 and splats.means.isfinite().all()


def with_optimizer(preset, changes, **dream):
    """The workflow with a Lucid Optimizer of all widgets' defaults but `changes`."""
    graph = workflow(LucidDream=dream)
    base = PRESETS[preset].optimizer
    values = {}
    for group, config in vars(base).items():
        prefix = "densify_" if group == "densify" else ""
        for name, bounds in bounds_of(config).items():
            value = getattr(config, name)
            values |= {
                prefix + part: v
                for part, v in (zip(bounds.parts, value) if bounds.parts else [(name, value)])
            }
    inputs = {"preset": preset, **{f"preset.{name}": value for name, value in (values | changes).items()}}
    graph["optimizer"] = {"class_type": "LucidOptimizer", "inputs": inputs}
    graph[node_of(graph, "LucidDream")]["inputs"]["optimizer"] = ["optimizer", 0]
    return graph


def test_lucid_optimizer_as_it_is_changes_nothing(client):
    settings = {"steps": 4, "seed": 151}
    plain = client.run(workflow(LucidDream=settings))
    same = client.run(with_optimizer("cpu", {}, **settings))
    assert torch.equal(ply_of(client, plain).means, ply_of(client, same).means)


@pytest.mark.parametrize(
    "changes, seen",
    [
        (
            {"lr_means": 1e-9, "lr_means_last": 1e-9},
            lambda before, after: (after.means - before.means).abs().max() < 1e-6,
        ),
        ({"sh_degree": 2, "sh_every": 0.01}, lambda before, after: after.sh.shape[1] == 9),
        (
            {
                "densify_strategy": "mcmc",
                "densify_start": 0.0,
                "densify_every": 0.25,
                "densify_max_splats": 320,
            },
            lambda before, after: len(after) == 320 > len(before),
        ),
    ],
    ids=["rates", "bands", "mcmc"],
)
def test_lucid_optimizer_sets_rates_bands_and_growth(client, changes, seen):
    graph = with_optimizer("cpu", changes, steps=4, seed=152)
    before = ply_of(client, client.run(only_start(graph, "test/optimizer")))
    assert seen(before, ply_of(client, client.run(graph)))


@pytest.mark.parametrize(
    "changes, kind, name",
    [
        ({"densify_start": 0.95}, "BadSetting", "densify_start is 0.95"),
        ({"lr_means": 0.0}, "value_smaller_than_min", "preset.lr_means"),
    ],
)
def test_lucid_optimizer_refuses_by_name(client, changes, kind, name):
    with fails("LucidOptimizer", kind, name):
        client.run(with_optimizer("cpu", changes, seed=153))
