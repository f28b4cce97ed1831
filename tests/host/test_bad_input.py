"""Bad values, models and splats: refused by node and by value."""

import pytest
import torch

from workflows.api.client import ComfyError

from .failing import fails
from .graphs import node_of, with_baseline, with_selection, workflow

BELOW, ABOVE = "value_smaller_than_min", "value_bigger_than_max"  # rejections of the host


@pytest.mark.parametrize(
    "change, kind, name",
    [
        ({"LucidPrompt": {"text": "   "}}, "BadSetting", "text is empty"),
        (
            {"LucidPrompt": {"front_words": "red mushroom, A"}},
            "BadSetting",
            "front_words is 'red mushroom, A'",
        ),
        ({"LucidPrompt": {"perp_neg": -1.0}}, BELOW, "perp_neg"),
        ({"LucidDream": {"steps": 0}}, BELOW, "preset.steps"),
        ({"LucidDream": {"views": 1000}}, ABOVE, "preset.views"),
        ({"LucidDream": {"resolution": 100}}, "BadSetting", "resolution is 100"),
        ({"LucidPointCloud": {"count": 1}}, BELOW, "count"),
        ({"LucidPointCloud": {"size": 0.0}}, BELOW, "size"),
        ({"LucidPointCloud": {"color": "red"}}, "BadSetting", "color is 'red'"),
        ({"LucidISM": {"preset.t_min": 0.75}}, "BadSetting", "t_max is 0.7"),
        ({"LucidISM": {"preset.cfg": -1.0}}, BELOW, "preset.cfg"),
        ({"LucidISM": {"preset": "mine"}}, "BadSetting", "preset is not known"),
        ({"LucidCameras": {"radius_min": 9.0}}, "BadSetting", "radius_min is 9"),
        ({"LucidCameras": {"jitter_up": -0.1}}, BELOW, "jitter_up"),
        ({"CheckpointLoaderSimple": {"ckpt_name": "missing.safetensors"}}, "value_not_in_list", "ckpt_name"),
    ],
)
def test_bad_values_are_refused_by_node_and_value(client, change, kind, name):
    (node,) = change
    with fails(node, kind, name):
        client.run(workflow(**change))


def test_a_file_outside_of_the_output_folder_is_refused(client):
    with pytest.raises(ComfyError, match="outside") as error:
        client.run(workflow(LucidSave={"filename_prefix": "../../outside"}))
    assert error.value.node == "LucidSave"


