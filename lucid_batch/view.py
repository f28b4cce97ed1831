"""Progress of a batch: on a terminal a table that is redrawn, otherwise one line for each change."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

from .scheduler import Scheduler

REDRAW_S = 0.5


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )


def counts(scheduler: Scheduler) -> str:
    waiting, elsewhere = len(scheduler.waiting), len(scheduler.elsewhere)
    parts = [f"{waiting} waiting", f"{len(scheduler.running)} running"]
    parts += [f"{elsewhere} with other drivers"] if elsewhere else []
    return ", ".join([*parts, f"{len(scheduler.done)} done", f"{len(scheduler.failed)} failed"])


def table(scheduler: Scheduler, progress: dict[str, dict[str, Any]], workers: list[str]) -> list[str]:
    """The counts, and a row for each worker: job, node and step, time left."""
    rows = [("worker", "job", "step", "left")]
    for name in workers:
        job, now = scheduler.running.get(name), progress.get(name, {})
        if job is None:
            state = scheduler.lost_workers.get(name, "idle" if name in scheduler.idle else "starts")
            rows.append((name, state.splitlines()[0], "", ""))
            continue
        step = f"{now['node']} {now['step']}/{now['steps']}" if now.get("steps") else now.get("node", "")
        rows.append((name, job.label, step, duration(now.get("left_s"))))
    widths = [min(48, max(len(row[i]) for row in rows)) for i in range(4)]
    lines = [
        "  ".join(cell[:width].ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    return [f"jobs: {counts(scheduler)}", *lines]


class View:
    def __init__(self, workers: list[str], stream: TextIO = sys.stderr) -> None:
        self.workers, self.stream = workers, stream
        self.terminal = stream.isatty()
        self._lines, self._drawn = 0, 0.0

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._erase()
        print(line, file=self.stream, flush=True)

    def show(self, scheduler: Scheduler, progress: dict[str, dict[str, Any]], change: str) -> None:
        if change:
            self.say(
                f"{time.strftime('%H:%M:%S')}  {change}"
                + ("" if self.terminal else f"  ({counts(scheduler)})")
            )
        now = time.monotonic()
        if not self.terminal or (now - self._drawn < REDRAW_S and not change):
            return
        self._erase()
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in table(scheduler, progress, self.workers)]
        print("\n".join(lines), file=self.stream, flush=True)
        self._lines, self._drawn = len(lines), now

    def _erase(self) -> None:
        if self._lines:
            self.stream.write(f"\x1b[{self._lines}F\x1b[J")
            self._lines = 0
