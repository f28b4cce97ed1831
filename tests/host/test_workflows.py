"""Every shipped workflow: its two forms are one graph, the host accepts it, and its settings are the
preset's.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.quality.cases import evaluations_a_step, workflow
from devtools.base import PACK, PRIOR
from lucid_core.guidance.baselines import METHODS
from lucid_core.guidance.image_targets import PRESETS as TARGETS
from lucid_core.guidance.ism import PRESETS
from lucid_core.io import ply
from lucid_core.optimize.config import PRESETS as DREAMS
from lucid_core.settings import replace_settings
from lucid_core.starts.shapes import PointCloud
from workflows.api.client import input_of

from . import controlnets
from .failing import fails
from .views import write_views

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SOCKETS_ONLY = {
    "MODEL",
    "CLIP",
    "CLIP_VISION",
    "CONTROL_NET",
    "VAE",
    "CONDITIONING",
    "LATENT",
    "IMAGE",
    "MASK",
    "SPLAT",
    "MESH",
    "LUCID_PROMPT",
    "LUCID_GUIDANCE",
    "LUCID_CAMERAS",
    "LUCID_SELECTION",
    "LUCID_OPTIMIZER",
    "LUCID_VIEWS",
    "LUCID_FIELD",
    "LOAD3D_CAMERA",
    "LOAD3D_MODEL_INFO",
    "COMFY_AUTOGROW_V3",
}
NO_API_FORM = {"MarkdownNote", "Note"}
EXAMPLES = {
    "text_to_splat",
    "text_to_splat_sd",
    "personalised",
    "avatar",
    "refine_splat",
    "restyle_splat",
    "edit_splat",
    "edit_image",
    "compare_methods",
    "views_to_splat",
    "splat_to_textured_mesh",
    "text_to_textured_mesh",
    "best_of_four",
    "text_to_field_to_splat",
    "image_to_splat",
    "image_and_text_to_splat",
    "text_to_image_to_splat",
    "generated_views_to_splat",
}
TINY = {  # what a test changes: the demo's files in the place of the users', and little work
    "CheckpointLoaderSimple": {"ckpt_name": PRIOR},
    "ControlNetLoader": {"control_net_name": "test_plain.safetensors"},
    "LucidPointCloud": {"count": 300},
    "LucidPointsFromMesh": {"count": 300},
    "LucidDream": {"steps": 2, "views": 1, "resolution": 64},
    "LucidFit": {"steps": 2, "views": 1},
    "LucidSolidSplat": {"cells": 16, "min_opacity": 0.0},
    "SplatToMesh": {"resolution": 64, "min_component": 0},
    "LucidBakeTexture": {"size": 64, "faces": 200, "views": 6},
    "SaveGLB": {"filename_prefix": "test/workflow"},
    "LucidScore": {"views": 4, "max_evaluations": 32, "resolution": 64},
    "LucidSeeds": {"count": 2},
    "LucidField": {"resolution": 24, "fill": 8.0},
    "LucidDreamField": {"steps": 2, "views": 1, "resolution": 64},
    "LucidFieldToSplat": {"cells": 32, "fit_steps": 2},
    "KSampler": {"steps": 2},
    "LucidEditImage": {"steps": 2},
    "LucidRender": {"width": 64, "height": 64, "frames": 1},
    "LucidCompare": {"frames": 4, "size": 64},
    "LucidSave": {"turntable_frames": 4, "turntable_size": 64, "filename_prefix": "test/workflow"},
}
OFFICIAL_NEGATIVE = (  # of LucidDreamer's configs/bagel.yaml
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, "
    "oversaturation"
)
THUMBNAIL_BYTES = 60_000


def load(name, form):
    folder = ROOT / "workflows" / "api" if form == "api" else ROOT / "workflows"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def as_api(ui, info):
    """UI form -> API form, as the web page does when it queues: widget values in schema order, links by
    socket name.
    """
    source = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    graph = {}
    for node in ui["nodes"]:
        if node["type"] in NO_API_FORM:
            continue
        values = iter(node["widgets_values"])
        inputs = widgets(info[node["type"]]["input"], values)
        assert next(values, None) is None, f"{node['type']} has more widget values than widgets"
        inputs |= {slot["name"]: source[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def widgets(described, values, prefix=""):
    """Take the values of the widgets that are described; a dynamic combo's own follow it under its name."""
    inputs = {}
    for name, (kind, *options) in {**described.get("required", {}), **described.get("optional", {})}.items():
        sockets = set(kind.split(",")) if isinstance(kind, str) else set()
        is_socket = sockets & SOCKETS_ONLY or any(s.startswith("FILE_3D") for s in sockets)
        if is_socket or (options and options[0].get("forceInput")):
            continue
        inputs[prefix + name] = next(values)
        if options and options[0].get("control_after_generate"):
            next(values)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            (chosen,) = (option for option in options[0]["options"] if option["key"] == inputs[prefix + name])
            inputs |= widgets(chosen["inputs"], values, f"{prefix}{name}.")
    return inputs


