"""The checkpoints of a job whose worker or machine died, in a folder that the workers share.

    servers/DRIVER/WORKER/           the output folder of a worker's ComfyUI
    servers/DRIVER/WORKER/trail.json which job it has, and which files were there as each node began
    checkpoints/KEY/NODE.safetensors what is left of a job's earlier attempts

A node with an input `resume` writes lucid/run_NNNNN_.safetensors. The files that came after a node began and
before the next one did are its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from .api.client import Graph
from .store import Store, read_json, whole, write_whole

TRAIL = "trail.json"
OWN = re.compile(r"run_\d+_\.safetensors")
LEFT = re.compile(r"(run|unfinished|resume)_.*")
FOLDER = "lucid"  # under the output folder


def list_folder(folder: Path) -> list[str]:
    """The names in a folder; none if it is not there, as after another driver removed it."""
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []


def list_checkpoints(output: Path) -> list[str]:
    """The checkpoints in an output folder, the newest last."""
    return [name for name in list_folder(output / FOLDER) if OWN.fullmatch(name)]


def list_trails(folder: Path) -> list[Path]:
    """The trails in a driver's folder; some of the files may be missing."""
    return [folder / worker / TRAIL for worker in list_folder(folder)]


class Trail:
    """Notes which checkpoint belongs to which node of a job, for a worker that takes over."""

    def __init__(self, output: Path, key: str, nodes: list[str]) -> None:
        self.output, self.key, self.nodes = output, key, nodes
        self.begun: list[tuple[str, list[str]]] = []
        self._write()

    def node_begins(self, node: str) -> None:
        if node in self.nodes and (not self.begun or self.begun[-1][0] != node):
            self.begun.append((node, list_checkpoints(self.output)))
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # then there is nothing to go on from
            write_whole(self.output / TRAIL, json.dumps({"key": self.key, "begun": self.begun}))


def rescue(root: Path, key: str) -> None:
    """Collect the checkpoints of a job from the output folders of all servers, also of dead ones."""
    servers = root / "servers"
    for trail in [trail for driver in list_folder(servers) for trail in list_trails(servers / driver)]:
        found = read_json(trail)
        if found and found["key"] == key:
            with contextlib.suppress(OSError):  # a folder that its driver removes now
                for node, name in checkpoints_of(found, list_checkpoints(trail.parent)).items():
                    take(trail.parent / FOLDER / name, root / "checkpoints" / key / f"{node}.safetensors")


def rescue_all(store: Store) -> None:
    """Collect the checkpoints of all drivers that are dead, and delete their folders."""
    for driver in list_folder(store.root / "servers"):
        if not store.is_alive(driver):
            folder = store.root / "servers" / driver
            for trail in list_trails(folder):
                if (found := read_json(trail)) and not store.is_done(found["key"]):
                    rescue(store.root, found["key"])
            shutil.rmtree(folder, ignore_errors=True)


def checkpoints_of(trail: dict[str, Any], now: list[str]) -> dict[str, str]:
    """Node -> its newest checkpoint."""
    begun = [(node, set(names)) for node, names in trail["begun"]]
    ends = [names for _, names in begun[1:]] + [set(now)]
    found = {}
    for (node, before), after in zip(begun, ends):
        own = sorted((after - before) & set(now))
        if own:
            found[node] = own[-1]
    return found


def take(file: Path, target: Path) -> None:
    """Copy `file` to `target`, unless an older attempt's is newer. Whole or not at all."""
    if target.exists() and target.stat().st_mtime >= file.stat().st_mtime:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as part:
        shutil.copy2(file, part)


def resume(root: Path, key: str, graph: Graph, nodes: list[str], output: Path) -> list[str]:
    """Put what is left of a job into an output folder and into the graph; the nodes that go on from it."""
    found = []
    for node in nodes:
        file = root / "checkpoints" / key / f"{node}.safetensors"
        if file.exists() and not graph[node]["inputs"].get("resume"):
            (output / FOLDER).mkdir(parents=True, exist_ok=True)
            name = f"resume_{key}_{node.replace(':', '_')}.safetensors"
            shutil.copy2(file, output / FOLDER / name)
            graph[node]["inputs"]["resume"] = f"{FOLDER}/{name}"
            found.append(node)
    return found


def clear(output: Path) -> None:
    """Delete the checkpoints of an output folder."""
    folder = output / FOLDER
    for name in list_folder(folder):
        if LEFT.fullmatch(name):
            (folder / name).unlink(missing_ok=True)
