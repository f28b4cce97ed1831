"""Our nodes in the real host, through its API."""

import dataclasses

import numpy as np
import pytest
import torch
from rounding import ROUNDINGS

from lucid_core import checkpoint, ism
from lucid_core.checks import bounds_of
from lucid_core.dream import PRESETS
from lucid_core.methods import METHODS
from workflows.api.client import ComfyError

from .graphs import Graph, files, image, node_of, ply_of, workflow

WIDGETS_OF_LUCID_DREAM = ("steps", "views", "resolution", "max_minutes", "strength", "freeze_geometry", "freeze_color")
GROWTH = "densify_"


@pytest.fixture(scope="module")
def landmarks():
    """A grey box with red on its front, green on its left (+x) and white on top, made by the host's own splat nodes."""
    graph = Graph()
    box = {"shape": "box", "count": 1500, "seed": 0, "color_noise": 0.0, "opacity": 0.9}
    parts = [[graph.add("LucidPointCloud", size=1.0, color="#404040", **box), 0]]
    for color, (x, y, z) in {"#ff0000": (0, 0, -0.6), "#00ff00": (0.6, 0, 0), "#ffffff": (0, -0.6, 0)}.items():
        small = graph.add("LucidPointCloud", size=0.4, color=color, **box)
        moved = graph.add(
            "TransformSplat", splat=[small, 0], translate_x=x, translate_y=y, translate_z=z, rotate_x=0.0, rotate_y=0.0,
            rotate_z=0.0, scale_x=1.0, scale_y=1.0, scale_z=1.0,
        )  # fmt: skip
        parts.append([moved, 0])
    merged = graph.add("MergeSplat", **{f"splats.splat{i}": part for i, part in enumerate(parts)})
    file = graph.add("SplatToFile3D", splat=[merged, 0], format="ply")
    back = graph.add("File3DToSplat", model_3d=[file, 0])
    return graph, [back, 0]


def camera(graph, yaw, pitch=10.0, target_y=0.0):
    return graph.add(
        "CreateCameraInfo", target_x=0.0, target_y=target_y, target_z=0.0, roll=0.0, fov=35.0, zoom=1.0,
        camera_type="perspective", mode="orbit", **{"mode.yaw": yaw, "mode.pitch": pitch, "mode.distance": 4.0},
    )  # fmt: skip


def host_render(graph, splat, info):
    return graph.add(
        "RenderSplat", splat=splat, camera_info=info, width=192, height=160, frames=1, splat_scale=1.0, sharpen=1.0,
        headlight_shading=0.0, opacity_threshold=0.0, background="#000000", render_style="color",
    )  # fmt: skip


def our_render(graph, splat, **inputs):
    defaults = {"width": 192, "height": 160, "frames": 1, "azimuth": 0.0, "elevation": 10.0, "fov": 35.0}
    return graph.add("LucidRender", splat=splat, background="#000000", **{**defaults, **inputs})


def centroid(picture, rgb):
    """(x, y) of the pixels of one colour."""
    distance = np.abs(picture - np.array(rgb)).max(-1)
    y, x = np.nonzero(distance < 0.45)
    assert len(x) > 20, f"colour {rgb} is not seen"
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize("yaw, target_y", [(0.0, 0.0), (60.0, 0.0), (-30.0, 0.0), (180.0, 0.0), (60.0, 0.5)])
def test_our_renderer_sees_what_the_hosts_sees(client, landmarks, yaw, target_y):
    """The same splat, through the host's writer and reader, from the host's own camera node: the frames agree. The node Camera
    Angle of newer hosts turns about a point half a unit above the origin."""
    source, splat = landmarks
    graph = Graph(source)
    info = [camera(graph, yaw, target_y=target_y), 0]
    theirs = graph.save_image([host_render(graph, splat, info), 0])
    ours = graph.save_image([our_render(graph, splat, camera_info=info), 0])
    entry = client.run(graph)
    theirs, ours = image(client, entry, theirs)[0], image(client, entry, ours)[0]
    seen = lambda picture: picture.max(-1) > 0.1
    assert (seen(ours) & seen(theirs)).sum() / (seen(ours) | seen(theirs)).sum() > 0.85
    assert np.abs(ours - theirs).mean() < 0.05
    assert np.abs(centroid(ours, (1, 1, 1)) - centroid(theirs, (1, 1, 1))).max() < 8  # they blend in linear light


