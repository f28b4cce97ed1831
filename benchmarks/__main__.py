from __future__ import annotations

import argparse

from . import gpu, rasterize

BENCHMARKS = {"rasterize": rasterize.main, "gpu": gpu.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of the table")
    arguments = parser.parse_args()
    BENCHMARKS[arguments.name](arguments.json)


if __name__ == "__main__":
    main()
