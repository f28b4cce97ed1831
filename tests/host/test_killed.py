"""kill -9 on the real host in the middle of a run, at random moments: the run goes on from its last
checkpoint.
"""

import itertools
import random
import signal
import threading
import time

import pytest
import torch

from devtools.host import Server
from lucid_core.optimize import checkpoint
from workflows.api.client import Client

from .graphs import ply_of, workflow

INTERVAL_S = 0.5
RUN = {"steps": 20, "views": 1, "seed": 171, "checkpoint_minutes": INTERVAL_S / 60}
STEPS = [
    random.Random(seed).uniform(1, 12) for seed in range(3)
]  # after which, and how far into the next, it is killed


def run(client, reached, **settings):
    """`reached` gets (when, step)."""
    return client.run(
        workflow(LucidDream={**RUN, **settings}), lambda now: reached.append((time.time(), now.step or 0))
    )


def killed(host_path, base, log, moment):
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
        new, far = set(), False
        while thread.is_alive() and not (new and far):
            time.sleep(0.01)
            found = set(folder.glob("run_*.safetensors")) - before
            new = {file for file in found if not file.stem.endswith(".part")}  # half written
            far = len(reached) > 1 and reached[-1][1] >= int(moment)
        time.sleep(moment % 1 * (reached[-1][0] - reached[-2][0]))
        when = time.time()
        server._signal(signal.SIGKILL)
        thread.join()
    (file,) = new
    return file, when, reached


@pytest.fixture(scope="module")
def whole(client):
    return ply_of(client, run(client, []))


@pytest.mark.parametrize("moment", STEPS, ids=lambda moment: f"step {moment:.1f}")
def test_a_killed_run_loses_one_interval_and_is_resumed_to_the_same_splat(
    client, whole, host_path, base, tmp_path, moment
):
    file, when, reached = killed(host_path, base, tmp_path / "server.log", moment)
    kept, _ = checkpoint.read(file)
    pauses = [b - a for (a, _), (b, _) in itertools.pairwise(reached)]
    safe = [
        step for at, step in reached if at < when - INTERVAL_S - 2 * max(pauses)
    ]  # one to finish, one to be saved after
    assert kept.step >= max(safe, default=0)
    assert kept.step < RUN["steps"]
    resumed = ply_of(client, run(client, [], resume=f"lucid/{file.name}"))
    assert all(torch.equal(a, b) for a, b in zip(vars(whole).values(), vars(resumed).values()))
