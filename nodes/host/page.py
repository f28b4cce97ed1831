"""What the user sees and keeps: progress, texts and pictures on the node, cancel, files."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from PIL import Image
from torch import Tensor

from ...lucid_core.checks import require
from ...lucid_core.video import to_uint8

log = logging.getLogger(__name__)
PREVIEW_SIZE = 512
NAMELESS = "splat"  # the name of files for which the user gives a folder alone


def check_interrupt() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def node_of_page(hidden: Any) -> str | None:
    """The id of the running node in the web page: of a loop's iterations, that of the node they were made of."""
    return hidden.dynprompt.get_display_node_id(hidden.unique_id) if hidden.dynprompt else hidden.unique_id


def show_text(node_id: str | None, text: str) -> None:
    """Write on the node in the web page; it stays there, also when the node is stopped."""
    if node_id:
        from server import PromptServer  # heavy, but there when a node runs

        PromptServer.instance.send_progress_text(text, node_id)


class Progress:
    """The node's progress bar; `image` (H, W, 3) is shown on the node."""

    def __init__(self, total: int) -> None:
        self.bar, self.total = comfy.utils.ProgressBar(total), total

    def update(self, done: int, image: Tensor | None = None) -> None:
        preview = ("JPEG", Image.fromarray(to_uint8(image)), PREVIEW_SIZE) if image is not None else None
        self.bar.update_absolute(done, self.total, preview)


def output_path(prefix: str, extension: str) -> tuple[str, dict]:
    """Next free path for `prefix` under the output folder by the host's rules, and its entry for the web page."""
    if not os.path.basename(prefix.strip()):  # "" or "folder/": the host would count from 1 each time
        prefix = prefix.strip() + NAMELESS
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    while os.path.exists(os.path.join(folder, file := f"{name}_{counter:05}_.{extension}")):
        counter += 1
    return os.path.join(folder, file), {"filename": file, "subfolder": subfolder, "type": "output"}


def delete_old(prefix: str, extension: str, kept: int, spared: str = "") -> None:
    """Of the files that `output_path` has named for `prefix`, keep the `kept` newest, and `spared`."""
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
    """A file's name under the output folder, as `output_file` takes it."""
    return "/".join(filter(None, (entry["subfolder"].replace(os.sep, "/"), entry["filename"])))


def output_file(field: str, name: str) -> str:
    """Path of an existing file under the output folder. Raises ValueError that names the input `field`."""
    folder = os.path.abspath(folder_paths.get_output_directory())
    path = os.path.abspath(os.path.join(folder, name.strip()))
    inside = folder_paths.is_within_directory(folder, path)
    require(inside and os.path.isfile(path), field, repr(name), f"the name of a file under {folder}")
    return path


def output_stamp(name: str) -> str:
    """Changes when a file under the output folder does."""
    stat = os.stat(output_file("file", name))
    return f"{stat.st_mtime_ns} {stat.st_size}"
