"""The copy of the VAE after the host has moved its weights, as it does on a GPU with little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rounding import ROUNDINGS

from devtools.base import PRIOR


@pytest.fixture(scope="module")
def found(host_path, base):
    script = Path(__file__).with_name("moved_vae.py")
    command = [sys.executable, script, host_path, base / "models" / "checkpoints" / PRIOR]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def test_gradients_pass_the_vae_wherever_its_weights_have_been(found):
    assert max(found["moved"], found["low"]) < ROUNDINGS * found["rounding"]
    assert found["loaded again"]


def test_a_call_that_ran_out_of_memory_leaves_nothing_open_in_the_host(found):
    assert found["after an error"] == 0


def test_an_allocation_graph_is_closed_before_anything_else_is_computed(found):
    assert found["without a graph"] == 1, "the queues are the host's while no graph is open"
    assert found["with a graph"] == 0
