"""Lets these tests use the scenes of tests/unit: that folder's parent joins sys.path, at the end, where it
hides nothing.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