def test_front_is_at_the_front_and_up_is_up(client, landmarks):
    source, splat = landmarks
    graph = Graph(source)
    views = {azimuth: graph.save_image([our_render(graph, splat, azimuth=azimuth), 0]) for azimuth in (0.0, 90.0)}
    entry = client.run(graph)
    front, left = (image(client, entry, views[azimuth])[0] for azimuth in (0.0, 90.0))
    red, white, green = (centroid(front, rgb) for rgb in ((1, 0, 0), (1, 1, 1), (0, 1, 0)))
    assert abs(red[0] - 96) < 12 and white[1] < red[1] - 15 and green[0] > red[0] + 15
    assert abs(centroid(left, (0, 1, 0))[0] - 96) < 12  # azimuth 90 faces the side that azimuth 0 has at its right
    assert centroid(left, (1, 0, 0))[0] < 96 - 15


def test_turntable_mask_and_depth(client, landmarks):
    source, splat = landmarks
    graph = Graph(source)
    node = our_render(graph, splat, frames=4)
    pictures, depth = graph.save_image([node, 0]), graph.save_image([node, 2])
    mask = graph.save_image([graph.add("MaskToImage", mask=[node, 1]), 0])
    entry = client.run(graph)
    pictures, depth, mask = (image(client, entry, name) for name in (pictures, depth, mask))
    assert pictures.shape == depth.shape == mask.shape == (4, 160, 192, 3)
    centroid(pictures[0], (1, 0, 0))
    with pytest.raises(AssertionError):
        centroid(pictures[2], (1, 0, 0))  # from behind, the front is hidden
    assert mask[0, 80, 96].min() > 0.95 and mask[0, 2, 2].max() == 0 == depth[0, 2, 2].max()
    x, y = centroid(pictures[0], (1, 0, 0)).astype(int)
    assert depth[0, y, x, 0] > depth[0][mask[0].min(-1) > 0.9].mean()  # the red part is the nearest


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
    """`turntable_size` changes nothing about the splat but makes the host run LucidSave again; LucidDream runs anew."""

    def run(seed, count):
        return ply_of(client, client.run(workflow(LucidDream={"seed": seed}, LucidPointCloud={"count": count})))

    first, _, again, other = run(11, 300), run(11, 301), run(11, 300), run(12, 300)
    assert torch.equal(first.means, again.means) and torch.equal(first.sh, again.sh)
    assert not torch.equal(first.means, other.means)


def test_dream_does_not_modify_its_cached_input(client):
    graph = workflow()
    start = Graph(graph).add("LucidSave", splat=[node_of(graph, "LucidPointCloud"), 0], filename_prefix="test/start",
                             turntable_frames=0, turntable_size=64)  # fmt: skip
    assert start
    before = ply_of(client, client.run(_only_start(graph)))
    client.run(graph)
    after = ply_of(client, client.run(_only_start(graph, prefix="test/start2")))
    assert torch.equal(before.means, after.means) and torch.equal(before.opacities, after.opacities)


def _only_start(graph, prefix="test/start"):
    name = node_of(graph, "LucidPointCloud")
    only = {name: graph[name]}
    only["save"] = {
        "class_type": "LucidSave",
        "inputs": {"splat": [name, 0], "filename_prefix": prefix, "turntable_frames": 0, "turntable_size": 64},
    }
    return only


