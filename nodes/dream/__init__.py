"""The Lucid Dream node, with its progress reports, previews and checkpoint files."""

from .node import LucidDream

__all__ = ["LucidDream"]
