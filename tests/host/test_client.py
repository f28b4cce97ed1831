"""workflows/api/client.py as a user runs it: files out, one clear line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.host import free_port
from lucid_core.io import ply
from workflows.api import client as script

CLIENT = Path(script.__file__)
WORKFLOW = "text_to_splat.json"
SMALL = [
    *("LucidPointCloud.count=300", "LucidDream.steps=2", "LucidDream.views=1", "LucidDream.resolution=64"),
    *("LucidSave.turntable_frames=2", "LucidSave.turntable_size=64", "LucidSave.filename_prefix=test/client"),
]


def setting(*texts):
    return [word for text in texts for word in ("--set", text)]


def test_a_workflow_is_run_and_its_files_are_kept(server, client, tmp_path):
    words = [
        *setting("LucidPrompt.text=a blue mug", *SMALL),
        "--out",
        "results",
        "--server",
        f"http://{server.address}",
    ]
    done = subprocess.run(
        [sys.executable, CLIENT, WORKFLOW, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept = [tmp_path / line for line in done.stdout.splitlines()]
    assert sorted(path.suffix for path in kept) == [".mp4", ".ply"]
    assert len({path.stem for path in kept}) == 1  # one number
    assert sorted(kept) == sorted((tmp_path / "results").iterdir())
    assert len(ply.read(next(path for path in kept if path.suffix == ".ply"))) == 300
    assert "LucidDream: step 2 of 2" in done.stderr
    *_, entry = json.loads(client.request("GET", "/history")).values()
    assert entry["prompt"][2]["2"]["inputs"]["text"] == "a blue mug"


@pytest.mark.parametrize(
    "words, message",
    [
        (["no_such.json"], "there is no workflow file no_such.json"),
        ([str(CLIENT)], "is not a JSON file"),
        ([str(CLIENT.parents[1] / WORKFLOW)], "is in the web page's format"),
        (
            [WORKFLOW, *setting("LucidPromt.text=x")],
            "the workflow has no LucidPromt node; it has CheckpointLoaderSimple, ",
        ),
        (
            [WORKFLOW, *setting("LucidPrompt.txt=x")],
            "LucidPrompt has no input 'txt' to set; it has text, negative",
        ),
        ([WORKFLOW, *setting("LucidPrompt.clip=x")], "LucidPrompt has no input 'clip' to set"),
        ([WORKFLOW, *setting("LucidPrompt=x")], "--set takes NODE.INPUT=VALUE"),
        ([WORKFLOW, *setting("LucidDream.steps=many")], "LucidDream.steps takes a number, not 'many'"),
        (
            [WORKFLOW, *setting("LucidISM.preset.fix_noise=1")],
            "LucidISM.preset.fix_noise takes true or false, not '1'",
        ),
        ([WORKFLOW, *setting("LucidDream.steps=0")], "LucidDream: Value 0 smaller than min of 1"),
        ([WORKFLOW, *setting(*SMALL, "LucidDream.resume=nope")], "LucidDream: "),
    ],
)
def test_a_mistake_is_one_clear_line(words, message, server, capsys, tmp_path):
    assert script.main([*words, "--server", server.address, "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_a_server_that_is_not_there_is_one_clear_line(address, capsys):
    address = address.format(free_port())
    assert script.main([WORKFLOW, "--server", address]) == 1
    assert capsys.readouterr().err == f"error: the ComfyUI at {address} has died or does not answer.\n"


@pytest.mark.parametrize(
    "text, held, value", [("7", 1, 7), ("2.5", 1.0, 2.5), ("True", False, True), ("12", "a mug", "12")]
)
def test_a_value_becomes_what_the_input_holds(text, held, value):
    graph = {"5": {"class_type": "Node", "inputs": {"a.b": held}}}
    for name in ("5", "Node"):
        filled = script.fill(graph, script.setting(graph, f"{name}.a.b={text}"))["5"]["inputs"]["a.b"]
        assert filled == value and type(filled) is type(value)
