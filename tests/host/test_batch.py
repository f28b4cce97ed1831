"""lucid_batch with a real Ray: on the real ComfyUI, and on stand-ins (benchmarks/batch/stand_in.py) where
only the processes matter.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import pytest

from benchmarks.batch import kills
from benchmarks.batch.kills import ROOT, STAND_IN, Batch, kill_at_random, with_stand_in
from lucid_batch.server import answers, free_port
from lucid_core.io import ply

TINY = {
    **{"LucidPointCloud.count": 300, "LucidISM.surface_share": 0.0, "LucidDream.resolution": 64},
    **{"LucidDream.views": 1, "LucidSave.turntable_frames": 8, "LucidSave.turntable_size": 64},
}


def write_rows(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(folder, *words, workflow="text_to_splat.json"):
    jobs = next(folder.glob("jobs.*"))
    return [sys.executable, "-m", "lucid_batch", workflow, str(jobs), "--out", str(folder / "out"), *words]


def run(folder, *words, environment=None, **options):
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **(environment or {})}
    done = subprocess.run(
        command(folder, *words, **options), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stderr


def reports(folder):
    return {
        one["label"]: one
        for one in (json.loads(path.read_text()) for path in folder.glob("out/jobs/*/report.json"))
    }


def test_a_batch_on_a_running_comfyui(server, tmp_path):
    base = {**TINY, "LucidDream.steps": 2}
    write_rows(
        tmp_path,
        {**base, "LucidPrompt.text": "a red mug"},
        {**base, "LucidPrompt.text": "a blue mug"},
        {**base, "LucidPrompt.text": "a red mug"},  # as the first
        {**base, "LucidPrompt.text": "a bad one", "LucidDream.resume": "none.safetensors"},
        {**base, "LucidPrompt.text": "a worse one", "LucidDream.steps": 0},
    )
    words = ("--servers", server.address, "--tries", "2", "--on-bad-row")
    code, text = run(tmp_path, *words, "stop")
    assert code == 2 and "line 5: LucidDream.steps is 0; it must be from 1 to " in text
    assert not reports(tmp_path)
    code, text = run(tmp_path, *words, "skip")
    assert code == 1 and "2 done, 1 failed" in text, text
    made = reports(tmp_path)
    assert set(made) == {"a red mug", "a blue mug"}
    for report in made.values():
        folder = tmp_path / "out" / "jobs" / report["key"]
        assert {"splat.ply", "video.mp4", "sheet.jpg", "thumb.jpg", "workflow.json"} <= set(report["files"])
        assert all((folder / name).stat().st_size for name in report["files"])
        assert len(ply.read(folder / "splat.ply")) == 300 == report["result"]["splats"]
        assert 0 < report["run_seconds"] <= report["seconds"]
    with sqlite3.connect(tmp_path / "out" / "index.sqlite") as table:
        states = table.execute("SELECT label, state, reason FROM jobs ORDER BY line").fetchall()
    assert [state for _, state, _ in states] == ["done", "done", "failed"]
    assert "resume is 'none.safetensors'" in states[2][2]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_batch_survives_the_death_of_its_real_host_worker_and_driver(host_path, base, tmp_path):
    launcher = ROOT / "devtools" / "launch.py"
    words = ("--comfyui", str(host_path), "--base", str(base), "--launcher", str(launcher))
    rows = [{**TINY, "LucidPrompt.text": text, "LucidDream.steps": 25} for text in ("a mug", "a cone")]
    table = table_of([{**row, "LucidDream.checkpoint_minutes": 0.005} for row in rows])
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    batch = Batch(tmp_path, 2, 25, (*words, "--workers", "1", "--tries", "9"), environment, table)
    found = kill_at_random(batch, 1, {"host": 1, "worker": 1, "driver": 1}, (3.0, 5.0))
    assert Counter(found.kills) == {"host": 1, "worker": 1, "driver": 1}, (tmp_path / "log").read_text()
    assert (found.lost, found.double) == (0, 0)
    splats = [ply.read(path) for path in tmp_path.glob("out/jobs/*/splat.ply")]
    assert [len(one) for one in splats] == [300, 300]


def table_of(rows):
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_random_kills_lose_nothing_and_make_nothing_twice(tmp_path):
    """Eight of them; `python -m benchmarks batch` has twenty."""
    batch = with_stand_in(tmp_path, jobs=6, steps=80, step_s=0.05)
    kinds = {"host": 4, "worker": 3, "driver": 1}
    found = kill_at_random(batch, 3, kinds, (0.4, 1.2))
    assert Counter(found.kills) == kinds and found.starts >= 2, (tmp_path / "log").read_text()
    assert (found.lost, found.double) == (0, 0)
    assert found.resumed > 0


def test_the_limit_of_a_batch_holds_while_its_driver_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "LIMIT_S", 0)
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(Batch, "start", lambda self: subprocess.Popen(hangs))
    with pytest.raises(TimeoutError, match=re.escape(str(tmp_path / "log"))):
        kill_at_random(with_stand_in(tmp_path, jobs=1, steps=1, step_s=0), 1, {}, (0.1, 0.2))


def test_a_server_that_hangs_one_without_the_model_and_a_poison_job(tmp_path):
    servers, addresses = [], []
    for name, models in (("whole", ["lucid_demo_prior.safetensors"]), ("poor", [])):
        folder, port = tmp_path / name / "models" / "checkpoints", free_port()
        folder.mkdir(parents=True)
        for model in models:
            (folder / model).touch()
        output = tmp_path / f"output of {name}"
        output.mkdir()
        words = ("--base-directory", tmp_path / name, "--output-directory", output, "--port", str(port))
        environment = {**os.environ, "STAND_IN_JOURNAL": str(tmp_path / "journal")}
        servers.append(subprocess.Popen([sys.executable, STAND_IN, "x", *words], env=environment))
        addresses.append(f"127.0.0.1:{port}")
    try:
        while not all(answers(f"http://{address}") for address in addresses):
            time.sleep(0.1)
        texts = ["a mug", "poison", "a cup", "it will hang", "a pot"]
        write_rows(tmp_path, *({"LucidPrompt.text": text, "LucidDream.steps": 5} for text in texts))
        code, text = run(tmp_path, "--servers", ",".join(addresses), "--hang-minutes", "0.1", "--tries", "1")
    finally:
        for server in servers:
            server.kill()
            server.wait()
    assert code == 1 and "1 waiting, 0 running, 2 done, 2 failed" in text, text
    assert set(reports(tmp_path)) == {"a mug", "a cup"}
    missing = "the model file lucid_demo_prior.safetensors is missing (CheckpointLoaderSimple.ckpt_name)"
    assert f"{missing} on {addresses[1]}" in text
    assert f"the ComfyUI at {addresses[0]} hangs; restart it" in text and "To go on: " in text
    page = (tmp_path / "out" / "index.html").read_text()
    assert "this prompt always fails" in page and "has died or does not answer" in page


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_in_order_and_two_drivers_go_on_together(tmp_path):
    batch = with_stand_in(tmp_path, jobs=6, steps=60, step_s=0.05)
    batch.prepare()
    driver = batch.start()
    journal = tmp_path / "journal"
    while not batch.results():
        assert driver.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    time.sleep(1.5)  # the next jobs run
    driver.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    assert "To go on: python -m lucid_batch" in (tmp_path / "log").read_text()
    left = len(batch.results())
    assert 0 < left < 6 and any((tmp_path / "out" / "checkpoints").iterdir())
    drivers = [batch.start(), batch.start()]
    assert [driver.wait() for driver in drivers] == [0, 0], (tmp_path / "log").read_text()
    ran = Counter(json.loads(line)["text"] for line in journal.read_text().splitlines())
    assert len(ran) == 6 and set(ran.values()) == {1}
    made = reports(tmp_path)
    assert len(made) == 6 and any(report["resumed"] for report in made.values())
    assert not any((tmp_path / "out" / "servers").iterdir())
    code, text = run(tmp_path, *batch.words)
    assert code == 0 and "all 6 jobs are done" in text
