"""Dynamic VRAM, the host's default on NVIDIA, as far as a CPU can show it: how its loaders hold the weights
of a VAE.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.base import PRIOR

from .families import file_of

OF_FAMILIES = ("taesd_16_channels", "wan_vae", "taew")


@pytest.fixture(scope="module")
def rows(host_path, base, families, tmp_path_factory):
    script, checkpoint = Path(__file__).with_name("dynamic_vae.py"), base / "models" / "checkpoints" / PRIOR
    files = [families / "vae" / file_of(name) for name in OF_FAMILIES]
    command = [sys.executable, script, host_path, checkpoint, tmp_path_factory.mktemp("vaes"), *files]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def test_the_copy_of_the_vae_has_the_dtype_of_the_vae_whatever_the_file_holds(rows):
    assert {row["file"] for row in rows} >= {"float32", "bfloat16", "float16", "float8_e4m3fn"}
    for row in rows:
        assert row.get("weights") == [row["vae"]], row


def test_its_gradient_is_that_of_a_host_without_dynamic_vram(rows):
    precision = {
        "float32": 1e-5,
        "float16": 0.1,
        "bfloat16": 0.3,
    }  # of the pixels, each of which rounding may flip
    for row in rows:
        assert row["from plain"] < 1e-5 and row["from float32"] < precision[row["vae"]], row
