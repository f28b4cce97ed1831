"""A test of an error's class and fields, not of its message."""

from contextlib import AbstractContextManager
from typing import Any

import pytest


def raises(kind: type[Exception], **fields: Any) -> AbstractContextManager:
    """`pytest.raises` for an error of the class `kind` itself with the given values of its fields."""

    def is_expected(error: Exception) -> bool:
        return type(error) is kind and {name: getattr(error, name) for name in fields} == fields

    return pytest.raises(kind, check=is_expected)
