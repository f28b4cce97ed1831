"""The base directory of ComfyUI (the "host"), with links to this pack and the checkpoints. Standard library
only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .tree import Tree, run, say

PACK = "lucid_ism"
PRIOR = "lucid_demo_prior.safetensors"
CAMERA = "lucid_demo_camera.safetensors"  # a Stable Zero123
PICTURE = "lucid_demo_picture.png"
LORAS = tuple(f"lucid_demo_red_is_{color}.safetensors" for color in ("blue", "purple", "yellow"))


def prepare_base(tree: Tree, python: str | Path) -> None:
    """Make the host's base directory, with this pack and the demo's checkpoints, LoRAs and picture.

    `python` is the interpreter that writes them.
    """
    for folder in ("custom_nodes", "input", "output", "models/checkpoints", "models/loras"):
        (tree.base / folder).mkdir(parents=True, exist_ok=True)
    link_folder(tree.base / "custom_nodes" / PACK, tree.root)
    made_from = max(path.stat().st_mtime for path in (tree.root / "demo").glob("*.*"))
    loras, prior, camera = tree.base / "models" / "loras", tree.checkpoints / PRIOR, tree.checkpoints / CAMERA
    picture = tree.base / "input" / PICTURE
    made = [
        (["demo.checkpoint", prior], [prior]),
        (["demo.checkpoint", camera, "--prior", "demo/camera_prior.safetensors"], [camera]),
        (["demo.loras", loras], [loras / name for name in LORAS]),
        (["demo.picture", picture], [picture]),
    ]
    for words, files in made:
        if not all(file.exists() and file.stat().st_mtime >= made_from for file in files):
            say(f"Writing {', '.join(file.name for file in files)} ...")
            run([python, "-m", *words], cwd=tree.root)
            for file in files:
                os.utime(file)  # the command does not touch a file that is up to date


def link_folder(link: Path, target: Path) -> None:
    """Make `link` a link (on Windows a junction) to the folder `target`."""
    if link.exists() and link.samefile(target):
        return
    if os.path.lexists(link):  # the checkout was moved
        link.unlink()
    if os.name == "nt":  # a symlink would need administrator rights
        run(["cmd", "/c", "mklink", "/J", link, target])
    else:
        link.symlink_to(target, target_is_directory=True)


def find_checkpoint(given: str | None) -> Path | None:
    """The absolute path of the user's checkpoint, if one is `given`. Raises ValueError if it does not
    exist.
    """
    if given is None:
        return None
    file = Path(given).expanduser().resolve()
    if not file.is_file():
        raise ValueError(
            f"there is no checkpoint file {file}; --checkpoint takes the path of a .safetensors file"
        )
    return file


def link_checkpoint(tree: Tree, file: Path) -> str:
    """Link a user's checkpoint into the demo's folder, or copy it if links are not possible. Returns the
    host's name for it.

    Raises ValueError if the folder has another file of the same name.
    """
    target = tree.checkpoints / file.name
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        ours, theirs = target.stat(), file.stat()
        if (ours.st_size, ours.st_mtime_ns) != (theirs.st_size, theirs.st_mtime_ns):
            raise ValueError(f"{target} is another file of the same name; rename {file} or remove the other")
        return file.name
    for place in (os.symlink, os.link, shutil.copy2):
        try:
            place(file, target)
            break
        except OSError:
            if place is shutil.copy2:
                raise
    return file.name
