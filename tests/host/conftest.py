"""A running ComfyUI with this pack, one for all tests. `python dev.py test` sets it up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo import loras
from demo.base import PACK, link_folder, prepare_base
from demo.client import Client
from demo.fetch import find_host
from demo.host import Server
from demo.tree import Tree

TREE = Tree(Path(__file__).resolve().parents[2])
FAMILIES = TREE.cache / "families"  # what families.py writes, kept from one session to the next


@pytest.fixture(scope="session")
def host_path() -> Path:
    """The folder of ComfyUI."""
    path = find_host(TREE, os.environ.get("COMFYUI_PATH"))
    if path is None:
        reason = "no ComfyUI is set up; run `python dev.py test`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def base(host_path, tmp_path_factory) -> Path:
    """A base directory with this pack, the tests' own nodes and the demo's checkpoint; its input and output are empty."""
    prepare_base(TREE, sys.executable)
    base = tmp_path_factory.mktemp("base")
    for folder in ("custom_nodes", "input", "output", "models"):
        (base / folder).mkdir()
    link_folder(base / "models" / "checkpoints", TREE.checkpoints)
    for folder in ("diffusion_models", "vae", "loras", "embeddings", "controlnet"):
        (FAMILIES / folder).mkdir(parents=True, exist_ok=True)
        link_folder(base / "models" / folder, FAMILIES / folder)
    loras.write(base / "models" / "loras")
    link_folder(base / "custom_nodes" / PACK, TREE.root)
    link_folder(base / "custom_nodes" / "lucid_test", Path(__file__).parent / "pack")
    return base


@pytest.fixture(scope="session")
def server(host_path, base, tmp_path_factory):
    with Server(host_path, base, tmp_path_factory.mktemp("host") / "server.log") as running:
        yield running


@pytest.fixture(scope="session")
def client(server) -> Client:
    return Client(server.address, server.log_tail)


@pytest.fixture(scope="session")
def families(host_path, base) -> Path:
    """The folder with a small model of every family; the host lists them by `families.file_of`."""
    builder = Path(__file__).with_name("families.py")
    subprocess.run([sys.executable, builder, host_path, FAMILIES], check=True)
    return FAMILIES
