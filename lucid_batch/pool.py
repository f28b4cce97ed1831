"""Workers as actors of Ray. A local Ray listens on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import ROOT, Mistake
from .jobs import Job, read_upload
from .scheduler import Event
from .worker import Result, Spec, Worker, last_line, outer_lines

CONNECT_S = 15.0
LOCAL_STORE = 512 << 20  # bytes of Ray's object store; larger results go to the disk
PROGRESS_S = 1.0
GRACE_S = 120.0  # beyond a server's silence: then it is the worker itself that hangs
REPLACEMENTS = 5  # in a row without a finished job
THREADS = 4  # of an actor: start or run, progress, stop
LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the switch by which Ray takes 127.0.0.1 as its address
    "RAY_USAGE_STATS_ENABLED": "0",
}


def load_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise Mistake('Ray is not installed; run: python -m pip install "ray[client]>=2.9"') from error
    return ray


def connect(address: str, workers: int) -> Any:
    """Ray, connected to a cluster, or started on this machine alone if `address` is "local".

    Raises Mistake if the address is not reachable in CONNECT_S seconds.
    """
    if address == "local":
        os.environ.update({name: os.environ.get(name, value) for name, value in LOCAL_ENVIRONMENT.items()})
        path = os.environ.get("PYTHONPATH")  # the workers import this package
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path]))
        ray = load_ray()
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        cpus = max(os.cpu_count() or 1, workers)
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=LOCAL_STORE, **quiet)
        return ray
    ray = load_ray()
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise Mistake(f"no Ray answers at {address} within {CONNECT_S:.0f} s: {error}") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, ImportError) as error:
        raise Mistake(f"no Ray answers at {address}: {last_line(error)}") from error
    return ray


def room(nodes: list[tuple[int, int]], workers: int) -> tuple[int, int, int]:
    """Workers, and CPUs and GPUs of each, for `nodes` of (CPUs, GPUs). workers: 0 = one for each GPU, or one
    for each node if there is no GPU.

    Raises Mistake if the cluster has no room for so many.
    """
    gpus = sum(gpu for _, gpu in nodes)
    wanted = workers or gpus or len(nodes)
    if gpus:
        able = [(cpu, gpu) for cpu, gpu in nodes if gpu]
        if wanted > gpus:
            raise Mistake(f"there are {gpus} GPUs; --workers {wanted} is more")
    else:
        able = [(cpu, sys.maxsize) for cpu, _ in nodes]
    most = max if workers else min  # the default puts a worker on every machine
    for cpus in range(most((cpu for cpu, _ in able), default=0), 0, -1):
        if sum(min(cpu // cpus, gpu) for cpu, gpu in able) >= wanted:
            return wanted, cpus, 1 if gpus else 0
    raise Mistake(f"there are {sum(cpu for cpu, _ in able)} CPUs; --workers {wanted} is more")


def nodes_of(ray: Any) -> list[tuple[int, int]]:
    """(CPUs, GPUs) of each living node."""
    held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in held]


class RayPool:
    """One actor for each of `specs`. `about` of a worker that became ready: see Worker.start.

    wanted: the graph and the names of models that `start` is asked about.
    """

    def __init__(
        self,
        ray: Any,
        specs: list[Spec],
        cpus: int,
        gpus: int,
        wanted: tuple[dict[str, Any], list[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ray, self.clock, self._wanted = ray, clock, wanted
        self._specs = {spec.name: spec for spec in specs}
        self._options = {
            **{"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": THREADS},
            "scheduling_strategy": "SPREAD",
        }
        self._actors: dict[str, Any] = {}
        self._refs: dict[Any, tuple[str, str]] = {}  # reference -> ("start" or "run", worker)
        self._asked: dict[str, Any] = {}  # worker -> reference of its progress
        self._heard: dict[str, float] = {}  # worker -> when it last answered
        self._deaths = dict.fromkeys(self._specs, 0)
        self._created = dict.fromkeys(self._specs, 0)
        self.progress: dict[str, dict[str, Any]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        for name in self._specs:
            self._create(name)

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    def _create(self, name: str) -> None:
        self._created[name] += 1
        spec = self._specs[name]
        if self._created[name] > 1:  # a folder of its own: the one of the dead worker is read by others
            spec = replace(spec, name=f"{name}-{self._created[name]}")
        actor = self.ray.remote(Worker).options(**self._options).remote(spec)
        self._actors[name] = actor
        self._heard[name] = self.clock()
        self._refs[actor.start.remote(*self._wanted)] = ("start", name)

    def submit(self, worker: str, job: Job) -> None:
        uploads = {name: read_upload(name, path) for name, path in job.uploads.items()}
        self._heard[worker] = self.clock()
        try:
            self._refs[self._actors[worker].run.remote(job, uploads)] = ("run", worker)
        except ConnectionError as error:  # an OSError too, but not of the job's files
            raise RuntimeError(f"Ray does not answer: {error}") from error

    def wait(self, timeout_s: float) -> list[Event]:
        ended, _ = (
            self.ray.wait(list(self._refs), num_returns=1, timeout=timeout_s) if self._refs else ([], [])
        )
        if ended:
            ended, _ = self.ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
        elif not self._refs:
            time.sleep(timeout_s)
        self._ask_progress()
        events = [event for ref in ended for event in self._events(ref)]
        return events + [event for name in self._silent() for event in self._lose(name, "it does not answer")]

    def _events(self, ref: Any) -> list[Event]:
        kind, name = self._refs.pop(ref)
        try:
            value = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:  # an exception of the worker's own code
            if kind == "start":
                return self._retire(name, outer_lines(error.cause or error))
            return [Event("ended", name, Result("failed", last_line(error)))]
        except self.ray.exceptions.RayError as error:
            return self._lose(name, first_line(error))
        if kind == "start":
            self.about[name] = value
            return [Event("ready", name)]
        self.progress.pop(name, None)
        if value.outcome == "down":
            return [Event("ended", name, value), *self._retire(name, value.reason)]
        self._deaths[name] = 0
        return [Event("ended", name, value)]

    def _lose(self, name: str, reason: str) -> list[Event]:
        """End a worker that died or hangs, and begin another one unless too many died in a row."""
        self._deaths[name] += 1
        if self._deaths[name] > REPLACEMENTS:
            return self._retire(name, f"it died {self._deaths[name]} times in a row; the last time: {reason}")
        self._forget(name)
        self._create(name)
        return [Event("died", name, reason=reason)]

    def _retire(self, name: str, reason: str) -> list[Event]:
        self._forget(name)
        return [Event("gone", name, reason=reason)]

    def _forget(self, name: str) -> None:
        actor = self._actors.pop(name)
        self._refs = {ref: of for ref, of in self._refs.items() if of[1] != name}
        for kept in (self._asked, self.progress, self._heard, self.about):
            kept.pop(name, None)
        self._kill(actor)

    def _kill(self, actor: Any) -> None:
        with contextlib.suppress(Exception):  # it may be dead
            self.ray.kill(actor)

    def _ask_progress(self) -> None:
        """Ask the busy workers how far they are; answers are taken without waiting."""
        busy = [name for kind, name in self._refs.values() if kind == "run"]
        answered, _ = (
            self.ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=0)
            if self._asked
            else ([], [])
        )
        for name in [name for name, ref in self._asked.items() if ref in answered]:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.progress[name] = self.ray.get(self._asked[name])
                self._heard[name] = self.clock()
            del self._asked[name]
        for name in busy:
            if name not in self._asked and self.clock() - self._heard[name] >= PROGRESS_S:
                self._asked[name] = self._actors[name].progress.remote()

    def _silent(self) -> list[str]:
        """Workers that are busy and have not answered for too long."""
        busy = [name for kind, name in self._refs.values() if kind == "run"]
        silence = {name: self.clock() - self._heard[name] for name in busy}
        return [name for name in busy if silence[name] > self._specs[name].silence_s + GRACE_S]

    def stop(self, wait_s: float = 30) -> None:
        """End all workers; a job that runs is interrupted, so that its node saves a checkpoint."""
        ends = [actor.stop.remote() for actor in self._actors.values()]
        if ends:
            self.ray.wait(ends, num_returns=len(ends), timeout=wait_s)
        for actor in self._actors.values():
            self._kill(actor)
        self._actors.clear()
        self._refs.clear()


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
