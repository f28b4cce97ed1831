"""The baselines of ISM by name."""

from __future__ import annotations

from .csd import CSD
from .isd import ISD
from .sctd import SCTD
from .sdi import SDI
from .sds import SDS
from .tsm import TSM

METHODS = {"SDS": SDS, "CSD": CSD, "SDI": SDI, "ISD": ISD, "SCTD": SCTD, "TSM": TSM}
