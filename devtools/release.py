"""Builds the registry's archive, checks it and loads it in a fresh ComfyUI: `python dev.py release`.

The archive holds the tracked files but those of .comfyignore, as `comfy node publish` packs them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .base import PACK
from .host import Server
from .tree import Tree, run, say

NEEDED = ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md")
LIMIT_MB = 10  # ours; a pack of code, pictures and workflows is far smaller
FORBIDDEN = re.compile(r"(?<![\w.])(?:eval|exec)\(|[\"']pip[\"']")  # docs.comfy.org/registry/standards


@dataclass(frozen=True)
class Archive:
    """A zip file, and what it should offer in ComfyUI: classes of nodes and names of templates."""

    path: Path
    nodes: frozenset[str]
    templates: frozenset[str]


def git(root: Path, *words: str) -> str:
    return subprocess.check_output(["git", *words], cwd=root, text=True)


def files_of(root: Path) -> list[str]:
    """The tracked files that .comfyignore does not match."""
    ignored = set(git(root, "ls-files", "-ci", "-X", ".comfyignore").splitlines())
    return [name for name in git(root, "ls-files").splitlines() if name not in ignored]


def build(root: Path, folder: Path) -> Archive:
    """Write NAME-VERSION.zip, of the pack's tracked files, to `folder`."""
    files = files_of(root)
    project = project_of(root)
    path = folder / f"{project['name']}-{project['version']}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            archive.write(root / name, name)
    stems = lambda pattern: frozenset(Path(name).stem for name in files if re.fullmatch(pattern, name))
    return Archive(path, stems(r"nodes/web/docs/\w+\.md"), stems(r"workflows/\w+\.json"))


def project_of(root: Path) -> dict:
    """[project] of pyproject.toml."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def problems(archive: Archive, root: Path) -> list[str]:
    """What the registry or a user would object to; empty if nothing."""
    changed = {line[3:] for line in git(root, "status", "--porcelain", "--no-renames").splitlines()}
    found = [f"{name} is not committed" for name in files_of(root) if name in changed]
    with zipfile.ZipFile(archive.path) as file:
        names = file.namelist()
        found += [f"{name} is missing in the archive" for name in NEEDED if name not in names]
        for name in names:
            if name.endswith(".py") and FORBIDDEN.search(file.read(name).decode()):
                found.append(f"{name} calls eval, exec or pip, which the registry forbids")
    size_mb = archive.path.stat().st_size / 1e6
    if size_mb > LIMIT_MB:
        found.append(f"the archive has {size_mb:.1f} MB, more than {LIMIT_MB}")
    project = project_of(root)
    if f"## {project['version']}" not in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        found.append(f"CHANGELOG.md has no heading for {project['version']}")
    if "Repository" not in project.get("urls", {}):
        found.append("pyproject.toml has no [project.urls] Repository, which the registry requires")
    return found


def load(archive: Archive, comfyui: Path) -> list[str]:
    """Load the archive in a ComfyUI with an empty base directory; returns what does not work there."""
    with tempfile.TemporaryDirectory(prefix="lucid-release-") as folder:
        base = Path(folder)
        with zipfile.ZipFile(archive.path) as file:
            file.extractall(base / "custom_nodes" / PACK)
        log = base / "comfyui.log"
        with Server(comfyui, base, log=log) as server:
            get = lambda path: json.load(urllib.request.urlopen(f"http://{server.address}{path}"))
            missing = archive.nodes - set(get("/object_info"))
            unseen = archive.templates - set(get("/workflow_templates").get(PACK, []))
        if missing or unseen:
            return [f"not in ComfyUI: {', '.join(sorted(missing | unseen))}\n{server.log_tail()}"]
    return []


def validate(tree: Tree) -> None:
    """Run the registry's own checks (`comfy node validate`), from an environment of their own."""
    environment = tree.cache / "comfy-cli"
    python = environment / tree.python.relative_to(tree.venv)
    if not (environment / "complete").exists():
        run([sys.executable, "-m", "venv", environment])
        run([python, "-m", "pip", "install", "--disable-pip-version-check", "comfy-cli"])
        (environment / "complete").touch()
    run([python, "-m", "comfy_cli", "--skip-prompt", "tracking", "disable"])
    run([python, "-m", "comfy_cli", "--skip-prompt", "node", "validate"], cwd=tree.root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devtools.release", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    comfyui = parser.parse_args().comfyui
    tree = Tree(Path(__file__).resolve().parents[1])
    folder = tree.root / "output" / "release"
    os.makedirs(folder, exist_ok=True)
    try:
        archive = build(tree.root, folder)
        validate(tree)
        found = problems(archive, tree.root) + load(archive, comfyui)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        found = [str(error)]
    for problem in found:
        say(f"error: {problem}")
    if not found:
        print(f"{archive.path}: {len(archive.nodes)} nodes and {len(archive.templates)} workflows load")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
