"""A test of an error's class and fields, not of its message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def raises(kind: type[Exception], **fields: Any) -> Iterator[pytest.ExceptionInfo]:
    """`pytest.raises` for an error of the class `kind` itself with the given values of its fields."""
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in fields} == fields
