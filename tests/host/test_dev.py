"""The way in: set-up, server, client and demo, where things go wrong and where they go right."""

import importlib.util
import io
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo import __main__ as demo
from devtools import base as bases
from devtools import chromium, fetch, venv
from devtools.host import Server, check_port
from devtools.tree import Tree
from lucid_batch.__main__ import options_of
from workflows.api import client as client_module
from workflows.api.client import Client, ComfyError, Printer, Progress, output_files

from .failing import fails

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def dev():
    """dev.py, which is a script."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dev"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["dev"]


@pytest.fixture
def tree(tmp_path) -> Tree:
    """A checkout without anything in it but what a set-up reads."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["a>=1"]\noptional-dependencies = {dev = ["b"]}\n'
    )
    return Tree(tmp_path)


@pytest.fixture
def comfyui(tmp_path) -> Path:
    folder = tmp_path / "SomeComfyUI"
    folder.mkdir()
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("torch\ntorchvision\n\n# why\naiohttp>=3  # client\n")
    return folder


@pytest.fixture
def pip(monkeypatch) -> list:
    """Set-up steps go into this list; `venv` makes nothing but the interpreter, and pip nothing at all."""
    steps = []

    def run(command, cwd=None):
        steps.append([str(part) for part in command])
        if "venv" in command:
            python = Tree(Path(command[-1]).parent).python
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)

    monkeypatch.setattr(venv, "run", run)
    monkeypatch.setattr(venv, "is_installed", lambda tree, *modules: False)
    return steps


def set_up_venv(tree, comfyui):
    venv.prepare_venv(tree)
    venv.install_packages(tree, comfyui)


def installs(steps):
    return [step[6:] for step in steps if "pip" in step]


def test_a_set_up_installs_torch_first_and_never_moves_it(tree, comfyui, pip):
    set_up_venv(tree, comfyui)
    assert installs(pip) == [venv.TORCH, venv.TORCH_COMPANIONS, ["aiohttp>=3", "a>=1", "b"]]


def test_a_torch_that_is_there_is_left_alone(tree, comfyui, pip, monkeypatch):
    monkeypatch.setattr(venv, "is_installed", lambda tree, *modules: True)
    set_up_venv(tree, comfyui)
    assert installs(pip) == [["aiohttp>=3", "a>=1", "b"]]


def test_a_complete_set_up_is_not_repeated(tree, comfyui, pip):
    set_up_venv(tree, comfyui)
    pip.clear()
    set_up_venv(tree, comfyui)
    assert pip == []


def test_new_requirements_are_installed_into_the_same_venv(tree, comfyui, pip):
    set_up_venv(tree, comfyui)
    pip.clear()
    (comfyui / "requirements.txt").write_text("aiohttp>=4\n")
    set_up_venv(tree, comfyui)
    assert installs(pip)[-1] == ["aiohttp>=4", "a>=1", "b"]
    assert not any("venv" in step for step in pip)


