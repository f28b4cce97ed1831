"""kill -9 on the real host in the middle of a run, at random moments: the run goes on from its last checkpoint."""

import itertools
import random
import signal
import threading
import time

import pytest
import torch

from demo.host import Server
from lucid_core import checkpoint
from workflows.api.client import Client

from .graphs import ply_of, workflow

INTERVAL_S = 1.2
RUN = {"steps": 40, "views": 1, "seed": 171, "checkpoint_minutes": INTERVAL_S / 60}
WAITS = [random.Random(seed).uniform(0.0, 5.0) for seed in range(3)]  # after the first checkpoint


def run(client, reached, **settings):
    """`reached` gets (when, step)."""
    return client.run(workflow(LucidDream={**RUN, **settings}), lambda now: reached.append((time.time(), now.step or 0)))


def killed(host_path, base, log, wait_s):
    """-> the name of the last checkpoint, when it was killed, and [(when, step)] until then."""
    folder = base / "output" / "lucid"
    before = set(folder.glob("run_*.safetensors"))
    reached = []
    with Server(host_path, base, log) as server:
        client = Client(server.address, server.log_tail)

        def until_killed():
            with pytest.raises(Exception):  # noqa: B017 - whatever a dead server looks like
                run(client, reached)

        thread = threading.Thread(target=until_killed)
        thread.start()
        while not (new := set(folder.glob("run_*.safetensors")) - before) and thread.is_alive():
            time.sleep(0.05)
        time.sleep(wait_s)
        when = time.time()
        server._signal(signal.SIGKILL)
        thread.join()
    (file,) = new
    return file, when, reached


@pytest.fixture(scope="module")
def whole(client):
    return ply_of(client, run(client, []))


@pytest.mark.parametrize("wait_s", WAITS, ids=lambda wait_s: f"{wait_s:.1f} s")
def test_a_killed_run_loses_one_interval_and_is_resumed_to_the_same_splat(client, whole, host_path, base, tmp_path, wait_s):
    file, when, reached = killed(host_path, base, tmp_path / "server.log", wait_s)
    kept, _ = checkpoint.read(file)
    pauses = [b - a for (a, _), (b, _) in itertools.pairwise(reached)]
    safe = [step for at, step in reached if at < when - INTERVAL_S - 2 * max(pauses)]  # one to finish, one to be saved after
    assert kept.step >= max(safe, default=0)
    assert kept.step < RUN["steps"]
    resumed = ply_of(client, run(client, [], resume=f"lucid/{file.name}"))
    assert all(torch.equal(a, b) for a, b in zip(vars(whole).values(), vars(resumed).values()))
