"""Paths used by dev.py, and functions that run its set-up steps.

Standard library only, like fetch.py, venv.py, base.py and chromium.py: these run before .venv exists.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """Paths in the checkout at `root`."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """Holds the digest of the requirements of .venv (see venv.digest_of). Written when it is complete."""
        return self.venv / "lucid-complete"

    @property
    def unit_stamp(self) -> Path:
        """As `stamp`, for a .venv without ComfyUI's requirements, which is enough for the unit tests."""
        return self.venv / "lucid-unit-complete"

    @property
    def unfinished(self) -> Path:
        """Exists while .venv is being changed. If it exists at the start of a run, the last was
        interrupted.
        """
        return self.venv / "lucid-unfinished"

    @property
    def cache(self) -> Path:
        return self.root / ".host"

    @property
    def comfyui(self) -> Path:
        return self.cache / "ComfyUI"

    @property
    def base(self) -> Path:
        """The host's base directory: models, custom_nodes, input, output."""
        return self.cache / "base"

    @property
    def checkpoints(self) -> Path:
        return self.base / "models" / "checkpoints"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: list, cwd: Path | None = None) -> None:
    """Run a set-up step. Its output goes to stderr, because stdout is for the demo's report.

    Raises RuntimeError if it fails.
    """
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, stdout=sys.stderr, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        raise RuntimeError(f"set-up step failed with code {result.returncode}: {' '.join(map(str, command))}")


def succeeds(command: list, timeout_s: float | None = None) -> bool:
    """Whether `command` exits with 0 within `timeout_s` seconds; its output is discarded."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.run([str(part) for part in command], timeout=timeout_s, **quiet).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