def test_an_interrupted_install_is_repaired(tree, comfyui, pip, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(venv, "pip_steps", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            set_up_venv(tree, comfyui)
    half_written = tree.venv / "half-written"
    half_written.touch()
    pip.clear()
    set_up_venv(tree, comfyui)
    assert any("venv" in step for step in pip), "the half-made .venv is made anew"
    assert not half_written.exists()
    assert tree.stamp.exists() and not tree.unfinished.exists()


def test_an_interrupted_venv_command_is_repaired(tree, comfyui, pip):
    tree.venv.mkdir()
    tree.unfinished.touch()
    set_up_venv(tree, comfyui)
    assert tree.python.exists() and not tree.unfinished.exists()


def test_too_small_a_disk_is_refused_before_anything_is_made(tree, pip, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    with pytest.raises(RuntimeError, match=r"needs about 6 GB .* has 1\.5 GB free"):
        venv.prepare_venv(tree)
    assert not tree.venv.exists() and pip == []


@pytest.fixture
def apt(monkeypatch) -> list:
    """A Debian where we are root and no browser is installed yet; the calls of apt-get go into this list."""
    programs, calls = {"apt-get": "/usr/bin/apt-get"}, []

    def run(command, cwd=None):
        calls.append(command[len(chromium.APT) :])
        if "install" in command:
            programs["chromium"] = "/usr/bin/chromium"

    monkeypatch.setattr(chromium, "run", run)
    monkeypatch.setattr(chromium, "ELSEWHERE", [])
    monkeypatch.setattr(shutil, "which", programs.get)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    return calls


def test_chromium_is_installed_once_where_apt_is_there_and_we_may(apt, capsys):
    for _ in range(2):
        chromium.prepare_chromium()
    assert apt == [["update"], ["install", "-y", "--no-install-recommends", "chromium"]]
    assert "skipped" not in capsys.readouterr().err


def test_without_root_one_line_says_what_to_install(apt, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    chromium.prepare_chromium()
    assert apt == [] and capsys.readouterr().err.count("\n") == 1


def test_a_failed_installation_of_chromium_does_not_end_the_tests(apt, monkeypatch, capsys):
    def fail(command):
        raise RuntimeError("set-up step failed")

    monkeypatch.setattr(chromium, "run", fail)
    chromium.prepare_chromium()
    assert "will be skipped" in capsys.readouterr().err


def test_the_unit_tests_need_nothing_of_the_host(tree, comfyui, pip):
    set_up_venv(tree, None)
    assert installs(pip) == [venv.TORCH, venv.TORCH_COMPANIONS, ["a>=1", "b"]]
    pip.clear()
    set_up_venv(tree, None)
    assert pip == []
    set_up_venv(tree, comfyui)
    assert installs(pip)[-1] == ["aiohttp>=3", "a>=1", "b"]
    pip.clear()
    set_up_venv(tree, None)
    set_up_venv(tree, comfyui)
    assert pip == []


@pytest.mark.parametrize(
    "words, path, has_host",
    [
        (["unit"], "tests/unit", False),
        (["unit", "-k", "ply"], "tests/unit", False),
        (["tests/unit/test_views.py"], "tests/unit/test_views.py", False),
        (["host"], "tests/host", True),
        (["unit", "host"], "tests/host", True),
        (["types"], "mypy", False),
    ],
)
def test_a_layer_of_the_tests_is_a_word(dev, words, path, has_host, monkeypatch):
    code, ((comfyui, arguments),) = commands_of(dev, words, monkeypatch)
    assert code == 0 and path in arguments and (comfyui is not None) == has_host


@pytest.mark.parametrize(
    "words, processes", [([], ["2"]), (["host"], ["2"]), (["host", "-n", "1"], ["2", "1"]), ([__file__], [])]
)
def test_folders_are_tested_by_two_processes(dev, words, processes, monkeypatch):
    """Of two words -n the last one counts."""
    _, ran = commands_of(dev, words, monkeypatch)
    arguments = ran[-1][1]
    assert [arguments[at + 1] for at, word in enumerate(arguments) if word == "-n"] == processes


@pytest.mark.parametrize("layer", ["gpu", "host"])
def test_a_value_of_an_option_is_no_layer(dev, layer, monkeypatch):
    _, ((comfyui, arguments),) = commands_of(dev, ["unit", "-k", layer], monkeypatch)
    assert comfyui is None and arguments[-2:] == ["-k", layer]


@pytest.mark.parametrize("types, runs", [(0, ["mypy", "pytest"]), (1, ["mypy"])])
def test_all_tests_begin_with_the_types(dev, types, runs, monkeypatch):
    code, ran = commands_of(dev, [], monkeypatch, lambda arguments: types if "mypy" in arguments else 0)
    assert code == types and [arguments[1] for _, arguments in ran] == runs


def commands_of(dev, words, monkeypatch, code_of=lambda arguments: 0):
    """-> the exit code of `dev.py test WORDS`, and (ComfyUI, arguments) of each command that it runs."""
    ran = []
    for name in ("prepare_venv", "prepare_chromium", "install_packages"):
        monkeypatch.setattr(dev, name, lambda *_: None)
    monkeypatch.setattr(dev, "set_up", lambda tree, *_: dev.Setup(tree, tree.comfyui, bases.PRIOR))

    def hand_over(tree, comfyui, arguments, threads=None):
        ran.append((comfyui, arguments))
        return code_of(arguments)

    monkeypatch.setattr(dev, "hand_over", hand_over)
    return dev.main(["test", *words]), ran


@pytest.mark.parametrize("command, wanted", [("test", 1), ("demo", 0)])
def test_only_the_tests_prepare_chromium(dev, command, wanted, monkeypatch):
    prepared = []
    monkeypatch.setattr(dev, "set_up", lambda tree, *_: dev.Setup(tree, tree.comfyui, bases.PRIOR))
    monkeypatch.setattr(dev, "prepare_chromium", lambda: prepared.append(1))
    monkeypatch.setattr(dev, "hand_over", lambda *_, **__: 0)
    assert dev.main([command, *["a red mug"][: command == "demo"]]) == 0
    assert len(prepared) == wanted


def test_an_interrupted_fetch_is_repaired(tree, monkeypatch):
    def clone(scratch):
        (scratch / "ComfyUI").mkdir()
        (scratch / "ComfyUI" / "comfyui_version.py").write_text(f'__version__ = "{fetch.HOST_VERSION}"\n')
        return scratch / "ComfyUI"

    monkeypatch.setattr(fetch, "git_reaches_host", lambda: True)
    monkeypatch.setattr(fetch, "clone_host", clone)
    (tree.cache / "fetching" / "ComfyUI").mkdir(parents=True)
    assert fetch.find_host(tree, None) is None
    assert fetch.fetch_host(tree) == fetch.find_host(tree, None) == tree.comfyui
    assert not (tree.cache / "fetching").exists()


def test_a_host_of_another_version_is_not_taken_from_the_cache(tree):
    tree.comfyui.mkdir(parents=True)
    (tree.comfyui / "comfyui_version.py").write_text('__version__ = "0.1.0"\n')
    assert fetch.find_host(tree, None) is None


def test_the_comfyui_that_holds_the_checkout_is_found(tmp_path):
    tree = Tree(tmp_path / "custom_nodes" / "lucid")
    tree.root.mkdir(parents=True)
    (tmp_path / "main.py").touch()
    assert fetch.find_host(tree, None) == tmp_path


def test_a_folder_that_is_no_comfyui_is_refused(tree, tmp_path):
    with pytest.raises(ValueError, match=r"no ComfyUI folder \(it has no main\.py\)"):
        fetch.find_host(tree, str(tmp_path))


@pytest.mark.parametrize("arguments", [["demo", "a mug"], ["serve"]])
def test_a_missing_checkpoint_is_refused_before_the_set_up(dev, arguments, monkeypatch, capsys):
    monkeypatch.setattr(
        dev, "prepare_venv", lambda tree: pytest.fail("set up before the arguments were checked")
    )
    assert dev.main([*arguments, "--checkpoint", "no/such.safetensors"]) == 1
    assert "there is no checkpoint file" in capsys.readouterr().err


def test_an_empty_prompt_is_refused_before_the_set_up(dev, monkeypatch, capsys):
    monkeypatch.setattr(dev, "set_up", lambda *_: pytest.fail("set up before the arguments were checked"))
    assert dev.main(["demo", "  "]) == 1
    assert "the prompt is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--image", "no/such.png"], "there is no file no/such.png"),
        (["a red mug", "--image", "no/such.png"], "give a prompt or --image"),
    ],
)
def test_a_bad_image_is_refused_before_the_set_up(dev, words, message, monkeypatch, capsys):
    monkeypatch.setattr(dev, "set_up", lambda *_: pytest.fail("set up before the arguments were checked"))
    assert dev.main(["demo", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "checkpoint, size, fill", [(bases.CAMERA, 128, 0.0), ("stable_zero123.ckpt", 256, 0.8)]
)
def test_the_demo_of_a_picture(checkpoint, size, fill, tmp_path):
    words = ["--comfyui", ".", "--base", ".", "--image", str(tmp_path / "cup.png"), "--elevation", "20"]
    graph = demo.graph_of(demo.parse([*words, "--checkpoint", checkpoint]), "cup")
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert inputs["ImageOnlyCheckpointLoader"]["ckpt_name"] == checkpoint
    assert inputs["LoadImage"]["image"] == "cup.png"
    prompt = inputs["LucidImagePrompt"]
    assert (prompt["elevation_deg"], prompt["azimuth_deg"]) == (20.0, 0.0)
    assert (prompt["size"], prompt["fill"]) == (size, fill)
    assert inputs["LucidDream"]["preset.resolution"] == size


def test_a_checkpoint_is_linked_once_and_never_over_another(tree, tmp_path):
    tree.checkpoints.mkdir(parents=True)
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"weights")
    for _ in range(2):
        assert bases.link_checkpoint(tree, mine) == "mine.safetensors"
    assert (tree.checkpoints / "mine.safetensors").read_bytes() == b"weights"
    (tree.checkpoints / "mine.safetensors").unlink()
    (tree.checkpoints / "mine.safetensors").write_bytes(b"somebody's own file")
    with pytest.raises(ValueError, match="another file of the same name"):
        bases.link_checkpoint(tree, mine)


