"""Progress, texts and preview images on a running node, and cancellation."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

from ...lucid_core.io.video import to_uint8

PREVIEW_SIZE = 512  # pixels


def check_interrupt() -> None:
    """Raise the host's InterruptProcessingException if the user has cancelled the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def node_of_page(hidden: Any) -> str | None:
    """The id of the running node in the web page; for iterations of a loop, the id of the original node.

    `hidden` holds the host's hidden inputs of the node.
    """
    return hidden.dynprompt.get_display_node_id(hidden.unique_id) if hidden.dynprompt else hidden.unique_id


def show_text(node_id: str | None, text: str) -> None:
    """Show `text` on the node in the web page, where it stays after the node has ended or was stopped."""
    if node_id:
        from server import PromptServer  # heavy, but already loaded when a node runs

        PromptServer.instance.send_progress_text(text, node_id)


class Progress:
    """The node's progress bar of `total` steps; `image` (H, W, 3) in [0, 1] is shown on the node."""

    def __init__(self, total: int) -> None:
        self.bar, self.total = comfy.utils.ProgressBar(total), total

    def update(self, done: int, image: Tensor | None = None) -> None:
        preview = ("JPEG", Image.fromarray(to_uint8(image)), PREVIEW_SIZE) if image is not None else None
        self.bar.update_absolute(done, self.total, preview)
