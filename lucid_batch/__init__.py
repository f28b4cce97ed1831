"""Many jobs of one workflow on many ComfyUI servers: `python -m lucid_batch WORKFLOW JOBS --out DIR`.

It runs beside the pack: ComfyUI never imports it. docs/many-machines.md explains it.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

PACK = "lucid-ism"
ROOT = Path(__file__).resolve().parents[1]

# `lucid_batch.api` is workflows/api: an installed package has a copy of it, a checkout the folder itself.
if not (Path(__file__).parent / "api").exists():
    __path__.append(str(ROOT / "workflows"))


class Mistake(ValueError):
    """A mistake of the user; its text is one clear message. The command ends with code 2."""


def version_in(project: Path) -> str | None:
    """The pack's version in a pyproject.toml; None if it is another project's, or is not there."""
    if not project.is_file():
        return None
    text = project.read_text(encoding="utf-8", errors="replace")
    name, version = (re.search(rf'^{key} = "([^"]+)"', text, re.M) for key in ("name", "version"))
    return version[1] if name and version and name[1] == PACK else None


def version() -> str:
    """The pack's version, of the checkout or of the installed package."""
    return version_in(ROOT / "pyproject.toml") or metadata.version(PACK)