def test_the_pack_is_linked_anew_after_the_checkout_moved(tmp_path):
    link, old, new = tmp_path / "lucid_ism", tmp_path / "old", tmp_path / "new"
    link.symlink_to(old)
    new.mkdir()
    bases.link_folder(link, new)
    assert link.samefile(new)


@pytest.mark.parametrize("prompt", ["../../etc", "/a/b", "C:\\x", "a\0b", "..a..", "A  Red\nMushroom!"])
def test_a_slug_cannot_leave_its_folder(prompt):
    assert set(demo.slug(prompt)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("prompt", ["", "..", "/", "赤い茸"])
def test_a_prompt_without_a_name_in_it_is_refused(prompt):
    with pytest.raises(ValueError, match="no letter a-z"):
        demo.slug(prompt)


def test_filling_a_graph_leaves_the_original_and_what_is_none():
    graph = {"1": {"class_type": "LucidDream", "inputs": {"steps": 5, "seed": 1}}}
    filled = demo.fill(graph, {"LucidDream": {"steps": None, "seed": 7}})
    assert filled["1"]["inputs"] == {"steps": 5, "seed": 7} and graph["1"]["inputs"]["seed"] == 1
    with pytest.raises(ValueError, match="no LucidSave node"):
        demo.fill(graph, {"LucidSave": {"filename_prefix": "x"}})


def test_progress_shows_what_the_node_says_now_and_then_and_at_the_end(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    clock = iter([0.0, 9.0, 11.0, 12.0])
    monkeypatch.setattr(client_module.time, "monotonic", lambda: next(clock))
    printer = Printer()
    printer(Progress("LucidDream", 0, 0))
    for step in (10, 20, 30, 100):
        printer(Progress("LucidDream", step, 100, f"step {step} of 100, 2.00 s a step" if step > 10 else ""))
    said = ["step 10 of 100", "step 30 of 100, 2.00 s a step", "step 100 of 100, 2.00 s a step"]
    assert shown.getvalue().splitlines() == [f"LucidDream: {line}" for line in said]


def test_the_demo_takes_the_time_of_each_phase(monkeypatch):
    clock = iter([0.0, 1.0, 60.0, 80.0])
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(clock))
    reporter = demo.Reporter()
    for progress in (
        Progress("LucidDream", 0, 0),
        Progress("LucidDream", 0, 0, "loading"),
        Progress("LucidSave", 0, 0),
    ):
        reporter(progress)
    reporter.node_ends()
    assert reporter.seconds == {"load": 1.0, "distil": 59.0, "save": 20.0}


def test_a_batch_is_handed_over_with_the_demo_host(dev, monkeypatch):
    handed = []
    monkeypatch.setattr(dev, "set_up", lambda tree, *_: dev.Setup(tree, tree.comfyui, bases.PRIOR))
    monkeypatch.setattr(dev, "hand_over", lambda tree, comfyui, words: handed.extend(words) or 0)
    assert dev.main(["batch", "text_to_splat.json", "jobs.csv", "--out", "results", "--workers", "2"]) == 0
    words = [str(word) for word in handed]
    assert words[:3] == ["-m", "lucid_batch", "text_to_splat.json"] and words[-2:] == ["--workers", "2"]
    options = options_of(words[2:])
    assert options.jobs.is_absolute() and options.out == Path.cwd() / "results" and options.workers == 2
    assert Path(options.launcher) == ROOT / "devtools" / "launch.py"


def test_the_demo_of_a_prompt():
    words = ["a red mug", "--comfyui", ".", "--base", ".", "--checkpoint", "x", "--seed", "1"]
    graph = demo.graph_of(demo.parse(words), "mug")
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert inputs["CheckpointLoaderSimple"]["ckpt_name"] == "x"
    assert inputs["LucidPrompt"]["text"] == "a red mug"
    assert (inputs["LucidDream"]["seed"], inputs["LucidDream"]["preset.resolution"]) == (1, 512)


def test_a_taken_port_is_named_before_the_host_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"port {port} cannot be used .* choose another one with --port"
        ):
            Server(tmp_path, tmp_path, port=port).__enter__()
    check_port(port)


