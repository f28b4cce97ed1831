"""A test of which node fails, by which kind of error, because of which input."""

from contextlib import AbstractContextManager

import pytest

from workflows.api.client import ComfyError


def fails(node: str, kind: str, name: str = "", *words: str) -> AbstractContextManager:
    """`pytest.raises` for a graph that the server rejects, or whose node fails.

    node: class of the node. kind: class of its exception, or type of the rejection. name: the input or field,
    which a rejection carries, and with which the message of a node begins. words: other parts of the message.
    """

    def is_expected(error: ComfyError) -> bool:
        named = error.input == name if error.input else error.message.partition(": ")[2].startswith(name)
        return (error.node, error.kind, named) == (node, kind, True) and all(
            w in error.message for w in words
        )

    return pytest.raises(ComfyError, check=is_expected)
