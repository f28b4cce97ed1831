"""A ComfyUI server of the tests, the demo and the benchmarks: `with Server(comfyui, base, log) as server:`.

`python -m devtools.host --comfyui DIR --base DIR --port N` runs one until it is interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lucid_batch import server
from lucid_batch.server import check_port, free_port

__all__ = ["Server", "check_port", "free_port"]


class Server(server.Server):
    """See lucid_batch.server.Server; it works with the CPU build of torch too (launch.py)."""

    launcher = Path(__file__).with_name("launch.py")

    def device_flags(self) -> list[str]:
        import torch  # this process has it loaded

        found = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
        return [] if found else ["--cpu"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devtools.host", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument(
        "--base", type=Path, required=True, help="its base directory: models, custom_nodes, output"
    )
    parser.add_argument("--port", type=int, default=8188, help="default: %(default)s; 0 = any free port")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped too
    try:
        with Server(options.comfyui, options.base, port=options.port) as running:
            print(f"\nComfyUI with this pack: http://{running.address}   (Ctrl-C stops it)\n", flush=True)
            return running.process.wait()
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