def test_a_host_that_stops_at_its_start_shows_its_log(tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('the model folder is on fire')")
    with pytest.raises(
        RuntimeError, match=r"stopped with code 1 at its start(.|\n)*the model folder is on fire"
    ):
        Server(tmp_path, tmp_path, tmp_path / "log").__enter__()


def stock_graph(steps: int = 4) -> dict:
    """Text to image by the host's own nodes and the demo's checkpoint."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": bases.PRIOR}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red mushroom", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                **{"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
                **{
                    "seed": 1,
                    "steps": steps,
                    "cfg": 5.0,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 1.0,
                },
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "stock"}},
    }


def test_the_stock_graph_runs_with_the_demo_checkpoint(client):
    seen = []
    entry = client.run(stock_graph(), seen.append)
    (file,) = output_files(entry)
    assert client.view(file).startswith(PNG)
    assert Progress("KSampler", 4, 4) in seen


def test_the_pack_is_loaded(client):
    assert "LucidDream" in client.object_info()


def test_an_uploaded_file_comes_back(client):
    name = client.upload("a test.bin", b"\0\1\2")
    assert client.view({"filename": name, "subfolder": "", "type": "input"}) == b"\0\1\2"


def test_a_refused_graph_names_node_and_value(client):
    graph = stock_graph()
    graph["1"]["inputs"]["ckpt_name"] = "nope.safetensors"
    with fails("CheckpointLoaderSimple", "value_not_in_list", "ckpt_name", "nope.safetensors"):
        client.run(graph)


def test_a_failing_node_is_named_with_its_text(client):
    broken = client.upload("broken.png", b"no picture")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": broken}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    with pytest.raises(ComfyError, match=r"broken\.png") as error:
        client.run(graph)
    assert error.value.node == "LoadImage" and error.value.kind


def test_a_run_can_be_interrupted(client):
    begun = threading.Event()
    threading.Thread(target=lambda: begun.wait(60) and client.interrupt(), daemon=True).start()
    with fails("KSampler", "interrupted"):
        client.run(stock_graph(steps=2000), lambda progress: progress.step and begun.set())


def test_a_killed_server_is_reported_with_the_end_of_its_log(host_path, base, tmp_path):
    with Server(host_path, base, tmp_path / "server.log") as doomed:
        client = Client(doomed.address, doomed.log_tail)

        def kill(progress: Progress) -> None:
            if progress.step:
                os.kill(doomed.process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

        with pytest.raises(
            ComfyError, match=r"has died or does not answer(.|\n)*The end of(.|\n)*got prompt"
        ):
            client.run(stock_graph(steps=2000), kill)
