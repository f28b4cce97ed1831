"""Run a script that ends when the process that started it ends: `python launch.py SCRIPT [arguments]`.

The starter holds the other end of stdin. When it is gone, even by kill -9, the end of stdin is read here, and
no ComfyUI stays behind that holds a GPU. Must be run as a script: with a package on sys.path, ours could hide
ComfyUI's modules.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def end_with_starter() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_starter, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
