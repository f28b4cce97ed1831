"""Files in the host's input and output folders, and models in diffusers format."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import folder_paths

from ...lucid_core.errors import BadInput
from ...lucid_core.io import captures
from ...lucid_core.io.point_files import SUFFIXES
from ...lucid_core.settings import require
from ...lucid_core.starts import shap_e

log = logging.getLogger(__name__)
VIEW_DEPTH = 2  # levels of folders that are searched for views
NAMELESS = "splat"  # the file name if the user gives only a folder


def output_path(prefix: str, extension: str, *others: str) -> tuple[str, dict]:
    """The next free path for `prefix` under the output folder, named by the host's rules, and its entry
    {"filename", "subfolder", "type"} for the web page. Its number is free with the extensions `others` too.
    """
    if not os.path.basename(prefix.strip()):  # "" or "folder/": the host would restart at number 1 each time
        prefix = prefix.strip() + NAMELESS
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    taken = lambda end: os.path.exists(os.path.join(folder, f"{name}_{counter:05}_.{end}"))
    while any(map(taken, (extension, *others))):
        counter += 1
    file = f"{name}_{counter:05}_.{extension}"
    return os.path.join(folder, file), {"filename": file, "subfolder": subfolder, "type": "output"}


def delete_old(prefix: str, extension: str, kept: int, spared: str = "") -> None:
    """Delete the files that `output_path` named for `prefix`, except the `kept` newest and the file `spared`.

    Logs a warning for a file that cannot be deleted.
    """
    folder, name, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    own = re.compile(rf"{re.escape(name)}_(\d+)_\.{re.escape(extension)}")
    numbered = sorted((int(found[1]), file) for file in os.listdir(folder) if (found := own.fullmatch(file)))
    spared = os.path.abspath(os.path.join(folder_paths.get_output_directory(), spared.strip()))
    for _, file in numbered[:-kept]:
        path = os.path.abspath(os.path.join(folder, file))
        try:
            if path != spared:
                os.remove(path)
        except OSError as error:
            log.warning("%s could not be deleted: %s", path, error)


def name_of(entry: dict) -> str:
    """The name of a file under the output folder, as `output_file` takes it; `entry` as in `output_path`."""
    return "/".join(filter(None, (entry["subfolder"].replace(os.sep, "/"), entry["filename"])))


def output_file(field: str, name: str) -> str:
    """Path of an existing file under the output folder. Raises BadSetting, naming the input `field`."""
    folder = os.path.abspath(folder_paths.get_output_directory())
    path = os.path.abspath(os.path.join(folder, name.strip()))
    inside = folder_paths.is_within_directory(folder, path)
    require(inside and os.path.isfile(path), field, repr(name), f"the name of a file under {folder}")
    return path


def output_stamp(name: str) -> str:
    """Modification time and size of a file under the output folder: a value that changes with the file."""
    stat = os.stat(output_file("resume", name))
    return f"{stat.st_mtime_ns} {stat.st_size}"


def point_files() -> list[str]:
    """Point cloud files in the input folder and in its subfolder 3d, where Load 3D puts uploads."""
    folder = folder_paths.get_input_directory()
    below, _ = folder_paths.recursive_search(os.path.join(folder, "3d"))
    names = [*os.listdir(folder), *("3d/" + name.replace(os.sep, "/") for name in below)]
    return folder_paths.filter_files_extensions(names, SUFFIXES)


def input_exists(name: str) -> bool:
    return folder_paths.exists_annotated_filepath(name)


def input_file(name: str) -> str:
    return folder_paths.get_annotated_filepath(name)


def input_stamp(name: str) -> str:
    """As `output_stamp`, for a file in the input folder; empty if it does not exist."""
    if not input_exists(name):
        return ""
    stat = os.stat(input_file(name))
    return f"{stat.st_mtime_ns} {stat.st_size}"


def view_folders() -> list[str]:
    """Folders of pictures with cameras under the input folder, at most `VIEW_DEPTH` levels down."""
    root = Path(folder_paths.get_input_directory())
    levels = ["*/" * depth for depth in range(1, VIEW_DEPTH + 1)]
    folders = sorted(folder for level in levels for folder in root.glob(level) if folder.is_dir())
    return [folder.relative_to(root).as_posix() for folder in folders if captures.is_capture(folder)]


def view_folder(name: str) -> str:
    """Path of a folder under the input folder. Raises BadSetting if it is not there."""
    root = os.path.abspath(folder_paths.get_input_directory())
    path = os.path.abspath(os.path.join(root, name.strip()))
    inside = folder_paths.is_within_directory(root, path) and path != root
    require(inside and os.path.isdir(path), "folder", repr(name), f"the name of a folder under {root}")
    return path


def view_stamp(name: str) -> str:
    """Modification times and sizes of the files of a folder of views; changes with them."""
    stats = [(path, path.stat()) for path in sorted(Path(view_folder(name)).rglob("*")) if path.is_file()]
    return " ".join(f"{path.name} {stat.st_mtime_ns} {stat.st_size}" for path, stat in stats)


def shap_e_models() -> list[str]:
    """Names of Shap-E models in the host's diffusers folders, then that of the Hugging Face repository."""
    found = [
        Path(where).relative_to(root).as_posix()
        for root in folder_paths.get_folder_paths("diffusers")
        for where, _, files in os.walk(root, followlinks=True)
        if "model_index.json" in files and shap_e.is_pipeline(Path(where))
    ]
    return [*sorted(found), shap_e.REPOSITORY]


def shap_e_folder(name: str) -> Path:
    """The folder of the model `name`. Raises BadInput with download instructions if it is not there."""
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    if name == shap_e.REPOSITORY:
        folder = shap_e.in_hub_cache()
        if folder is None:
            place = roots[0] / "shap-e"
            raise BadInput(
                "model",
                f"{name} is not on this machine, and this node downloads nothing by itself. To get it into "
                f"the cache of the Hugging Face hub run: hf download {name}  Or put its files into {place}: "
                f'hf download {name} --local-dir "{place}"  and choose shap-e as model',
            )
        return folder
    folder = next((root / name for root in roots if shap_e.is_pipeline(root / name)), None)
    require(folder is not None, "model", repr(name), f"a Shap-E folder under {roots[0]}")
    return folder
