"""A headless ComfyUI as a context manager: `with Server(comfyui, base, log) as server: ...`. It listens on
127.0.0.1 alone. Standard library only.
"""

from __future__ import annotations

import http.client
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
from types import TracebackType

HOST = "127.0.0.1"
LOG_TAIL_LINES = 25
END_WITH_STARTER = Path(__file__).with_name("launch.py")
HAS_ACCELERATOR = """
import sys, torch
found = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
sys.exit(not found)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


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


def answers(url: str, timeout_s: float = 5) -> bool:
    """Whether a ComfyUI answers at `url`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/system_stats", timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return False


class Server:
    """One ComfyUI process with `base` as its base directory; port 0 selects a free port.

    Its output goes to the file `log`, or to this process's stderr if that is None. `flags` are additional
    arguments of its main.py; `output` is its output folder, None = that of the base directory; `python` runs
    it. Entering raises ValueError if the port is in use, and RuntimeError if ComfyUI stops or does not answer
    within `timeout_s` seconds. The process ends with this one, also if this one is killed.
    """

    launcher: Path | None = None  # a script that is run in place of main.py, with `comfyui` as first argument

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        log: Path | None = None,
        port: int = 0,
        timeout_s: float = 240,
        flags: tuple[str, ...] = (),
        output: Path | None = None,
        python: str = sys.executable,
    ):
        self.comfyui = Path(comfyui)
        self.base = Path(base)
        self.log = log
        self.timeout_s = timeout_s
        self.port = port or free_port()
        self.flags = flags
        self.output = output
        self.python = python
        self.process: subprocess.Popen[bytes] | None = None

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def has_ended(self, wait_s: float) -> bool:
        """Whether the process ends within `wait_s` seconds."""
        try:
            return self.process is None or self.process.wait(wait_s) is not None
        except subprocess.TimeoutExpired:
            return False

    def log_tail(self) -> str:
        """The last lines of the log without colour codes, under a heading; empty without a log."""
        if self.log is None or not self.log.exists():
            return ""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace")).splitlines()[
            -LOG_TAIL_LINES:
        ]
        return "\n".join([f"The end of {self.log}:", *lines])

    def device_flags(self) -> list[str]:
        """`--cpu` if torch has no accelerator; ComfyUI would stop with a driver error without it."""
        if "--cpu" in self.flags or subprocess.run([self.python, "-c", HAS_ACCELERATOR]).returncode == 0:
            return []
        return ["--cpu"]

    def _command(self) -> list[str]:
        script = [self.launcher, self.comfyui] if self.launcher else [self.comfyui / "main.py"]
        return [
            *(self.python, str(END_WITH_STARTER), *map(str, script)),
            *("--base-directory", str(self.base), "--temp-directory", self._temp.name),
            *(("--output-directory", str(self.output)) if self.output else ()),
            *("--listen", HOST, "--port", str(self.port), "--database-url", "sqlite:///:memory:"),
            *("--disable-api-nodes", "--disable-auto-launch", *self.device_flags(), *self.flags),
        ]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with open(self.log or os.devnull, "wb") as log:
            return subprocess.Popen(
                self._command(),
                cwd=self.base,
                env=environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,  # see launch.py
                stdout=log if self.log else sys.stderr,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # we handle Ctrl-C, and can stop the whole process group
            )

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + self.timeout_s
        while not answers(f"http://{self.address}"):
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(
                    f"ComfyUI stopped with code {self.process.returncode} at its start.\n{self.log_tail()}"
                )
            if time.monotonic() > give_up:
                raise RuntimeError(
                    f"ComfyUI did not answer within {self.timeout_s:.0f} s.\n{self.log_tail()}"
                )
            time.sleep(0.2)

    def _stop(self) -> None:
        if self.process is not None:
            self._signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                self.process.wait()
            if self.process.stdin:
                self.process.stdin.close()
        self._temp.cleanup()

    def _signal(self, number: int) -> None:
        """Send a signal to the whole process group, or on Windows to the process."""
        assert self.process is not None
        try:
            if sys.platform != "win32":
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass
