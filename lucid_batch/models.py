"""Hashes of model files, kept by path, size and time of change in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from .store import write_whole

CHUNK = 1 << 22


def cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lucid_batch" / "hashes.json"


def files_of(name: str, folders: Iterable[Path]) -> list[Path]:
    """The files that ComfyUI may mean by `name`: `<folder>/<kind of model>/<name>`."""
    kinds = (kind for folder in folders if folder.is_dir() for kind in sorted(folder.iterdir()))
    return [kind / name for kind in kinds if (kind / name).is_file()]


def hashes(names: Iterable[str], folders: Iterable[Path], cache: Path | None = None) -> dict[str, str]:
    """Name of a model -> SHA-256 of its file, "" = not found. `folders` are like ComfyUI's folder models."""
    cache, folders = cache or cache_file(), list(folders)
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    before, found = dict(known), {}
    for name in names:
        digests = sorted({hash_of(path.resolve(), known) for path in files_of(name, folders)})
        found[name] = digests[0] if len(digests) == 1 else ",".join(digests)
    if known != before:
        keep(cache, known)
    return found


def hash_of(path: Path, known: dict[str, str]) -> str:
    stat = path.stat()
    stamp = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    if stamp not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        known[stamp] = digest.hexdigest()
    return known[stamp]


def keep(cache: Path, known: dict[str, str]) -> None:
    """Write the cache; a cache that cannot be written costs time alone."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, json.dumps(known))
