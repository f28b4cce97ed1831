"""The real scheduler with 8 to 512 workers, in virtual time: fake jobs whose durations are lognormal.

The clock runs by the durations of the jobs and by the real time that the scheduler itself takes between them,
the output folder included: at many workers this is what would limit them.
"""

from __future__ import annotations

import heapq
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .jobs import Job
from .scheduler import Event, Results, Scheduler
from .store import Store
from .worker import Result

MEDIAN_S, SIGMA = 600.0, 0.5  # of a job: minutes to an hour
OVERHEAD_S = 1.0  # of a job, beside the run


@dataclass(frozen=True)
class Simulated:
    """Times in virtual seconds; work is the jobs' own time, so that 1 is ideal.

    throughput: work / (workers * time) until the last job was handed out. tail_s: from then to the end.
    efficiency: the same with the tail. scheduler_s: real seconds of the scheduler for each job.
    """

    workers: int
    jobs: int
    seconds: float
    tail_s: float
    throughput: float
    efficiency: float
    scheduler_s: float


class FakePool:
    """A pool whose jobs take `seconds[key]`; `real` counts the scheduler's own time, or is always 0."""

    def __init__(
        self, workers: int, seconds: dict[str, float], real: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds, self.real = seconds, real
        self.now = self.spent = 0.0
        self.ran: list[tuple[float, float]] = []  # (begin, end) of each job
        self._since = real()
        self._ready = [Event("ready", f"worker-{number}") for number in range(workers)]
        self._ends: list[tuple[float, int, str]] = []
        self._count = 0

    @property
    def names(self) -> list[str]:
        return [event.worker for event in self._ready]

    def clock(self) -> float:
        return self.now + self.real() - self._since

    def submit(self, worker: str, job: Job) -> None:
        self._count += 1
        begin = self.clock() + OVERHEAD_S
        end = begin + self.seconds[job.key]
        self.ran.append((begin, end))
        heapq.heappush(self._ends, (end, self._count, worker))

    def wait(self, timeout_s: float) -> list[Event]:
        """All that has ended by now, or else the next one."""
        took = self.real() - self._since
        self.now, self.spent = self.now + took, self.spent + took
        events, self._ready = self._ready, []
        if not events:
            self.now = max(self.now, self._ends[0][0])
            while self._ends and self._ends[0][0] <= self.now:
                worker = heapq.heappop(self._ends)[2]
                events.append(Event("ended", worker, Result("done", "", {}, {})))
        self._since = self.real()
        return events


def durations(jobs: int, seed: int) -> dict[str, float]:
    draw = random.Random(seed)
    return {f"job-{number:06}": draw.lognormvariate(math.log(MEDIAN_S), SIGMA) for number in range(jobs)}


def simulate(
    workers: int,
    jobs: int,
    seed: int = 0,
    store: Results | None = None,
    real: Callable[[], float] = time.perf_counter,
) -> Simulated:
    """Run `jobs` fake jobs; store: None = a real one in a temporary folder."""
    seconds = durations(jobs, seed)
    if store is None:
        with tempfile.TemporaryDirectory(prefix="lucid-") as folder:
            made = Store(Path(folder))
            made.open(beat=False)
            return _simulate(workers, seconds, made, real)
    return _simulate(workers, seconds, store, real)


def _simulate(
    workers: int, seconds: dict[str, float], store: Results, real: Callable[[], float]
) -> Simulated:
    pool = FakePool(workers, seconds, real)
    rows = [Job(number, key, {}, {}, key=key) for number, key in enumerate(seconds)]
    scheduler = Scheduler(rows, store, pool)
    scheduler.run(pool.names)
    assert len(scheduler.done) == len(seconds) == scheduler.made
    last, work = scheduler.last_pull, sum(seconds.values())
    left = sum(end - max(begin, last) for begin, end in pool.ran if end > last)
    return Simulated(
        workers=workers,
        jobs=len(seconds),
        seconds=pool.now,
        tail_s=pool.now - last,
        throughput=(work - left) / (workers * last) if last else 1.0,
        efficiency=work / (workers * pool.now),
        scheduler_s=pool.spent / len(seconds),
    )
