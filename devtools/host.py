"""A ComfyUI server as a context manager: `with Server(comfyui, base, log) as server: ...`.

`python -m devtools.host --comfyui DIR --base DIR --port N` runs one until it is interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HOST = "127.0.0.1"
LAUNCHER = Path(__file__).with_name("launch.py")
LOG_TAIL_LINES = 25


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise ValueError if `port` is in use. ComfyUI itself reports it only after its long start."""
    with socket.socket() as probe:
        # Ignores closing connections; on Windows it would let two servers share a port.
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"port {port} cannot be used ({error}); choose another one with --port"
            ) from error


def device_flags() -> list[str]:
    """`--cpu` if torch has no accelerator; ComfyUI would stop with a driver error without it."""
    import torch

    found = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    return [] if found else ["--cpu"]


class Server:
    """One ComfyUI process with `base` as its base directory; port 0 selects a free port.

    Its output goes to the file `log`, or to this process's stderr if that is None. `flags` are additional
    arguments of its main.py. Entering raises ValueError if the port is in use, and RuntimeError if ComfyUI
    stops or does not answer within `timeout_s` seconds.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        log: Path | None = None,
        port: int = 0,
        timeout_s: float = 240,
        flags: tuple[str, ...] = (),
    ):
        self.comfyui = Path(comfyui)
        self.base = Path(base)
        self.log = log
        self.timeout_s = timeout_s
        self.port = port or free_port()
        self.flags = flags
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Server:
        check_port(self.port)
        # ComfyUI empties its temporary directory at start and end, so servers must not share one.
        self._temp = tempfile.TemporaryDirectory(prefix="lucid-")
        try:
            self.process = self._start()
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def log_tail(self) -> str:
        """The last lines of the log without colour codes, under a heading; empty without a log."""
        if self.log is None or not self.log.exists():
            return ""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace")).splitlines()[
            -LOG_TAIL_LINES:
        ]
        return "\n".join([f"The end of {self.log}:", *lines])

    def _command(self) -> list[str]:
        return [
            *(sys.executable, str(LAUNCHER), str(self.comfyui)),
            *("--base-directory", str(self.base), "--temp-directory", self._temp.name),
            *("--listen", HOST, "--port", str(self.port), "--database-url", "sqlite:///:memory:"),
            *("--disable-api-nodes", "--disable-auto-launch", *device_flags(), *self.flags),
        ]

    def _start(self) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with open(self.log or os.devnull, "wb") as log:
            return subprocess.Popen(
                self._command(),
                cwd=self.base,
                env=environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log if self.log else sys.stderr,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # we handle Ctrl-C, and can stop the whole process group
            )

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + self.timeout_s
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"ComfyUI stopped with code {self.process.returncode} at its start.\n{self.log_tail()}"
                )
            if time.monotonic() > give_up:
                raise RuntimeError(
                    f"ComfyUI did not answer within {self.timeout_s:.0f} s.\n{self.log_tail()}"
                )
            time.sleep(0.2)

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.address}/system_stats", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _stop(self) -> None:
        if self.process is not None:
            self._signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                self.process.wait()
        self._temp.cleanup()

    def _signal(self, number: int) -> None:
        """Send a signal to the whole process group, or on Windows to the process."""
        try:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass


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
        with Server(options.comfyui, options.base, port=options.port) as server:
            print(f"\nComfyUI with this pack: http://{server.address}   (Ctrl-C stops it)\n", flush=True)
            return server.process.wait()
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