@pytest.mark.parametrize(
    "change, message",
    [
        ({"LucidPrompt": {"text": "   "}}, "Lucid Prompt: text is empty"),
        ({"LucidPrompt": {"front_words": "red mushroom, A"}}, "Lucid Prompt: front_words is 'red mushroom, A'"),
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
        ({"LucidISM": {"preset.delta_t": 0.9}}, "Lucid ISM: delta_t is 0.9; it must be at most the most noise"),
        ({"LucidCameras": {"radius_min": 9.0}}, "Lucid Cameras: radius_min is 9"),
        ({"LucidDream": {"resolution": 100}}, "Lucid Dream: resolution is 100"),
        ({"LucidDream": {"freeze_geometry": True, "freeze_color": True}}, "Lucid Dream: freeze_color is True"),
        ({"LucidDream": {"resume": "lucid/none.safetensors"}}, "Lucid Dream: resume is 'lucid/none.safetensors'"),
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


def test_cameras_show_where_they_stand(client):
    graph = workflow()
    node = node_of(graph, "LucidCameras")
    graph[node]["inputs"]["azimuth_min_deg"] = -171.0  # not as in another test: what is cached is not shown again
    only = Graph({node: graph[node]})
    saved = only.save_image([node, 1])
    entry = client.run(only)
    assert image(client, entry, saved).shape == (1, 320, 640, 3)
    assert [file["type"] for file in entry["outputs"][node]["images"]] == ["temp"]


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


def test_every_preset_sets_the_widgets_of_the_node_to_its_values(client):
    """Choosing a preset in the web page makes its widgets anew with these defaults: from there each can be changed."""
    spec = client.object_info()["LucidISM"]["input"]["required"]["preset"][1]
    for option in spec["options"]:
        shown = {name: widget[1]["default"] for name, widget in option["inputs"]["required"].items()}
        assert shown == dataclasses.asdict(ism.PRESETS[option["key"]])
    assert [option["key"] for option in spec["options"]] == list(ism.PRESETS)


def with_baseline(method, **settings):
    """The workflow with a rival of ISM in its place, at its defaults but for `settings`."""
    graph = workflow()
    defaults = METHODS[method]()
    node = graph[node_of(graph, "LucidISM")]
    links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
    values = {name: getattr(defaults, name) for name in bounds_of(defaults)} | settings
    node["class_type"] = "LucidBaseline"
    node["inputs"] = {**links, "method": method, **{f"method.{name}": value for name, value in values.items()}}
    return graph


@pytest.mark.parametrize("method", METHODS)
def test_every_rival_of_ism_runs_in_its_place(client, method):
    entry = client.run(with_baseline(method))
    splats = ply_of(client, entry)
    assert len(splats) > 100 and splats.means.isfinite().all()


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


@pytest.mark.parametrize("change, message", [("empty", "empty"), ("nan", "means of 1 of 300 Gaussians is not finite")])
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
            "inputs": {"splat": ["broken", 0], "width": 64, "height": 64, "frames": 1, "azimuth": 0.0, "elevation": 0.0,
                       "fov": 35.0, "background": "#ffffff"},
        }  # fmt: skip
        graph["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["render", 0]}}
    else:
        graph[node_of(graph, node)]["inputs"]["splat"] = ["broken", 0]
    with pytest.raises(ComfyError, match=message):
        client.run(graph)


def with_start(change, **changes):
    """The workflow that starts from LucidTestSplat's `change` of the points."""
    graph = workflow(**changes)
    points = [node_of(graph, "LucidPointCloud"), 0]
    graph["start"] = {"class_type": "LucidTestSplat", "inputs": {"splat": points, "change": change}}
    graph[node_of(graph, "LucidDream")]["inputs"]["splat"] = ["start", 0]
    return graph


def test_three_gaussians_are_a_splat(client):
    splats = ply_of(client, client.run(with_start("three", LucidDream={"seed": 91})))
    assert len(splats) == 3 and splats.means.isfinite().all()


def test_a_splat_a_million_units_away_is_refused_or_fitted_to_the_view(client):
    with pytest.raises(ComfyError, match=r"Lucid Dream: no camera sees the splat, which lies about \(1e\+06, .* fit_to_view"):
        client.run(with_start("far", LucidDream={"seed": 92}))
    splats = ply_of(client, client.run(with_start("far and huge", LucidDream={"seed": 92, "fit_to_view": True})))
    assert splats.means.isfinite().all() and (splats.means.median(dim=0).values - 1e6).abs().max() < 5e3
    assert (splats.means - 1e6).norm(dim=-1).max() > 1e3  # of the size that it was


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
        "inputs": {"model": [node_of(failing, "CheckpointLoaderSimple"), 0],
                   "vae": [node_of(failing, "CheckpointLoaderSimple"), 2], "change": "fails at call 4"},
    }  # fmt: skip
    with pytest.raises(ComfyError, match="on purpose"):
        client.run(failing)
    assert loaded() == before


def with_model(change, **changes):
    """The workflow with LucidTestModel's `change` of its model."""
    graph = workflow(**changes)
    loader = node_of(graph, "CheckpointLoaderSimple")
    graph["changed"] = {
        "class_type": "LucidTestModel",
        "inputs": {"model": [loader, 0], "vae": [loader, 2], "change": change},
    }
    graph[node_of(graph, "LucidISM")]["inputs"]["model"] = ["changed", 0]
    return graph


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
    assert all(torch.equal(a, b) for a, b in zip(vars(ply_of(client, entry)).values(), vars(unchanged).values()))


def test_a_backend_that_cannot_be_used_is_refused(client):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    with pytest.raises(ComfyError, match=r"Lucid Dream: backend gsplat needs a CUDA GPU.*choose auto or numba"):
        client.run(workflow(LucidDream={"backend": "gsplat", "seed": 33}))


def test_a_weight_patch_changes_the_splat(client):
    """The guidance asks the patched MODEL: a patch of weights, as a LoRA loader makes it, before LucidISM shows."""
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
    """Through HostPrior: sigma, denoise and encode give what the host's own sampler functions and VAE give."""
    graph = workflow()
    loader, prompt = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidPrompt")
    probe = {
        "probe": {"class_type": "LucidTestPrior", "inputs": {"model": [loader, 0], "vae": [loader, 2], "prompt": [prompt, 0]}},
        loader: graph[loader],
        prompt: graph[prompt],
    }
    found = client.run(probe)["outputs"]["probe"]
    assert max(found["denoise"] + found["rows"]) < ROUNDINGS * found["rounding"][0]
    assert found["encode"][0] < ROUNDINGS * found["encode rounding"][0]
    assert found["sigma"] == pytest.approx([14.6146, 0.02917], rel=1e-3)
    assert found["gradient"][0] > 0


def summary_of(entry):
    (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
    return summary


@pytest.fixture(scope="module")
def broken_off(client):
    """(the finished run of six steps with seed 41, the name of the checkpoint of one that a NaN ended before)."""
    whole = client.run(workflow(LucidDream={"steps": 6, "seed": 41}))
    broken = client.run(with_model("NaN from call 12", LucidDream={"steps": 6, "seed": 41}))
    assert 0 < summary_of(broken)["steps"] < 6
    return whole, summary_of(broken)["checkpoint"]


def test_a_run_that_broke_off_is_resumed_to_the_same_splat(client, broken_off):
    whole, checkpoint = broken_off
    assert checkpoint.startswith("lucid/run_")
    resumed = client.run(with_model("none", LucidDream={"steps": 6, "seed": 41, "resume": checkpoint}))
    a, b = ply_of(client, whole), ply_of(client, resumed)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))
    first, second = summary_of(whole), summary_of(resumed)
    assert (second["steps"], second["evaluations"]) == (6, first["evaluations"])
    assert second["checkpoint"] not in (checkpoint, first["checkpoint"])


