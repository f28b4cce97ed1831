"""Random kills (SIGKILL) of workers, hosts and the driver of a running batch, and what is left afterwards.

The processes and the kills are real. The hosts are ComfyUI, or the stand-in beside this file, whose jobs cost
nothing but time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")
WORKFLOW = ROOT / "workflows" / "api" / "text_to_splat.json"
KINDS = {"worker": 8, "host": 8, "driver": 4}  # kills of each in a whole test
PAUSE_S = (1.0, 3.0)  # between two kills
LIMIT_S = 1800  # of a whole batch
END_S = 60  # of a driver, once it is told to


@dataclass
class Kills:
    """kills: what was killed, in order. lost: jobs without a result. double: results that were made or
    written a second time although they were there. redone: runs that ended on a host but were killed before
    their result was kept. resumed: runs that went on from a checkpoint.
    """

    kills: list[str] = field(default_factory=list)
    starts: int = 0
    lost: int = 0
    double: int = 0
    redone: int = 0
    resumed: int = 0


@dataclass(frozen=True)
class Batch:
    """A command line of lucid_batch on this machine. words: its options. table: the rows, in place of `jobs`
    rows of `steps` steps.
    """

    folder: Path
    jobs: int
    steps: int
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    table: str = ""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [f"a {number} of clay,{number},{self.steps}" for number in range(self.jobs)]
        head = "LucidPrompt.text,LucidDream.seed,LucidDream.steps"
        (self.folder / "jobs.csv").write_text(self.table or "\n".join([head, *rows]) + "\n")

    def start(self) -> subprocess.Popen[bytes]:
        files = (str(WORKFLOW), str(self.folder / "jobs.csv"), "--out", str(self.out))
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lucid_batch", *files, *self.words],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def results(self) -> dict[str, tuple[int, float]]:
        """Key -> (inode, time) of each report that is there."""
        found = {}
        for path in self.out.glob("jobs/*/report.json"):
            with suppress(OSError):
                found[path.parent.name] = (path.stat().st_ino, path.stat().st_mtime)
        return found

    def reports(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.out.glob("jobs/*/report.json")]


def with_stand_in(folder: Path, jobs: int, steps: int, step_s: float, workers: int = 2) -> Batch:
    """A batch whose hosts are stand-ins."""
    models = folder / "base" / "models" / "checkpoints"
    models.mkdir(parents=True, exist_ok=True)
    (models / "lucid_demo_prior.safetensors").write_text("a stand-in")
    host = ("--launcher", str(STAND_IN), "--comfyui", str(folder), "--base", str(folder / "base"))
    environment = {
        **{"STAND_IN_JOURNAL": str(folder / "journal"), "STAND_IN_STEP_S": str(step_s)},
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    words = (*host, "--flags=--cpu", "--workers", str(workers), "--tries", "50")
    return Batch(folder, jobs, steps, words, environment)


def processes(driver: int) -> dict[str, list[int]]:
    """The process ids of a driver's workers and hosts."""
    found: dict[str, list[int]] = {"worker": [], "host": [], "driver": [driver]}
    with suppress(psutil.Error):
        for process in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if words.startswith("ray::Worker"):
                    found["worker"].append(process.pid)
                elif "lucid_batch/launch.py" in words:
                    found["host"].append(process.pid)
    return found


def order_of_kills(seed: int, kinds: dict[str, int]) -> tuple[random.Random, list[str]]:
    draw = random.Random(seed)
    order = list(Counter(kinds).elements())
    draw.shuffle(order)
    return draw, order


def kill_at_random(
    batch: Batch, seed: int, kinds: dict[str, int] = KINDS, pause_s: tuple[float, float] = PAUSE_S
) -> Kills:
    """Run a batch, kill its processes in a random order at random moments, start a killed driver again, and
    count the results. Raises TimeoutError if the batch has not ended after LIMIT_S seconds.
    """
    batch.prepare()
    draw, order = order_of_kills(seed, kinds)
    found, seen = Kills(), {}
    driver, give_up = batch.start(), time.monotonic() + LIMIT_S
    found.starts = 1
    try:
        for pause in waits(draw, pause_s):
            until = time.monotonic() + pause
            while time.monotonic() < until and driver.poll() is None:
                look(batch, seen, found)
                time.sleep(0.1)
            if driver.poll() == 0:
                break
            if time.monotonic() > give_up:
                raise TimeoutError(f"the batch has not ended after {LIMIT_S} s; see {batch.folder / 'log'}")
            if driver.poll() is not None:
                driver = batch.start()
                found.starts += 1
            elif order:
                victims = processes(driver.pid)[order[0]]
                if victims and processes(driver.pid)["host"]:  # once it works
                    with suppress(ProcessLookupError):
                        os.kill(draw.choice(victims), signal.SIGKILL)
                        found.kills.append(order.pop(0))
    finally:
        if driver.poll() is None:
            end(driver)
    look(batch, seen, found)
    return count_results(batch, seen, found)


def end(driver: subprocess.Popen[bytes]) -> None:
    driver.terminate()
    try:
        driver.wait(END_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()


def waits(draw: random.Random, pause_s: tuple[float, float]) -> Iterator[float]:
    while True:
        yield draw.uniform(*pause_s)


def look(batch: Batch, seen: dict[str, tuple[int, float]], found: Kills) -> None:
    """Note new results; one that is another file than before was written twice."""
    for key, stamp in batch.results().items():
        found.double += seen.setdefault(key, stamp) != stamp


def count_results(batch: Batch, seen: dict[str, tuple[int, float]], found: Kills) -> Kills:
    reports = batch.reports()
    of_row = Counter(report["line"] for report in reports)
    found.lost = batch.jobs - len(of_row)
    found.double += sum(count - 1 for count in of_row.values())
    found.resumed = sum(bool(report["resumed"]) for report in reports)
    journal = batch.folder / "journal"
    runs = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    published = {report["label"]: seen[report["key"]][1] for report in reports}
    found.double += sum(run["begun"] > published.get(run["text"], run["begun"]) for run in runs)
    found.redone = max(0, len(runs) - len(reports))
    return found
