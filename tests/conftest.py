"""Makes demo, lucid_core, benchmarks and what is in support/ importable. Run by `python dev.py test`."""

import signal
import sys
from pathlib import Path

# At the end: ahead of the host, our nodes/ would hide its nodes.py.
sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent / "support")]
signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stopped run stops its servers too

from demo.launch import needs_repair, repair_cpu_torch  # noqa: E402

if needs_repair():  # a CPU torch beside a torchvision for CUDA, which diffusers imports
    repair_cpu_torch()
