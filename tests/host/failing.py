"""A test of which node fails, by which kind of error, because of which input."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from workflows.api.client import ComfyError


@contextmanager
def fails(node: str, kind: str, name: str = "", *words: str) -> Iterator[None]:
    """`pytest.raises` for a graph that the server rejects, or whose node fails.

    node: class of the node. kind: class of its exception, or type of the rejection. name: the input of a
    rejection, or the beginning of a node's own message, after the node's name. words: other parts of the
    message.
    """
    with pytest.raises(ComfyError) as caught:
        yield
    error = caught.value
    assert (error.node, error.kind) == (node, kind), str(error)
    if error.input:
        assert error.input == name
    else:
        assert error.message.partition(": ")[2].startswith(name), str(error)
    assert [word for word in words if word not in error.message] == [], str(error)