def test_there_are_workflows_and_each_has_both_forms():
    assert set(NAMES) >= EXAMPLES
    assert sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_the_same_graph(name, client):
    assert as_api(load(name, "ui"), client.object_info()) == load(name, "api")


@pytest.mark.parametrize("name", NAMES)
def test_links_of_the_ui_form_are_consistent(name):
    ui = load(name, "ui")
    nodes = {node["id"]: node for node in ui["nodes"]}
    for link, source, slot, target, target_slot, kind in ui["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][target_slot]["link"] == link
        assert nodes[source]["outputs"][slot]["type"] == kind


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_the_ui_form_do_not_overlap(name):
    title = 30  # pixels above a node's position
    boxes = [
        (x, y - title, x + w, y + h)
        for (x, y), (w, h) in ((n["pos"], n["size"]) for n in load(name, "ui")["nodes"])
    ]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{a} lies on {b}"


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_to_change_first_and_the_result_is_shown(name):
    types = [node["type"] for node in load(name, "ui")["nodes"]]
    assert "MarkdownNote" in types
    results = ("LucidDream", "LucidFit", "LucidFieldToSplat")
    runs = sum(types.count(name) for name in results)
    assert types.count("PreviewGaussianSplat") == types.count("LucidSave") == runs
    assert types.count("SaveGLB") == types.count("LucidBakeTexture")
    assert runs or {"SaveGLB", "SaveImage"} & set(types)


@pytest.mark.parametrize("name", NAMES)
def test_the_host_offers_a_workflow_with_a_picture(name, client):
    fetch = lambda path: client.request("GET", path)
    assert name in json.loads(fetch("/api/workflow_templates"))[PACK]
    assert json.loads(fetch(f"/api/workflow_templates/{PACK}/{name}.json")) == load(name, "ui")
    picture = fetch(f"/api/workflow_templates/{PACK}/{name}.jpg")
    shape = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape
    assert len(picture) < THUMBNAIL_BYTES and min(shape[:2]) >= 256


def test_the_host_offers_the_blueprint_and_inside_it_is_text_to_splat_sd(client):
    fetch = lambda path: json.loads(client.request("GET", path))
    (key,) = (key for key, entry in fetch("/global_subgraphs").items() if entry["name"] == "Text to splat")
    (inside,) = json.loads(fetch(f"/global_subgraphs/{key}")["data"])["definitions"]["subgraphs"]
    shared = ("type", "widgets_values")
    workflow = {node["id"]: node for node in load("text_to_splat_sd", "ui")["nodes"]}
    for node in inside["nodes"]:
        assert [node[name] for name in shared] == [workflow[node["id"]][name] for name in shared]
    assert {link["target_id"] for link in inside["links"]} >= {2, 4, 5, 6}


@pytest.fixture(scope="module")
def saved_splat(base):
    """What the workflows that change a splat load: the first result of text_to_splat."""
    path = base / "output" / "lucid" / "splat_00001_.ply"
    path.parent.mkdir(exist_ok=True)
    ply.write(path, PointCloud(count=310).splats(0))


@pytest.fixture(scope="module")
def views_folder(base):
    """What views_to_splat loads."""
    write_views(base / "input" / "lucid_views")


@pytest.fixture(scope="module")
def other_checkpoint(base):
    """A second model: the demo's, each of whose weights is a little smaller."""
    name, folder = "lucid_test_other.safetensors", base / "models" / "checkpoints"
    if not (folder / name).exists():
        weights = load_file(folder / PRIOR)
        save_file(
            {key: 0.99 * value if value.is_floating_point() else value for key, value in weights.items()},
            folder / name,
        )
    return name


@pytest.fixture(scope="module")
def control_nets(base):
    """What avatar loads: small random weights."""
    controlnets.write(base / "models" / "checkpoints" / PRIOR, base / "models" / "controlnet")


@pytest.mark.parametrize("name", NAMES)
def test_every_workflow_runs(name, client, saved_splat, other_checkpoint, views_folder, control_nets):
    graph = load(name, "api")
    for node in graph.values():
        node["inputs"] |= {
            input_of(node, name): value for name, value in TINY.get(node["class_type"], {}).items()
        }
    if name == "two_models":
        _, second = (node for node in graph.values() if node["class_type"] == "CheckpointLoaderSimple")
        second["inputs"]["ckpt_name"] = other_checkpoint
    outputs = client.run(graph)["outputs"]
    assert any({"3d", "images"} & set(output) for output in outputs.values())


def test_a_workflow_whose_splat_is_not_there_says_so(client):
    graph = load("refine_splat", "api")
    (loader,) = (node for node in graph.values() if node["class_type"] == "Load3DAdvanced")
    loader["inputs"]["model_file"] = "lucid/none_00001_.ply [output]"
    wanted = ("Invalid 3D model file", "lucid/none_00001_.ply [output]")
    with fails("Load3DAdvanced", "custom_validation_failed", "model_file", *wanted):
        client.run(graph)


def test_text_to_splat_has_the_settings_of_the_cpu_preset():
    (ism,) = (
        node["inputs"] for node in load("text_to_splat", "api").values() if node["class_type"] == "LucidISM"
    )
    settings = dataclasses.asdict(PRESETS["cpu"])
    assert ism["preset"] == "cpu" and {name: ism[f"preset.{name}"] for name in settings} == settings


def test_text_to_splat_sd_has_the_official_settings_but_one_view_and_image_targets():
    """The official run asks its model 91,000 times, this one at most 10,000."""
    inputs = {node["class_type"]: node["inputs"] for node in load("text_to_splat_sd", "api").values()}
    settings = dataclasses.asdict(PRESETS["official"])
    assert {name: inputs["LucidISM"][f"preset.{name}"] for name in settings} == settings
    official = DREAMS["official"]
    run = inputs["LucidDream"]
    assert (run["preset"], run["preset.steps"], run["preset.views"]) == ("official", official.budget.steps, 1)
    share, targets = inputs["LucidISM"]["surface_share"], TARGETS["official"]
    config = replace_settings(official, views=1)
    of_ism = evaluations_a_step(dataclasses.replace(workflow(), guidance=PRESETS["official"], config=config))
    of_picture = targets.inversion_steps + 2 * targets.sampling_steps
    of_targets = targets.rounds(1.0, round(share * run["preset.steps"])) * targets.views * of_picture
    assert 7000 < (1 - share) * run["preset.steps"] * of_ism + of_targets < 10_000
    official_run = evaluations_a_step(
        dataclasses.replace(workflow(), guidance=PRESETS["official"], config=official)
    )
    assert official.budget.steps * official_run == pytest.approx(91_000, rel=0.02)
    assert (run["preset.resolution"], inputs["LucidPointCloud"]["count"]) == (512, 100_000)
    assert "LucidCameras" not in inputs  # the official ranges
    assert (inputs["LucidPrompt"]["blend_deg"], inputs["LucidPrompt"]["overhead_deg"]) == (
        90,
        90,
    )  # its words: no overhead
    assert inputs["LucidPrompt"]["negative"] == OFFICIAL_NEGATIVE


def test_compare_methods_asks_the_model_as_often_by_every_method():
    nodes = load("compare_methods", "api")
    runs = [node["inputs"] for node in nodes.values() if node["class_type"] == "LucidDream"]
    asked = [asked_by(nodes[run["guidance"][0]], run["preset.steps"]) for run in runs]
    assert len(runs) == 4 and asked == pytest.approx([asked[0]] * 4, rel=0.01)
    same = lambda run: {
        name: value for name, value in run.items() if name not in ("guidance", "preset.steps")
    }
    assert all(same(run) == same(runs[0]) for run in runs)
    (compare,) = (node["inputs"] for node in nodes.values() if node["class_type"] == "LucidCompare")
    assert [nodes[compare[f"splats.splat{i}"][0]]["inputs"] for i in range(4)] == runs
    assert compare["labels"].count("|") == 3


def asked_by(node, steps):
    """Evaluations of the model in `steps` steps of one view by a Lucid ISM or Lucid Baseline."""
    inputs = node["inputs"]
    if node["class_type"] == "LucidBaseline":
        guidance, targets = METHODS[inputs["method"]](), 0
    else:
        guidance, targets = PRESETS[inputs["preset"]], round(inputs["surface_share"] * steps)
    a_step = evaluations_a_step(dataclasses.replace(workflow(), guidance=guidance))
    pictures = TARGETS["cpu"]
    a_round = pictures.views * (pictures.inversion_steps + 2 * pictures.sampling_steps)
    return (steps - targets) * a_step + (pictures.rounds(1.0, targets) * a_round if targets else 0)
