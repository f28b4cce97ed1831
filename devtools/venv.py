"""The virtual environment: created, completed, and recreated after an interruption. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .tree import Tree, run, say, succeeds

# The versions that the tests use: a CPU build if the registry offers one, else the platform's default build.
TORCH = ["torch==2.13.0"]
# They may be another build than torch (launch.py repairs that), so pip must not resolve their dependencies.
TORCH_COMPANIONS = ["torchvision==0.28.0", "torchaudio==2.11.0", "--no-deps"]
FROM_TORCH_STEPS = {"torch", "torchvision", "torchaudio"}

NEEDED_GB = 6  # .venv 3, pip's downloads 2, ComfyUI and the demo checkpoint 0.5, rounded up
READ_DEPENDENCIES = """
import json, sys
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print(json.dumps(project["dependencies"] + project["optional-dependencies"]["dev"]))
"""


def prepare_venv(tree: Tree) -> None:
    """Create .venv if it has no working python, or recreate it if its set-up was interrupted (pip keeps its
    downloads).
    """
    if tree.unfinished.exists() or not succeeds([tree.python, "-c", ""]):
        check_space(tree.root)
        say("Making .venv ...")
        shutil.rmtree(tree.venv, ignore_errors=True)
        tree.venv.mkdir()
        tree.unfinished.touch()
        run([sys.executable, "-m", "venv", tree.venv])


def check_space(folder: Path) -> None:
    """Raise RuntimeError if the disk of `folder` has less than NEEDED_GB free."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < NEEDED_GB:
        raise RuntimeError(
            f"the set-up needs about {NEEDED_GB} GB ({2 * NEEDED_GB} GB if torch is a CUDA build) and "
            f"{folder} has {free_gb:.1f} GB free; free some space or move the checkout to a larger disk"
        )


def install_packages(tree: Tree, comfyui: Path | None) -> None:
    """Install the requirements of the pack, and of ComfyUI if given, unless the stamp shows that they are
    installed.
    """
    digest = digest_of(tree, comfyui)
    stamp = tree.stamp if comfyui else tree.unit_stamp
    if (stamp.exists() and stamp.read_text() == digest) or (not comfyui and tree.stamp.exists()):
        return
    tree.unfinished.touch()
    for file in (tree.stamp, tree.unit_stamp):
        file.unlink(missing_ok=True)
    for requirements in pip_steps(tree, comfyui):
        say(f"Installing {' '.join(requirements)} ...")
        run([tree.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *requirements])
    part = stamp.with_suffix(".part")
    part.write_text(digest)
    os.replace(part, stamp)
    tree.unfinished.unlink()


def digest_of(tree: Tree, comfyui: Path | None) -> str:
    """A hash of everything that determines the contents of .venv."""
    files = [
        path.read_text()
        for path in (tree.root / "pyproject.toml", comfyui and comfyui / "requirements.txt")
        if path
    ]
    inputs = json.dumps([TORCH, TORCH_COMPANIONS, *files])
    return hashlib.sha256(inputs.encode()).hexdigest()


def pip_steps(tree: Tree, comfyui: Path | None) -> list[list[str]]:
    """The arguments of each `pip install`. A torch that is already in .venv is kept, whatever its build."""
    steps = []
    if not is_installed(tree, "torch"):
        steps.append(TORCH)
    if not is_installed(tree, "torchvision", "torchaudio"):
        steps.append(TORCH_COMPANIONS)
    return [*steps, (host_requirements(comfyui) if comfyui else []) + pack_requirements(tree)]


def is_installed(tree: Tree, *modules: str) -> bool:
    look = "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))"
    return succeeds([tree.python, "-c", look, *modules])


def host_requirements(comfyui: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (comfyui / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line and line not in FROM_TORCH_STEPS]


def pack_requirements(tree: Tree) -> list[str]:
    """The pack's dependencies and its group `dev`, read with the python of .venv, which always has a TOML
    parser.
    """
    command = [tree.python, "-c", READ_DEPENDENCIES, tree.root / "pyproject.toml"]
    return json.loads(subprocess.check_output([str(part) for part in command], text=True))
