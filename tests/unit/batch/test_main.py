"""The command line: the plan, and one clear message and code 2 for each mistake."""

import io
import os
import socket
import sys
import threading

import pytest

from lucid_batch import driver, pool
from lucid_batch.__main__ import main, options_of
from lucid_batch.scheduler import Event
from lucid_batch.server import answers, free_port
from lucid_batch.view import View

WORKFLOW = "text_to_splat.json"


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    models = tmp_path / "ComfyUI" / "models" / "checkpoints"
    models.mkdir(parents=True)
    (models / "lucid_demo_prior.safetensors").write_text("a prior")
    (tmp_path / "ComfyUI" / "main.py").touch()
    path = tmp_path / "jobs.csv"
    path.write_text("LucidPrompt.text,LucidDream.seed\na mug,1\na cup,x\na mug,1\n")
    return path


def words(jobs, *more):
    comfyui = ("--comfyui", str(jobs.parent / "ComfyUI"))
    return [WORKFLOW, str(jobs), "--out", str(jobs.parent / "out"), *comfyui, *more]


def fails(capsys, given, *parts):
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line


def test_a_dry_run_prints_the_plan_and_writes_nothing(jobs, capsys):
    assert main(words(jobs, "--dry-run", "--on-bad-row", "skip")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run ") and lines[0].endswith("line 2: a mug")
    assert lines[1] == "skip  line 3: LucidDream.seed takes a number, not 'x'"
    assert lines[2].startswith("1 to run, 0 done, 1 repeated, 1 bad rows; workers: Ray at local")
    assert not (jobs.parent / "out").exists()


def test_a_bad_row_stops_the_run(jobs, capsys):
    fails(capsys, words(jobs), "line 3: LucidDream.seed takes a number, not 'x'", "nothing was run")


@pytest.mark.parametrize(
    "more, part",
    [
        (["--servers", "a:1,b:2", "--workers", "3"], "leave out --workers"),
        (["--tries", "0"], "--tries 1 or more"),
        (["--comfyui", "/nowhere"], "there is no main.py in /nowhere"),
    ],
)
def test_options_that_do_not_fit(jobs, capsys, more, part):
    fails(capsys, words(jobs, "--on-bad-row", "skip", *more), part)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links, paths with /")
def test_relative_paths_are_made_absolute_and_links_and_commands_stay(jobs, monkeypatch):
    monkeypatch.chdir(jobs.parent)
    (jobs.parent / "python").symlink_to(sys.executable)
    paths = ("--comfyui", "ComfyUI", "--base", "../base", "--launcher", "x/launch.py", "--models", "./m")
    found = options_of([WORKFLOW, "jobs.csv", "--out", "out", *paths, "--python", "python"])
    here = str(jobs.parent)
    assert found.comfyui == f"{here}/ComfyUI" and found.base == f"{here}/../base"
    assert found.launcher == f"{here}/x/launch.py" and found.models == (f"{here}/m",)
    assert found.python == f"{here}/python"
    monkeypatch.setenv("COMFYUI_PATH", "ComfyUI")
    found = options_of([WORKFLOW, "jobs.csv", "--out", "out", "--python", "python3"])
    assert found.comfyui == f"{here}/ComfyUI" and found.python == "python3" and found.base == ""


def test_a_workflow_that_is_not_there(jobs, capsys):
    fails(capsys, ["none.json", *words(jobs)[1:]], "there is no workflow file none.json")


def test_an_output_folder_that_cannot_be_written(jobs, capsys):
    (jobs.parent / "out").touch()
    fails(capsys, words(jobs, "--on-bad-row", "skip"), "the output folder", "cannot be written")


def test_no_ray_is_one_line_with_the_command(jobs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = words(jobs, "--on-bad-row", "skip", "--address", "auto")
    fails(capsys, given, 'Ray is not installed; run: python -m pip install "ray[client]>=2.9"')


def test_an_address_that_does_not_answer_is_named(jobs, capsys, monkeypatch):
    monkeypatch.setattr(pool, "load_ray", lambda: None)
    address = f"ray://127.0.0.1:{free_port()}"
    fails(capsys, words(jobs, "--on-bad-row", "skip", "--address", address), address, "within 15 s")


def test_a_server_that_does_not_answer_is_named(jobs, capsys):
    address = f"http://127.0.0.1:{free_port()}"
    fails(capsys, words(jobs, "--on-bad-row", "skip", "--servers", address), address, "within 10 s")


def test_a_cluster_that_starts_no_worker_is_told_once(monkeypatch):
    class Busy:
        names, events = ["w"], [[], [], [Event("ready", "w")]]

        def wait(self, timeout_s):
            return self.events.pop(0)

    monkeypatch.setattr(driver, "SLOW_S", -1.0)
    stream = io.StringIO()
    events = driver.wait_for_worker(Busy(), View(["w"], stream), driver.Stop())
    assert [event.kind for event in events] == ["ready"]
    assert stream.getvalue().count("are the cluster's CPUs and GPUs in use?") == 1


def test_a_port_that_does_not_speak_http_is_no_comfyui():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-test\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert not answers(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
