"""What a user does in the web page: templates, prompt, Run, previews, the finished splat, cancel, sockets,
numbers, help.
"""

import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from devtools.base import PACK

from .conftest import TIMEOUT_MS
from .editor import FIND

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
HELP = sorted(path.stem for path in (ROOT / "nodes" / "web" / "docs").glob("*.md"))
SMALL = {
    "LucidPointCloud": {
        "count": 300,
        "color": "#ff4000",
        "opacity": 0.9,
    },  # easily seen, and hardly changed by few steps
    "LucidDream": {"preset.steps": 3, "preset.views": 1, "preset.resolution": 64, "preview_seconds": 0.1},
    "LucidSave": {"turntable_frames": 0, "filename_prefix": "test/browser"},
}
BOXES = "() => app.canvas.graph.nodes.map(n => [n.type, ...(n.boundingRect ?? n.getBounding())])"
BLUEPRINT = "Text to splat"
VIEWER = "canvas[data-engine*=three], [data-capture-wheel] > canvas"  # of ComfyUI 0.30, of 0.33
ORANGE_SHARE = 0.005  # of the viewer's pixels; nothing else in it has a colour but the three axes
FRAMED_SHARE = 0.1  # what a ball that fills the view has at least; 0.01 without a camera of ours


def orange(locator) -> float:
    """The share of orange pixels in what the page shows there."""
    pixels = cv2.imdecode(np.frombuffer(locator.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    blue, green, red = (pixels[..., i].astype(int) for i in range(3))
    return float(((red > 120) & (red > green + 60) & (green > blue)).mean())


def open_templates(editor):
    editor.page.get_by_role("button", name="Templates").click()
    editor.page.get_by_text(PACK, exact=True).first.click()


def texts_queued(editor):
    """The prompts of all runs that the server knows."""
    history = editor.page.context.request.get("/history").json()
    graphs = [entry["prompt"][2].values() for entry in history.values()]
    return [
        node["inputs"]["text"] for graph in graphs for node in graph if node["class_type"] == "LucidPrompt"
    ]


def test_no_node_of_a_template_lies_on_another_as_the_page_draws_them(editor):
    """The page makes a node as high as its widgets need, whatever the file says."""
    found = {}
    for name in TEMPLATES:
        editor.load(name)
        boxes = editor.page.evaluate(BOXES)
        for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in itertools.combinations(boxes, 2):
            across = min(ax + aw, bx + bw) - max(ax, bx)
            if across > 1 and min(ay + ah, by + bh) - max(ay, by) > 1:
                found.setdefault(name, []).append((a, b))
    assert not found


def test_the_templates_list_ours(editor):
    open_templates(editor)
    for name in TEMPLATES:
        editor.page.get_by_test_id(f"template-workflow-{name}").wait_for()


def test_a_template_with_another_prompt_becomes_a_splat_in_the_viewer(editor):
    open_templates(editor)
    editor.page.get_by_test_id("template-workflow-text_to_splat").click()
    prompt = editor.page.get_by_placeholder("text", exact=True)
    prompt.fill("a blue mug")
    editor.set(**SMALL)
    viewer = editor.page.locator(VIEWER)
    viewer.wait_for()
    assert orange(viewer) < ORANGE_SHARE / 2

    editor.run_button().click()
    editor.wait_for("b_preview")
    editor.page.wait_for_function(
        f"() => ({FIND})('LucidDream').imgs?.length"
    )  # a picture on the node itself
    editor.wait_for("execution_success")
    assert editor.text_on("LucidDream").startswith("step 3 of 3")
    assert "a blue mug" in texts_queued(editor)
    give_up = time.monotonic() + TIMEOUT_MS / 1000
    while orange(viewer) < FRAMED_SHARE:  # the page says nothing when it has loaded the file
        assert time.monotonic() < give_up, "the viewer shows no splat, or a small one"


def test_the_blueprint_has_five_widgets_that_reach_the_nodes_inside(editor):
    editor.add_blueprint(BLUEPRINT)
    (named,) = editor.page.evaluate(
        "() => app.canvas.graph.nodes.map(node => Object.fromEntries("
        "node.widgets.map(widget => [widget.label ?? widget.name, widget.value])))"
    )
    assert list(named) == ["checkpoint", "prompt", "seed", "steps (quality)", "file name"]
    changed = ["lucid_demo_prior.safetensors", "a blue mug", 7, 40, "mug"]
    editor.page.evaluate(
        "values => app.canvas.graph.nodes[0].widgets.forEach((widget, i) => { widget.value = values[i]; })",
        changed,
    )
    graph = editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert changed == [
        inputs["CheckpointLoaderSimple"]["ckpt_name"],
        inputs["LucidPrompt"]["text"],
        inputs["LucidDream"]["seed"],
        inputs["LucidDream"]["preset.steps"],
        inputs["LucidSave"]["filename_prefix"],
    ]


def test_a_run_is_stopped_by_the_button_and_says_so_on_the_node(editor):
    editor.load("text_to_splat")
    editor.set(**SMALL)
    editor.set(LucidDream={"preset.steps": 5000, "seed": 5})
    editor.run_button().click()
    editor.wait_for("b_preview")
    editor.page.get_by_role("button", name="Cancel current run").click()
    editor.wait_for("execution_interrupted")
    editor.page.wait_for_function(
        f"() => ({FIND})('LucidDream').widgets.some(w => /^Stopped at step/.test(w.value))"
    )
    assert "lucid/run_" in editor.text_on("LucidDream")


def test_sockets_that_fit_are_connected_and_others_are_refused(editor):
    editor.add("LucidPointCloud", 100, 100)
    editor.add("LucidDream", 600, 100)
    editor.add("LucidISM", 600, 700)
    splat = editor.socket("LucidPointCloud", "splat")
    for kind, socket in [("LucidDream", "guidance"), ("LucidISM", "prompt"), ("LucidDream", "splat")]:
        editor.drag(splat, editor.socket(kind, socket))
    assert editor.links() == [("LucidPointCloud", "splat", "LucidDream", "splat")]


def test_a_link_dropped_on_the_canvas_suggests_our_nodes(editor):
    """The page knows them by the types of their sockets. The one that is chosen is connected."""
    editor.add("LucidDream", 700, 150)
    entries = editor.page.locator(".litecontextmenu .litemenu-entry")
    for socket, node in [("cameras", "LucidCameras"), ("guidance", "LucidISM")]:
        editor.page.keyboard.press("Escape")
        editor.drag(editor.socket("LucidDream", socket), (300, 700))
        entries.get_by_text(node, exact=True).wait_for()
    assert {"LucidISM", "LucidBaseline", "LucidMix", "LucidTargets"} <= {*entries.all_inner_texts()}
    entries.get_by_text("LucidISM", exact=True).click()
    editor.page.wait_for_function("() => app.canvas.graph.nodes.length === 2")
    assert editor.links() == [("LucidISM", "guidance", "LucidDream", "guidance")]


def test_lucid_controlnet_takes_both_kinds_of_controlnet(editor):
    editor.add("LucidControlNet", 600, 100)
    for y, (kind, output) in enumerate(
        [("ControlNetLoader", "CONTROL_NET"), ("ModelPatchLoader", "MODEL_PATCH")]
    ):
        editor.add(kind, 100, 100 + 300 * y)
        editor.drag(editor.socket(kind, output), editor.socket("LucidControlNet", "control_net"))
        assert editor.links() == [(kind, output, "LucidControlNet", "control_net")]


@pytest.mark.parametrize(
    "kind, widget, number", [("LucidDream", "preset.steps", 260), ("LucidPointCloud", "count", 12345)]
)
def test_a_number_that_is_typed_stays_as_it_is(editor, kind, widget, number):
    """The page rounds to multiples of a widget's step."""
    editor.add(kind, 100, 100)
    editor.type_number(kind, widget, str(number))
    assert editor.value(kind, widget) == number


@pytest.mark.skipif(not HELP, reason="no node has a help page")
def test_the_info_button_opens_the_help_pages_with_their_pictures(editor):
    for i, kind in enumerate(HELP):
        editor.page.evaluate("() => app.canvas.graph.clear()")
        editor.add(kind, 100 + 300 * (i % 2), 100)  # two clicks on one place would be a double click
        info = editor.page.get_by_test_id("info-button")
        editor.click(
            editor.point(*editor.of(kind, "[node.pos[0] + 100, node.pos[1] - 15]")), opens=info
        )  # its title
        info.click()
        help = editor.page.locator(".markdown-content")
        text = (ROOT / "nodes" / "web" / "docs" / f"{kind}.md").read_text(encoding="utf-8")
        help.get_by_role("heading", name=text.splitlines()[0].removeprefix("# "), exact=True).wait_for()
        if "![" in text:
            editor.page.wait_for_function(
                "() => document.querySelector('.markdown-content img')?.naturalWidth > 0"
            )
