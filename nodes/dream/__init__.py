"""The nodes Lucid Dream and Lucid Dream Field, with their progress reports, previews and checkpoint files."""

from .field_node import LucidDreamField
from .node import LucidDream

__all__ = ["LucidDream", "LucidDreamField"]
