"""Runs the parts one after another within a time limit."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import __doc__ as about

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "output" / "benchmarks" / "device"
LIMITS_S = {  # limit of each part; "train" gets the remaining time
    "compile": 240,
    "checkpoint": 60,
    "tests": 90,
    "host": 240,
    "split": 90,
    "backends": 60,
    "train": 600,
}


@dataclass
class Part:
    """A started part."""

    name: str
    process: subprocess.Popen
    log: Path
    begun: float

    def result(self, seconds_left: float) -> dict:
        """Wait at most `seconds_left` for its end (then kill it), and return its line of JSON as a dict."""
        facts: dict = {}
        try:
            output, _ = self.process.communicate(timeout=max(seconds_left, 1))
            lines = [line for line in output.splitlines() if line.startswith("{")]
            facts = json.loads(lines[-1]) if lines else {}
            code = self.process.returncode
            error = "" if code == 0 and lines else f"exit code {code}: {self._last_line()}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            error = f"stopped after {time.monotonic() - self.begun:.0f} s: {self._last_line()}"
        seconds = round(time.monotonic() - self.begun, 1)
        return {
            "part": self.name,
            "ok": not error,
            "seconds": seconds,
            **facts,
            **({"error": error} if error else {}),
        }

    def _last_line(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def start(name: str, out: Path, cpu: bool, seconds: float) -> Part:
    log = out / f"{name}.log"
    command = [
        sys.executable,
        "-m",
        "benchmarks.device.parts",
        name,
        "--out",
        str(out),
        "--seconds",
        str(int(seconds)),
    ]
    environment = os.environ | {
        "TORCH_EXTENSIONS_DIR": str(out / "extensions")
    }  # compiled once, for all parts
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *(["--cpu"] if cpu else [])],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return Part(name, process, log, time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/device.sh", description=about)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, with small sizes")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit of all parts together (default: %(default)s)"
    )
    parser.add_argument("--parts", nargs="+", default=list(LIMITS_S), choices=list(LIMITS_S))
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder for logs and results (default: %(default)s)"
    )
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    left = lambda name: min(LIMITS_S[name], end - time.monotonic())
    say = lambda result: print(json.dumps(result), flush=True)

    compiling = start("compile", out, options.cpu, left("compile")) if "compile" in options.parts else None
    for name in (name for name in options.parts if name != "compile"):
        if compiling and name != "checkpoint":  # checkpoint needs no renderer, so it runs during compilation
            say(compiling.result(left("compile")))
            compiling = None
        if left(name) < 5:
            say({"part": name, "ok": False, "seconds": 0, "error": "no time was left"})
            continue
        say(start(name, out, options.cpu, left(name)).result(left(name)))
    if compiling:
        say(compiling.result(left("compile")))


if __name__ == "__main__":
    main()
