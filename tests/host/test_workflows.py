"""Every shipped workflow: its two forms are one graph, the host accepts it, and its settings are the preset's."""

import dataclasses
import json
from pathlib import Path

import pytest

from lucid_core.ism import PRESETS

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SOCKETS_ONLY = {"MODEL", "CLIP", "VAE", "SPLAT", "LUCID_PROMPT", "LUCID_GUIDANCE", "LUCID_CAMERAS", "LUCID_SELECTION",
                "LOAD3D_CAMERA", "LOAD3D_MODEL_INFO"}  # fmt: skip
NO_API_FORM = {"MarkdownNote", "Note"}


def load(name, form):
    folder = ROOT / "workflows" / "api" if form == "api" else ROOT / "workflows"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def as_api(ui, info):
    """UI form -> API form, as the web page does when it queues: widget values in schema order, links by socket name."""
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
        if sockets & SOCKETS_ONLY or any(s.startswith("FILE_3D") for s in sockets):
            continue
        inputs[prefix + name] = next(values)
        if options and options[0].get("control_after_generate"):
            next(values)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            (chosen,) = (option for option in options[0]["options"] if option["key"] == inputs[prefix + name])
            inputs |= widgets(chosen["inputs"], values, f"{prefix}{name}.")
    return inputs


def test_there_are_workflows_and_each_has_both_forms():
    assert "text_to_splat" in NAMES
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
def test_every_workflow_runs(name, client):
    graph = load(name, "api")
    for node in graph.values():
        if node["class_type"] == "LucidDream":
            node["inputs"]["steps"] = 2
        if node["class_type"] == "LucidSave":
            node["inputs"].update(turntable_frames=4, turntable_size=64, filename_prefix="test/workflow")
    outputs = client.run(graph)["outputs"]
    assert any("3d" in output for output in outputs.values())


def test_text_to_splat_has_the_settings_of_the_cpu_preset():
    (ism,) = (node["inputs"] for node in load("text_to_splat", "api").values() if node["class_type"] == "LucidISM")
    settings = dataclasses.asdict(PRESETS["cpu"])
    assert ism["preset"] == "cpu" and {name: ism[f"preset.{name}"] for name in settings} == settings