def test_a_full_disk_costs_the_checkpoint_and_not_the_splat(client, server):
    graph = with_model("full disk", LucidDream={"steps": 3, "seed": 43})
    entry = client.run(graph)
    assert summary_of(entry)["steps"] == 3 and summary_of(entry)["checkpoint"] is None
    assert len(ply_of(client, entry)) > 100
    assert "could not save its checkpoint: [Errno 28] No space left on device" in server.log_tail()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda good: good[: len(good) // 2], "is damaged or no checkpoint"),
        (lambda good: b"ply\n" + good, "is damaged or no checkpoint"),
        (lambda good: good.replace(b'\\"format\\": 1', b'\\"format\\": 9'), "has format 9, this version reads up to 1"),
    ],
    ids=["truncated", "foreign", "newer"],
)
def test_a_broken_checkpoint_is_refused(client, base, broken_off, change, message):
    (base / "output" / "lucid" / "bad.safetensors").write_bytes(change((base / "output" / broken_off[1]).read_bytes()))
    with pytest.raises(ComfyError, match=f"Lucid Dream: .*{message}"):
        client.run(workflow(LucidDream={"steps": 6, "seed": 41, "resume": "lucid/bad.safetensors"}))


def test_a_finished_run_is_resumed_at_its_end(client, broken_off):
    whole, _ = broken_off
    name = summary_of(whole)["checkpoint"]
    again = client.run(workflow(LucidDream={"steps": 6, "seed": 41, "resume": name}))
    assert torch.equal(ply_of(client, whole).means, ply_of(client, again).means)
    assert summary_of(again)["evaluations"] == summary_of(whole)["evaluations"]


