"""A worker with a stand-in for ComfyUI (benchmarks/batch/stand_in.py): a real process, without Ray."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from lucid_batch.api.client import read_graph

from lucid_batch import version
from lucid_batch.jobs import Row, fill_rows, key_of
from lucid_batch.store import Store
from lucid_batch.worker import Spec, Worker, outer_lines

WORKFLOW = "text_to_splat.json"
STAND_IN = Path(__file__).parents[3] / "benchmarks" / "batch" / "stand_in.py"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "out")
    made.open(beat=False)
    return made


@pytest.fixture
def worker(store, tmp_path, monkeypatch):
    models = tmp_path / "base" / "models" / "checkpoints"
    models.mkdir(parents=True)
    (models / "lucid_demo_prior.safetensors").touch()
    monkeypatch.setenv("STAND_IN_JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setenv("STAND_IN_STEP_S", "0.02")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = {"root": str(store.root), "comfyui": str(tmp_path), "base": str(tmp_path / "base")}
    how = {"driver": store.driver, "version": version(), "launcher": str(STAND_IN), "flags": ("--cpu",)}
    made = Worker(Spec("worker-1", **folders, **how))
    yield made
    made.stop(0)


def job_of(tmp_path, text, steps):
    rows = [Row(2, {"LucidPrompt.text": text, "LucidDream.steps": steps})]
    (job,), _ = fill_rows(read_graph(WORKFLOW), rows, tmp_path)
    return replace(job, key=key_of(job.graph, version(), job.models))


def step_of(folder):
    files = list(folder.glob("lucid/run_*_.safetensors"))
    return max((json.loads(file.read_text())["step"] for file in files), default=0)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_job_resumes_on_the_worker_whose_comfyui_was_killed(worker, tmp_path):
    job, results = job_of(tmp_path, "a mug", 60), []
    run = threading.Thread(target=lambda: results.append(worker.run(job, {})))
    run.start()
    while step_of(worker.output) < 10:
        assert run.is_alive()
        time.sleep(0.02)
    os.kill(worker.server.process.pid, signal.SIGKILL)
    run.join()
    again = worker.run(job, {})
    assert [one.outcome for one in (*results, again)] == ["lost", "done"], (results, again)
    assert len(again.report["resumed"]) == 1
    (line,) = (tmp_path / "journal").read_text().splitlines()
    assert json.loads(line)["from"] >= 10


def test_an_http_error_fails_the_job_and_leaves_the_server(worker, tmp_path):
    job = job_of(tmp_path, "a mug", 5)
    failed = worker.run(job, {"a.png": b"x"})  # the stand-in takes no files
    server = worker.server.process.pid
    assert failed.outcome == "failed" and "/upload/image: status 404" in failed.reason
    assert worker.run(job, {}).outcome == "done" and worker.server.process.pid == server


def test_a_workflow_without_a_file_is_refused(worker, tmp_path):
    found = worker.run(job_of(tmp_path, "save nothing", 5), {})
    assert (found.outcome, found.reason) == (
        "refused",
        "the workflow saved no file; add Lucid Save or Save Image",
    )


def test_a_start_that_fails_has_its_reason_and_log_kept(store, tmp_path, monkeypatch):
    monkeypatch.setattr("lucid_batch.worker.PAUSES_S", ())
    (tmp_path / "main.py").write_text("print('first')\nraise SystemExit('no driver for the GPU')\n")
    how = {"driver": store.driver, "version": version(), "flags": ("--cpu",)}
    worker = Worker(Spec("worker-1", str(store.root), comfyui=str(tmp_path), **how))
    found = worker.run(job_of(tmp_path, "a mug", 5), {})
    worker.stop(0)
    assert found.outcome == "down"
    assert found.reason.startswith("ComfyUI stopped with code 1 at its start. no driver for the GPU (")
    assert "first" in (store.root / "logs" / "worker-1.log").read_text()


def test_the_outer_lines_of_an_error():
    assert outer_lines(RuntimeError("a\nb\nc\n")) == "a c"
    assert outer_lines(RuntimeError("a")) == "a" and outer_lines(KeyError()) == "KeyError"
