"""The copy of the VAE after the host has moved its weights, as it does on a GPU with little memory."""

import json
import subprocess
import sys
from pathlib import Path

from demo.base import PRIOR


def test_gradients_pass_the_vae_wherever_its_weights_have_been(host_path, base):
    script = Path(__file__).with_name("moved_vae.py")
    command = [sys.executable, script, host_path, base / "models" / "checkpoints" / PRIOR]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["moved"] < 1e-5 and found["low"] < 1e-5
    assert found["loaded again"]