def test_a_checkpoint_of_another_run_gives_its_splat_alone(client, broken_off):
    _, checkpoint = broken_off
    other = {"steps": 3, "seed": 42, "resume": checkpoint}
    with pytest.raises(ComfyError, match=r"Lucid Dream: .* seed was 41, is 42; DreamConfig.steps was 6, is 3\."):
        client.run(with_model("none", LucidDream=other))
    assert summary_of(client.run(workflow(LucidDream={**other, "resume_splat_only": True})))["steps"] == 3


def test_a_checkpoint_knows_its_model_and_prompt(client, broken_off):
    same = {"steps": 6, "seed": 41, "resume": broken_off[1]}
    with pytest.raises(ComfyError, match=r"another run: model was \w+, is \w+\. Set"):
        client.run(with_model("patched weights", LucidDream=same))
    with pytest.raises(ComfyError, match=r"another run: model was \w+, is \w+\. Set"):
        client.run(workflow(LucidDream=same))  # without the patch of its model
    with pytest.raises(ComfyError, match=r"another run: prompt was a red mushroom, is a blue mug; conditioning was"):
        client.run(with_model("none", LucidDream=same, LucidPrompt={"text": "a blue mug"}))


PATCHED = {
    "APG": [{"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5}, {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.4}],
    "FreeU_V2": [{"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}],
    "RescaleCFG": [{"multiplier": 0.7}, {"multiplier": 0.8}],
    "PerturbedAttentionGuidance": [{"scale": 2.0}, {"scale": 3.0}],
    "ModelSamplingDiscrete": [{"sampling": "eps", "zsnr": False}, {"sampling": "eps", "zsnr": True}],
    "LucidTestHolder": [{"strength": 0.9}, {"strength": 0.8}],
    "LucidTestRemembers": [{"strength": 0.9}, {"strength": 0.8}],
}


@pytest.mark.parametrize("node", PATCHED)
def test_a_checkpoint_knows_the_patches_of_its_model(client, base, node):
    """By their numbers, and the same in every run."""

    def model_of(seed, inputs):
        graph = workflow(LucidDream={"steps": 1, "views": 1, "seed": seed})
        loader, ism = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidISM")
        graph["patch"] = {"class_type": node, "inputs": {"model": [loader, 0], **inputs}}
        graph[ism]["inputs"]["model"] = ["patch", 0]
        settings = checkpoint.read(base / "output" / summary_of(client.run(graph))["checkpoint"])[1]
        return {name: value for name, value in settings.items() if name.startswith(("model", "patch"))}

    some, other = PATCHED[node]
    first = model_of(141, some)
    assert first == model_of(142, some)  # the patch of before, which the host kept: APG's has changed its mean
    assert first != model_of(143, other) and first == model_of(144, some)


def test_a_patch_that_remembers_what_it_saw_does_not_stop_a_resume(client):
    """In the same host, whose patch has seen the run that is resumed; with another strength it is another patch."""
    graph = workflow(LucidDream={"steps": 4, "seed": 145})
    loader, ism = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidISM")
    graph["patch"] = {"class_type": "LucidTestRemembers", "inputs": {"model": [loader, 0], "strength": 0.9}}
    graph[ism]["inputs"]["model"] = ["patch", 0]
    graph[node_of(graph, "LucidDream")]["inputs"]["resume"] = summary_of(client.run(graph))["checkpoint"]
    assert summary_of(client.run(graph))["steps"] == 4
    graph["patch"]["inputs"]["strength"] = 0.8
    with pytest.raises(ComfyError, match=r"another run: patch LucidTestRemembers\..*combine: strength 1 was"):
        client.run(graph)


@pytest.mark.parametrize("name", ["lucid/none.safetensors", "../../etc/hostname", "lucid"])
def test_a_checkpoint_that_is_not_there_is_refused(client, name):
    with pytest.raises(ComfyError, match=r"Lucid Dream: resume is '.*'; it must be the name of a file under"):
        client.run(workflow(LucidDream={"resume": name}))


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
    with pytest.raises(ComfyError, match="there is no memory for one view of 64 px; lower the resolution"):
        client.run(graph)
    assert len(set((base / "output" / "lucid").glob("unfinished_*.ply")) - before) == 1
    client.run(workflow(LucidDream={"seed": 73}))


def test_frozen_geometry_is_repainted_through_the_node(client):
    """Of a splat far off and large, which is fitted to the view: what is saved has the same places to the bit."""
    graph = workflow(
        LucidPointCloud={"count": 301, "size": 40.0},
        LucidDream={"steps": 3, "freeze_geometry": True, "fit_to_view": True, "strength": 0.5, "seed": 81},
    )
    before, after = ply_of(client, client.run(_only_start(graph, "test/frozen"))), ply_of(client, client.run(graph))
    assert torch.equal(before.means, after.means) and torch.equal(before.scales, after.scales)
    assert torch.equal(before.opacities, after.opacities) and not torch.equal(before.sh, after.sh)


def with_selection(shape, x, extent, **changes):
    graph = workflow(**changes)
    place = {"x": x, "y": 0.0, "z": 0.0, "width": extent, "height": extent, "depth": extent}
    graph["selection"] = {"class_type": "LucidSelection", "inputs": {"shape": shape, **place}}
    graph[node_of(graph, "LucidDream")]["inputs"]["selection"] = ["selection", 0]
    return graph


def test_only_the_selection_changes_through_the_node(client):
    graph = with_selection("box", 5.0, 10.0, LucidPointCloud={"count": 302}, LucidDream={"steps": 3, "views": 2, "seed": 82})
    before, entry = ply_of(client, client.run(_only_start(graph, "test/part"))), client.run(graph)
    after = ply_of(client, entry)
    outside = before.map(lambda x: x[before.means[:, 0] < 0])
    rest = after.map(lambda x: x[len(after) - len(outside) :])
    assert all(torch.equal(a, b) for a, b in zip(vars(outside).values(), vars(rest).values()))
    assert summary_of(entry)["splats"] == len(after) > len(outside)
    part = {"steps": 1, "strength": 0.01, "resume": summary_of(entry)["checkpoint"], "resume_splat_only": True}
    assert len(ply_of(client, client.run(workflow(LucidDream=part)))) == len(after)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"strength": 0.0}, "strength"),
        ({"freeze_geometry": True, "freeze_color": True}, "Lucid Dream: freeze_color is True; it must be off"),
    ],
)
def test_bad_refinements_are_refused(client, settings, message):
    with pytest.raises(ComfyError, match=message):
        client.run(workflow(LucidDream=settings))