@pytest.mark.parametrize(
    "change, kind, name",
    [
        ({"LucidISM": {"preset.t_min": 0.75}}, "BadSetting", "t_max is 0.7"),
        ({"LucidISM": {"preset": "mine"}}, "BadSetting", "preset is not known"),
        ({"LucidPrompt": {"text": " "}}, "BadSetting", "text is empty"),
        ({"LucidISM": {"preset.delta_t": 0.9}}, "BadSetting", "delta_t is 0.9"),
        ({"LucidCameras": {"radius_min": 9.0}}, "BadSetting", "radius_min is 9"),
        ({"LucidDream": {"resolution": 100}}, "BadSetting", "resolution is 100"),
        (
            {"LucidDream": {"freeze_geometry": True, "freeze_color": True}},
            "BadSetting",
            "freeze_color is True",
        ),
        (
            {"LucidDream": {"resume": "lucid/none.safetensors"}},
            "BadSetting",
            "resume is 'lucid/none.safetensors'",
        ),
        ({"LucidDream": {"backend": "gsplat"}}, "BackendUnavailable", "backend gsplat"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(client, change, kind, name):
    """A loader that would fail is never reached."""
    graph = workflow(**change)
    graph[node_of(graph, "CheckpointLoaderSimple")] = {"class_type": "LucidTestNeverLoaded", "inputs": {}}
    (node,) = change
    with fails(node, kind, name):
        client.run(graph)
    with fails("LucidTestNeverLoaded", "RuntimeError"):
        good = workflow()
        good[node_of(good, "CheckpointLoaderSimple")] = {"class_type": "LucidTestNeverLoaded", "inputs": {}}
        client.run(good)


@pytest.mark.parametrize(
    "settings, kind, name",
    [
        ({"t_min": 0.99}, "BadSetting", "t_max is 0.98"),
        ({"cfg": -1.0}, BELOW, "method.cfg"),
        ({"weight": 0.0}, BELOW, "method.weight"),
    ],
)
def test_bad_values_of_a_rival_are_refused(client, settings, kind, name):
    with fails("LucidBaseline", kind, name):
        client.run(with_baseline("SDS", **settings))


def test_a_batch_of_splats_is_refused_by_dream_and_rendered_by_render(client):
    graph = workflow()
    cloud = node_of(graph, "LucidPointCloud")
    batch = {"class_type": "LucidTestSplat", "inputs": {"splat": [cloud, 0], "change": "batch"}}
    graph["batch"] = batch
    graph[node_of(graph, "LucidDream")]["inputs"]["splat"] = ["batch", 0]
    with fails("LucidDream", "BadSplats", "the splat's batch holds 2"):
        client.run(graph)


@pytest.mark.parametrize(
    "change, name", [("empty", "the splat's number of Gaussians"), ("nan", "the splat's means")]
)
@pytest.mark.parametrize("node", ["LucidDream", "LucidRender", "LucidSave"])
def test_a_broken_splat_is_refused(client, node, change, name):
    graph = workflow()
    graph["broken"] = {
        "class_type": "LucidTestSplat",
        "inputs": {"splat": [node_of(graph, "LucidPointCloud"), 0], "change": change},
    }
    if node == "LucidRender":
        graph["render"] = {
            "class_type": "LucidRender",
            "inputs": {
                "splat": ["broken", 0],
                "width": 64,
                "height": 64,
                "frames": 1,
                "azimuth": 0.0,
                "elevation": 0.0,
                "fov": 35.0,
                "background": "#ffffff",
            },
        }
        graph["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["render", 0]}}
    else:
        graph[node_of(graph, node)]["inputs"]["splat"] = ["broken", 0]
    with fails(node, "BadSplats", name):
        client.run(graph)


@pytest.mark.parametrize(
    "change, words",
    [
        ("video vae", ["of 3 dimensions", "SD15 needs 2"]),
        ("vae channels", ["of 16 channels", "SD15 needs 4"]),
        ("no vae", ["missing"]),
    ],
)
def test_a_vae_that_cannot_serve_is_refused_before_the_first_step(client, change, words):
    graph = workflow()
    loader, guidance = node_of(graph, "CheckpointLoaderSimple"), graph[node_of(graph, "LucidISM")]
    graph["other"] = {
        "class_type": "LucidTestModel",
        "inputs": {"model": [loader, 0], "vae": [loader, 2], "change": change},
    }
    guidance["inputs"].update(model=["other", 0], vae=["other", 1])
    with fails("LucidISM", "BadInput", "vae ", *words):
        client.run(graph)


def test_a_backend_that_cannot_be_used_is_refused(client):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    with fails("LucidDream", "BackendUnavailable", "backend gsplat needs a CUDA GPU"):
        client.run(workflow(LucidDream={"backend": "gsplat", "seed": 33}))


@pytest.mark.parametrize(
    "settings, kind, name",
    [
        ({"strength": 0.0}, BELOW, "strength"),
        ({"freeze_geometry": True, "freeze_color": True}, "BadSetting", "freeze_color is True"),
    ],
)
def test_bad_refinements_are_refused(client, settings, kind, name):
    with fails("LucidDream", kind, name):
        client.run(workflow(LucidDream=settings))


def test_a_selection_of_nothing_is_refused(client):
    with fails("LucidDream", "BadSetting", "selection is empty"):
        client.run(with_selection("sphere", 9.0, 1.0))
