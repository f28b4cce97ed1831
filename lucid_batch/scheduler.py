"""The scheduler: gives jobs to workers, counts attempts, stores results. It knows neither Ray nor ComfyUI: a
Pool runs the jobs, and the clock is the pool's. simulate.py runs this same code in virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .jobs import Job
from .worker import Result

ELSEWHERE_S = 2.0  # between two looks at jobs of other drivers
WAIT_S = 0.5


@dataclass(frozen=True)
class Event:
    """kind: "ready" (a worker takes jobs), "ended" (its job ended, with a result), "died" (it and its job are
    lost; another one may follow under this name) or "gone" (it will not come back). reason: of the last two.
    """

    kind: str
    worker: str
    result: Result | None = None
    reason: str = ""


class Pool(Protocol):
    def submit(self, worker: str, job: Job) -> None:
        """Start a job on an idle worker. Raises OSError if a file that the job uploads is gone or changed."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened; returns at the latest after `timeout_s`."""

    def clock(self) -> float:
        """Seconds from any origin."""


class Results(Protocol):
    """The part of a Store that the scheduler uses."""

    def is_done(self, key: str) -> bool: ...
    def why_given_up(self, key: str) -> str: ...
    def claim(self, key: str) -> bool: ...
    def publish(self, key: str, files: dict[str, bytes], report: dict[str, Any]) -> bool: ...
    def give_up(self, key: str, record: dict[str, Any]) -> None: ...


