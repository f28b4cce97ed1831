"""Makes demo, lucid_core, benchmarks, workflows and what is in support/ importable, and runs a ComfyUI, one
for all tests of a process.

Run by `python dev.py test`, which sets it up.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

# At the end: ahead of the host, our nodes/ would hide its nodes.py.
sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent / "support")]
pytest.register_assert_rewrite("raising", "tests.host.failing")
signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stopped run stops its servers too

from demo import loras  # noqa: E402
from devtools.base import PACK, PICTURE, link_folder, prepare_base  # noqa: E402
from devtools.fetch import find_host  # noqa: E402
from devtools.host import Server  # noqa: E402
from devtools.launch import needs_repair, repair_cpu_torch  # noqa: E402
from devtools.tree import Tree  # noqa: E402
from workflows.api.client import Client  # noqa: E402

if needs_repair():  # a CPU torch beside a torchvision for CUDA, which diffusers imports
    repair_cpu_torch()

TREE = Tree(Path(__file__).resolve().parents[1])
FAMILIES = TREE.cache / "families"  # what host/families.py writes, kept from one session to the next
SHARED = FileLock(TREE.cache / "tests.lock")  # while a process writes what all test processes read


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
    """A base directory with this pack, the tests' own nodes and the demo's checkpoint; its input and output
    are empty.
    """
    with SHARED:
        prepare_base(TREE, sys.executable)
    base = tmp_path_factory.mktemp("base")
    for folder in ("custom_nodes", "input", "output", "models", "models/controlnet"):
        (base / folder).mkdir()
    link_folder(base / "models" / "checkpoints", TREE.checkpoints)
    for folder in ("diffusion_models", "vae", "vae_approx", "loras", "embeddings"):
        (FAMILIES / folder).mkdir(parents=True, exist_ok=True)
        link_folder(base / "models" / folder, FAMILIES / folder)
    loras.write(base / "models" / "loras")
    shutil.copy(TREE.base / "input" / PICTURE, base / "input")
    link_folder(base / "custom_nodes" / PACK, TREE.root)
    link_folder(base / "custom_nodes" / "lucid_test", TREE.root / "tests" / "host" / "pack")
    return base


@pytest.fixture(scope="module")
def one_thread():
    """For small tensors: on a busy machine torch's threads wait for each other longer than they work (8 s or
    300 s).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def set_threads():
    """torch.set_num_threads, which is undone at the end of the test; `dev.py test` gives each process one."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


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
    builder = Path(__file__).parent / "host" / "families.py"
    with SHARED:
        subprocess.run([sys.executable, builder, host_path, FAMILIES], check=True)
    return FAMILIES
