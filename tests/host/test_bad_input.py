"""Bad values, models and splats: refused by node and by value."""

import pytest
import torch

from workflows.api.client import ComfyError

from .graphs import node_of, with_baseline, with_selection, workflow


@pytest.mark.parametrize(
    "change, message",
    [
        ({"LucidPrompt": {"text": "   "}}, "Lucid Prompt: text is empty"),
        (
            {"LucidPrompt": {"front_words": "red mushroom, A"}},
            "Lucid Prompt: front_words is 'red mushroom, A'",
        ),
        ({"LucidPrompt": {"perp_neg": -1.0}}, "perp_neg"),
        ({"LucidDream": {"steps": 0}}, "steps"),
        ({"LucidDream": {"views": 1000}}, "views"),
        ({"LucidDream": {"resolution": 100}}, "Lucid Dream: resolution is 100"),
        ({"LucidPointCloud": {"count": 1}}, "count"),
        ({"LucidPointCloud": {"size": 0.0}}, "size"),
        ({"LucidPointCloud": {"color": "red"}}, "Lucid Point Cloud: color is 'red'"),
        ({"LucidISM": {"preset.t_min": 0.75}}, "Lucid ISM: t_max"),
        ({"LucidISM": {"preset.cfg": -1.0}}, "cfg"),
        ({"LucidISM": {"preset": "mine"}}, "Lucid ISM: preset is not known; it must be official, fast, cpu"),
        ({"LucidCameras": {"radius_min": 9.0}}, "Lucid Cameras: radius_min is 9"),
        ({"LucidCameras": {"jitter_up": -0.1}}, "jitter_up"),
        ({"LucidSave": {"filename_prefix": "../../outside"}}, "outside"),
        ({"CheckpointLoaderSimple": {"ckpt_name": "missing.safetensors"}}, "missing.safetensors"),
    ],
)
def test_bad_values_are_refused_by_node_and_value(client, change, message):
    with pytest.raises(ComfyError, match=message):
        client.run(workflow(**change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"LucidISM": {"preset.t_min": 0.75}}, "Lucid ISM: t_max is 0.7; it must be above t_min"),
        ({"LucidISM": {"preset": "mine"}}, "Lucid ISM: preset is not known"),
        ({"LucidPrompt": {"text": " "}}, "Lucid Prompt: text is empty"),
        (
            {"LucidISM": {"preset.delta_t": 0.9}},
            "Lucid ISM: delta_t is 0.9; it must be at most the highest noise level",
        ),
        ({"LucidCameras": {"radius_min": 9.0}}, "Lucid Cameras: radius_min is 9"),
        ({"LucidDream": {"resolution": 100}}, "Lucid Dream: resolution is 100"),
        (
            {"LucidDream": {"freeze_geometry": True, "freeze_color": True}},
            "Lucid Dream: freeze_color is True",
        ),
        (
            {"LucidDream": {"resume": "lucid/none.safetensors"}},
            "Lucid Dream: resume is 'lucid/none.safetensors'",
        ),
        ({"LucidDream": {"backend": "gsplat"}}, "Lucid Dream: .*gsplat"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(client, change, message):
    """A loader that would fail is never reached."""
    graph = workflow(**change)
    graph[node_of(graph, "CheckpointLoaderSimple")] = {"class_type": "LucidTestNeverLoaded", "inputs": {}}
    with pytest.raises(ComfyError, match=message):
        client.run(graph)
    with pytest.raises(ComfyError, match="it was loaded"):
        good = workflow()
        good[node_of(good, "CheckpointLoaderSimple")] = {"class_type": "LucidTestNeverLoaded", "inputs": {}}
        client.run(good)


@pytest.mark.parametrize(
    "settings, message",
    [({"t_min": 0.99}, "Lucid Baseline: t_max is 0.98"), ({"cfg": -1.0}, "cfg"), ({"weight": 0.0}, "weight")],
)
def test_bad_values_of_a_rival_are_refused(client, settings, message):
    with pytest.raises(ComfyError, match=message):
        client.run(with_baseline("SDS", **settings))


def test_a_batch_of_splats_is_refused_by_dream_and_rendered_by_render(client):
    graph = workflow()
    cloud = node_of(graph, "LucidPointCloud")
    batch = {"class_type": "LucidTestSplat", "inputs": {"splat": [cloud, 0], "change": "batch"}}
    graph["batch"] = batch
    graph[node_of(graph, "LucidDream")]["inputs"]["splat"] = ["batch", 0]
    with pytest.raises(ComfyError, match="Lucid Dream: this is a batch of 2 splats"):
        client.run(graph)


@pytest.mark.parametrize(
    "change, message", [("empty", "empty"), ("nan", "means of 1 of 300 Gaussians is not finite")]
)
@pytest.mark.parametrize("node", ["LucidDream", "LucidRender", "LucidSave"])
def test_a_broken_splat_is_refused(client, node, change, message):
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
    with pytest.raises(ComfyError, match=message):
        client.run(graph)


@pytest.mark.parametrize(
    "change, message",
    [
        ("video vae", "Lucid ISM: model SD15 works on latents of 2 dimensions, but this vae makes 3"),
        ("vae channels", "works on 4 latent channels, but this vae makes 16"),
        ("no vae", "Lucid ISM: vae is missing"),
    ],
)
def test_a_model_or_vae_that_cannot_serve_is_refused_before_the_first_step(client, change, message):
    graph = workflow()
    loader, guidance = node_of(graph, "CheckpointLoaderSimple"), graph[node_of(graph, "LucidISM")]
    graph["other"] = {
        "class_type": "LucidTestModel",
        "inputs": {"model": [loader, 0], "vae": [loader, 2], "change": change},
    }
    guidance["inputs"].update(model=["other", 0], vae=["other", 1])
    with pytest.raises(ComfyError, match=message):
        client.run(graph)


def test_a_backend_that_cannot_be_used_is_refused(client):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    with pytest.raises(
        ComfyError, match=r"Lucid Dream: backend gsplat needs a CUDA GPU.*choose auto or numba"
    ):
        client.run(workflow(LucidDream={"backend": "gsplat", "seed": 33}))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"strength": 0.0}, "strength"),
        (
            {"freeze_geometry": True, "freeze_color": True},
            "Lucid Dream: freeze_color is True; it must be off",
        ),
    ],
)
def test_bad_refinements_are_refused(client, settings, message):
    with pytest.raises(ComfyError, match=message):
        client.run(workflow(LucidDream=settings))


def test_a_selection_of_nothing_is_refused(client):
    with pytest.raises(
        ComfyError, match="Lucid Dream: the selection holds none of 300 Gaussians; they lie at x"
    ):
        client.run(with_selection("sphere", 9.0, 1.0))
