"""The rivals of ISM by name."""

from __future__ import annotations

from .sds import SDS

METHODS = {"SDS": SDS}