def test_a_selection_of_nothing_is_refused(client):
    with pytest.raises(ComfyError, match="Lucid Dream: the selection holds none of 300 Gaussians; they lie at x"):
        client.run(with_selection("sphere", 9.0, 1.0))


def with_optimizer(preset, changes, **dream):
    """The workflow with a Lucid Optimizer of all widgets' defaults but `changes`."""
    graph = workflow(LucidDream=dream)
    base = PRESETS[preset]
    values = {}
    for prefix, config in (("", base), (GROWTH, base.densify)):
        for name, bounds in bounds_of(config).items():
            if prefix or name not in WIDGETS_OF_LUCID_DREAM:
                value = getattr(config, name)
                values |= {prefix + part: v for part, v in (zip(bounds.parts, value) if bounds.parts else [(name, value)])}
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
        ({"lr_means": 1e-9, "lr_means_last": 1e-9}, lambda before, after: (after.means - before.means).abs().max() < 1e-6),
        ({"sh_degree": 2, "sh_every": 0.01}, lambda before, after: after.sh.shape[1] == 9),
        (
            {"densify_strategy": "mcmc", "densify_start": 0.0, "densify_every": 0.25, "densify_max_splats": 320},
            lambda before, after: len(after) == 320 > len(before),
        ),
    ],
    ids=["rates", "bands", "mcmc"],
)
def test_lucid_optimizer_sets_rates_bands_and_growth(client, changes, seen):
    graph = with_optimizer("cpu", changes, steps=4, seed=152)
    before = ply_of(client, client.run(_only_start(graph, "test/optimizer")))
    assert seen(before, ply_of(client, client.run(graph)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"densify_start": 0.95}, "Lucid Optimizer: densify_start is 0.95; it must be at most stop"),
        ({"lr_means": 0.0}, "lr_means"),
    ],
)
def test_lucid_optimizer_refuses_by_name(client, changes, message):
    with pytest.raises(ComfyError, match=message):
        client.run(with_optimizer("cpu", changes, seed=153))
