"""The output folder: one driver has a job, a result is there whole or not at all."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from lucid_batch import Mistake, checkpoints, models
from lucid_batch import store as stores
from lucid_batch.store import Store

REPORT = {"label": "a mug"}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "out")
    made.open(beat=False)
    return made


def another(store, **options):
    made = Store(store.root, **options)
    made.open(beat=False)
    return made


def away(store, driver, pid=1):
    """Let a driver be one of another machine."""
    (store.root / "drivers" / f"{driver}.json").write_text(json.dumps({"machine": "moon", "pid": pid}))


def test_one_of_two_drivers_has_a_job(store):
    other = another(store)
    assert store.claim("k") and store.claim("k") and not other.claim("k")
    store.close()
    assert other.claim("k") and not store.claim("k")


def test_of_many_at_once_one_has_it(store):
    drivers = [another(store) for _ in range(8)]
    won = []
    threads = [threading.Thread(target=lambda one=one: won.extend([one] * one.claim("k"))) for one in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_driver_that_was_killed_here_is_known_to_be_dead_at_once(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    other = another(store)
    assert other.claim("k")
    path = store.root / "drivers" / f"{other.driver}.json"
    path.write_text(json.dumps({"machine": stores.machine(), "pid": dead.pid}))
    assert store.claim("k")


def test_a_driver_elsewhere_is_dead_after_its_lease(store):
    now = [0.0]
    store.clock = lambda: now[0]
    other = another(store)
    away(store, other.driver)
    assert other.claim("k") and not store.claim("k")
    now[0] = stores.LEASE_S - 1
    assert not store.claim("k")
    path = store.root / "drivers" / f"{other.driver}.json"
    os.utime(path, ns=(1, 1))  # a sign of life, by any clock
    now[0] = stores.LEASE_S + 1
    assert not store.claim("k")
    now[0] = 2 * stores.LEASE_S + 2
    assert store.claim("k") and not other.claim("k")


def test_a_claim_that_is_not_whole_counts_as_new(store):
    now = [0.0]
    store.clock = lambda: now[0]
    (store.root / "claims" / "k.0").touch()
    assert not store.claim("k")
    now[0] = stores.LEASE_S + 1
    assert store.claim("k")


def test_a_result_is_published_once(store):
    other = another(store)
    assert store.publish("k", {"splat.ply": b"first"}, REPORT)
    assert not other.publish("k", {"splat.ply": b"second"}, REPORT)
    assert (store.root / "jobs" / "k" / "splat.ply").read_bytes() == b"first"
    assert not any((store.root / "partial").iterdir())
    other.close()
    store.close()
    assert not another(store).claim("k")


def test_a_full_disk_leaves_nothing_behind(store, monkeypatch):
    real = os.fsync

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.publish("k", {"splat.ply": b"x"}, REPORT)
    monkeypatch.setattr(os, "fsync", real)
    assert not store.is_done("k") and not any((store.root / "partial").iterdir())
    assert store.publish("k", {"splat.ply": b"x"}, REPORT)


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Mistake, match=r"the output folder .*file/out cannot be written: Not a directory"):
        Store(tmp_path / "file" / "out").open(beat=False)


def test_a_failure_is_kept_and_tried_again_by_the_next_run(store):
    other = another(store)
    store.give_up("k", {"line": 2, "label": "x", "reason": "bad"})
    assert store.why_given_up("k") == other.why_given_up("k") == "bad"  # both began before it
    store.close()
    later = another(store)
    assert not later.why_given_up("k") and later.failures()["k"]["reason"] == "bad"
    assert later.claim("k") and later.publish("k", {}, REPORT)
    assert not later.failures()


def test_half_written_results_of_the_dead_are_cleared(store):
    (store.root / "partial" / "dead-k").mkdir()
    (store.root / "partial" / f"{store.driver}-k").mkdir()
    another(store)
    assert [path.name for path in (store.root / "partial").iterdir()] == [f"{store.driver}-k"]


def checkpoint(output, number, text):
    (output / "lucid").mkdir(parents=True, exist_ok=True)
    (output / "lucid" / f"run_{number:05}_.safetensors").write_text(text)


def test_checkpoints_of_a_dead_worker_are_found_by_node(store, tmp_path):
    output = store.root / "servers" / "dead" / "worker-1"
    output.mkdir(parents=True)
    trail = checkpoints.Trail(output, "k", ["6", "9"])
    trail.node_begins("6")
    checkpoint(output, 1, "of 6")
    trail.node_begins("7")  # no node with checkpoints
    trail.node_begins("9")
    checkpoint(output, 2, "of 9")
    checkpoint(output, 3, "of 9, later")
    (output / "lucid" / "run_00004_.part.safetensors").touch()
    checkpoints.rescue_all(store)
    assert not output.exists()
    graph = {name: {"class_type": "LucidDream", "inputs": {"resume": ""}} for name in ("6", "9")}
    mine = tmp_path / "mine"
    assert checkpoints.resume(store.root, "k", graph, ["6", "9"], mine) == ["6", "9"]
    held = {name: (mine / node["inputs"]["resume"]).read_text() for name, node in graph.items()}
    assert held == {"6": "of 6", "9": "of 9, later"}
    checkpoints.clear(mine)
    assert not any((mine / "lucid").iterdir())


def test_checkpoints_of_a_living_driver_stay(store):
    output = store.root / "servers" / store.driver / "worker-1"
    output.mkdir(parents=True)
    trail = checkpoints.Trail(output, "k", ["6"])
    checkpoint(output, 1, "of the job before")
    trail.node_begins("6")
    checkpoints.rescue_all(store)
    assert output.exists() and checkpoints.resume(store.root, "k", {}, ["6"], output) == []


def test_a_model_is_hashed_once_and_anew_when_it_changes(tmp_path):
    file, cache = tmp_path / "models" / "loras" / "a.safetensors", tmp_path / "cache.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    find = lambda: models.hashes(["a.safetensors", "none.ckpt"], [tmp_path / "models"], cache)
    first = find()
    assert len(first["a.safetensors"]) == 64 and first["none.ckpt"] == ""
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(known, "kept")))
    assert find()["a.safetensors"] == "kept"
    file.write_bytes(b"other")
    assert find()["a.safetensors"] not in ("kept", first["a.safetensors"])