@dataclass
class Scheduler:
    """Runs jobs, each at most `tries` times. `changed` is called after every change and every wait.

    Jobs are pulled: a worker that is idle takes the first job that it may have. Raises OSError of the disk if
    a result cannot be written; the jobs that are left stay as they are.
    """

    jobs: Iterable[Job]
    store: Results
    pool: Pool
    tries: int = 3
    changed: Callable[[str], None] = lambda line: None

    waiting: deque[Job] = field(default_factory=deque)
    running: dict[str, Job] = field(default_factory=dict)  # worker -> its job
    idle: dict[str, None] = field(default_factory=dict)  # workers, the longest idle first
    elsewhere: list[Job] = field(default_factory=list)  # other drivers have them
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)  # key -> reason
    made: int = 0  # results that this driver published
    skipped: int = 0  # done before
    lost_workers: dict[str, str] = field(default_factory=dict)  # name -> reason
    attempts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unfit: dict[str, dict[str, str]] = field(default_factory=dict)  # key -> worker -> reason
    last_pull: float = 0.0  # when the last job was handed out

    def __post_init__(self) -> None:
        for job in self.jobs:
            if self.store.is_done(job.key):
                self.done.add(job.key)
                self.skipped += 1
            else:
                self.waiting.append(job)
        self._looked = self.pool.clock()

    def run(self, workers: Iterable[str], stopping: Callable[[], bool] = lambda: False) -> None:
        """Work until every job is done or has failed, no worker is left, or `stopping`. `workers`: the names
        of all, whether they are ready or not.
        """
        alive = dict.fromkeys(workers)
        known = set(alive)
        while alive and not stopping() and (self.waiting or self.running or self.elsewhere):
            self._look_elsewhere()
            self._hand_out()
            if not (self.waiting or self.running or self.elsewhere):
                break
            for event in self.pool.wait(WAIT_S):
                if event.kind == "gone":
                    alive.pop(event.worker, None)
                self.take(event)
            self._drop_unfit(known)
            self.changed("")
            if not (self.running or self.elsewhere) and self._are_unfit(self.waiting, set(alive)):
                break  # those who could do the rest are gone

    def _hand_out(self) -> None:
        for worker in list(self.idle):
            while worker in self.idle and (job := self._pull(worker)) is not None:
                self._submit(worker, job)

    def _submit(self, worker: str, job: Job) -> None:
        self.last_pull = self.pool.clock()
        try:
            self.pool.submit(worker, job)
        except OSError as error:
            self._fail(worker, job, str(error), soon=False, last=True)
            return
        del self.idle[worker]
        self.running[worker] = job
        self.changed(f"{worker}: {job.label}")

    def _pull(self, worker: str) -> Job | None:
        """The next job for a worker, claimed; one that it has not tried yet if there is any."""
        tried = {key for key, made in self.attempts.items() if any(one["worker"] == worker for one in made)}
        for again in (False, True):
            place = 0
            while place < len(self.waiting):
                job = self.waiting[place]
                if worker in self.unfit.get(job.key, {}) or (job.key in tried) != again:
                    place += 1
                    continue
                del self.waiting[place]
                if self._claim(job):
                    return job
        return None

    def _claim(self, job: Job) -> bool:
        if self.store.claim(job.key):
            return True
        if self.store.is_done(job.key):
            self.done.add(job.key)
        elif reason := self.store.why_given_up(job.key):
            self.failed[job.key] = f"another driver gave it up: {reason}"
            self.changed(f"failed: line {job.line}, {job.label}: {self.failed[job.key]}")
        else:
            self.elsewhere.append(job)
        return False

    def _look_elsewhere(self) -> None:
        now = self.pool.clock()
        if self.elsewhere and now - self._looked >= ELSEWHERE_S:
            self._looked = now
            self.waiting.extend(self.elsewhere)
            self.elsewhere.clear()

    def take(self, event: Event) -> None:
        """Act on what happened to a worker."""
        if event.kind == "ready":
            self.idle[event.worker] = None
            self.lost_workers.pop(event.worker, None)
            self.changed(f"{event.worker}: ready")
            return
        job = self.running.pop(event.worker, None)
        if event.kind == "ended":
            assert job is not None and event.result is not None
            self._finish(event.worker, job, event.result)
            return
        self.idle.pop(event.worker, None)
        self.lost_workers[event.worker] = event.reason
        self.changed(f"{event.worker}: {event.reason}")
        if job is not None:
            self._fail(event.worker, job, f"the worker died: {event.reason}", soon=True)

    def _finish(self, worker: str, job: Job, result: Result) -> None:
        if result.outcome == "down":  # not the job's fault; "gone" follows
            self._put_back(job)
            return
        self.idle[worker] = None
        if result.outcome == "done":
            report = {**(result.report or {}), "attempts": self.attempts.get(job.key, [])}
            try:
                self.made += self.store.publish(job.key, result.files or {}, report)
            except OSError:
                self._put_back(job)
                raise
            self.done.add(job.key)
            self.changed(f"{worker}: done: {job.label}")
        elif result.outcome == "unfit":
            if not any(reasons.get(worker) == result.reason for reasons in self.unfit.values()):
                self.changed(f"{worker}: {result.reason}")
            self.unfit.setdefault(job.key, {})[worker] = result.reason
            self._put_back(job)
        else:
            self._fail(worker, job, result.reason, result.outcome == "lost", result.outcome == "refused")

    def _put_back(self, job: Job) -> None:
        """Let a job wait at the place of its row."""
        later = (place for place, other in enumerate(self.waiting) if other.line > job.line)
        self.waiting.insert(next(later, len(self.waiting)), job)

    def _fail(self, worker: str, job: Job, reason: str, soon: bool, last: bool = False) -> None:
        """Note a failed attempt. The job is given up, or waits again: at its place (`soon`) or at the end."""
        attempts = self.attempts.setdefault(job.key, [])
        attempts.append({"worker": worker, "reason": reason})
        if last or len(attempts) >= self.tries:
            self._give_up(job, reason)
        else:
            (self._put_back if soon else self.waiting.append)(job)
            self.changed(f"{worker}: {job.label}: {reason.rstrip('.')}; it is tried again")

    def _give_up(self, job: Job, reason: str) -> None:
        self.failed[job.key] = reason
        attempts = self.attempts.get(job.key, [])
        facts = {"key": job.key, "line": job.line, "label": job.label, "values": job.values}
        self.store.give_up(job.key, {**facts, "reason": reason, "attempts": attempts})
        self.changed(f"failed: line {job.line}, {job.label}: {reason}")

    def _are_unfit(self, jobs: Iterable[Job], workers: set[str]) -> bool:
        """Whether none of `workers` can do any of the jobs."""
        return bool(self.unfit) and all(workers <= set(self.unfit.get(job.key, {})) for job in jobs)

    def _drop_unfit(self, workers: set[str]) -> None:
        """Give up the jobs that no worker can do, not even those that died."""
        if not self.unfit:
            return
        for job in [job for job in self.waiting if self._are_unfit([job], workers)]:
            self.waiting.remove(job)
            if self._claim(job):
                self._give_up(job, "; ".join(dict.fromkeys(self.unfit[job.key].values())))
