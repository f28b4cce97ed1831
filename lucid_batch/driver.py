"""One run of the command: from two files to an output folder."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from . import Mistake, checkpoints, models, pool, version
from .api.client import Graph, read_graph
from .gallery import Gallery
from .jobs import BadRow, Job, fill_rows, key_of, models_of, read_rows, why_refused
from .scheduler import Event, Scheduler
from .server import answers
from .store import Store
from .view import View, counts, duration
from .worker import Spec, url_of

GALLERY_S = 15.0
WAIT_S = 0.5
REACH_S = 10.0
SLOW_S = 60.0  # to the first worker
INTERRUPTED, TROUBLE = 130, 1


@dataclass(frozen=True)
class Options:
    """See __main__.py. skip: bad rows are left out; False = they stop the run. words: of the command line."""

    workflow: str
    jobs: Path
    out: Path
    address: str = "local"
    workers: int = 0
    servers: tuple[str, ...] = ()
    comfyui: str = ""
    base: str = ""
    python: str = sys.executable
    launcher: str = ""
    flags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tries: int = 3
    hang_minutes: float = 15.0
    skip: bool = False
    dry_run: bool = False
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    graph: Graph
    jobs: list[Job]  # without keys
    bad: list[BadRow]


def plan_of(options: Options) -> Plan:
    """Read both files. Raises Mistake for what is wrong with them, unless bad rows are to be skipped."""
    try:
        graph = read_graph(options.workflow)
    except ValueError as error:
        raise Mistake(str(error)) from error
    rows, unread = read_rows(options.jobs)
    jobs, unfilled = fill_rows(graph, rows, options.jobs.resolve().parent)
    bad = sorted([*unread, *unfilled], key=lambda one: one.line)
    require_rows(options, bad, len(jobs))
    return Plan(graph, jobs, bad)


def require_rows(options: Options, bad: list[BadRow], good: int) -> None:
    """Raises Mistake if bad rows stop the run, or nothing is left."""
    if bad and not (options.skip and good):
        rest = "" if options.skip else "; nothing was run (--on-bad-row skip runs the others)"
        raise Mistake(f"{options.jobs}: " + "; ".join(map(str, bad)) + rest)


def with_keys(jobs: list[Job], hashes: dict[str, str]) -> list[Job]:
    """The jobs with their keys; of jobs with the same key, only the first."""
    found: dict[str, Job] = {}
    for job in jobs:
        own = {name: hashes.get(name, "") for name in job.models}
        job = replace(job, models=own, key=key_of(job.graph, version(), own))
        found.setdefault(job.key, job)
    return list(found.values())


def local_hashes(options: Options, jobs: list[Job]) -> dict[str, str]:
    """Hashes of the models that this machine has. Of a given server nothing is known but their names."""
    names = sorted({name for job in jobs for name in models_of(job.graph)})
    base = options.base or options.comfyui
    folders = [Path(base) / "models"] if base and not options.servers else []
    return models.hashes(names, [*folders, *map(Path, options.models)])


def specs_of(options: Options, count: int, store: Store) -> list[Spec]:
    """The settings of each worker."""
    shared: dict[str, Any] = {
        "root": str(store.root),
        "driver": store.driver,
        "version": version(),
        "silence_s": 60 * options.hang_minutes,
    }
    if options.servers:
        return [Spec(name=url_of(one).partition("://")[2], address=one, **shared) for one in options.servers]
    own: dict[str, Any] = {
        "comfyui": options.comfyui,
        "base": options.base or options.comfyui,
        "python": options.python,
        "launcher": options.launcher,
        "flags": options.flags,
        "models": options.models,
    }
    return [Spec(name=f"worker-{number}", **own, **shared) for number in range(1, count + 1)]


def go_on(options: Options) -> str:
    return f"python -m lucid_batch {shlex.join(options.words)}"


def dry_run(options: Options, plan: Plan) -> int:
    """Print what would be done; nothing is started and nothing is written."""
    store = Store(options.out)
    known = local_hashes(options, plan.jobs)
    jobs = with_keys(plan.jobs, known)
    done = {job.key for job in jobs if store.is_done(job.key)}
    lines = [
        f"{'done' if job.key in done else 'run '}  {job.key}  line {job.line}: {job.label}" for job in jobs
    ]
    lines += [f"skip  {row}" for row in plan.bad]
    where = f"servers {', '.join(options.servers)}" if options.servers else f"Ray at {options.address}"
    repeated = len(plan.jobs) - len(jobs)
    lines.append(
        f"{len(jobs) - len(done)} to run, {len(done)} done, {repeated} repeated, {len(plan.bad)} bad rows; "
        f"workers: {where}; results: {options.out}"
    )
    unknown = [name for name, digest in known.items() if not digest]
    if unknown and not options.servers:
        lines.append(
            f"Not on this machine, so the workers hash them, which changes the keys: {', '.join(unknown)}"
        )
    print("\n".join(lines))
    return 0


class Stop:
    """Ctrl-C: the first one ends the run in order, the second one at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(options: Options) -> int:
    """Run the command and return its exit code. Raises Mistake."""
    plan = plan_of(options)
    if options.dry_run:
        return dry_run(options, plan)
    for address in options.servers:
        if not answers(url_of(address), REACH_S):
            raise Mistake(f"no ComfyUI answers at {address} within {REACH_S:.0f} s")
    require_comfyui(options)
    store = Store(options.out.resolve())
    store.open()
    stop = Stop()
    try:
        checkpoints.rescue_all(store)
        if all_done(options, plan, store):
            Gallery(store).write()
            print(f"all {len(plan.jobs)} jobs are done; {store.root / 'index.html'}", file=sys.stderr)
            return 0
        return run_on_ray(options, plan, store, stop)
    finally:
        store.close()


def all_done(options: Options, plan: Plan, store: Store) -> bool:
    """Whether there is nothing to do, as far as this machine knows; False if it does not."""
    hashes = local_hashes(options, plan.jobs)
    known = bool(options.servers) or all(hashes.values())
    return known and all(store.is_done(job.key) for job in with_keys(plan.jobs, hashes))


def require_comfyui(options: Options) -> None:
    """On a cluster, the folders are those of the other machines."""
    if options.servers or options.address != "local" or options.launcher:
        return
    if not options.comfyui or not (Path(options.comfyui) / "main.py").is_file():
        found = f"there is no main.py in {options.comfyui}" if options.comfyui else "no ComfyUI is named"
        raise Mistake(f"{found}; --comfyui takes its folder, or --servers addresses of running ones")


def run_on_ray(options: Options, plan: Plan, store: Store, stop: Stop) -> int:
    ray = pool.connect(options.address, len(options.servers) or options.workers)
    try:
        with stop.listening():
            if options.servers:
                count, cpus, gpus = len(options.servers), 0, 0
            else:
                count, cpus, gpus = pool.room(pool.nodes_of(ray), options.workers)
            names = sorted({name for job in plan.jobs for name in job.models})
            workers = pool.RayPool(ray, specs_of(options, count, store), cpus, gpus, (plan.graph, names))
            try:
                return run_jobs(options, plan, store, stop, workers)
            except KeyboardInterrupt:
                workers.stop(0)
                raise
            finally:
                workers.stop()
    finally:
        ray.shutdown()


def wait_for_worker(workers: pool.RayPool, view: View, stop: Stop) -> list[Event]:
    """Wait for a worker that takes jobs. Returns all that happened. Raises RuntimeError if none does."""
    events: list[Event] = []
    names, slow = set(workers.names), time.monotonic() + SLOW_S
    while not stop() and not any(event.kind == "ready" for event in events):
        for event in workers.wait(WAIT_S):
            events.append(event)
            if event.kind != "ready":
                view.say(f"{event.worker}: {event.reason}")
            if event.kind == "gone":
                names.discard(event.worker)
        if time.monotonic() > slow and not any(event.kind == "ready" for event in events):
            view.say(f"No worker has started after {SLOW_S:.0f} s: are the cluster's CPUs and GPUs in use?")
            slow = float("inf")
        if not names:
            raise RuntimeError("no worker can start; see the lines above")
    return events


def check_rows(
    options: Options, plan: Plan, hashes: dict[str, str], info: dict[str, Any], view: View
) -> list[Job]:
    """The jobs with keys, once a server has told what its nodes take. Raises Mistake for bad values."""
    bad = [BadRow(job.line, reason) for job in plan.jobs if (reason := why_refused(job, info))]
    lines = {row.line for row in bad}
    good = [job for job in plan.jobs if job.line not in lines]
    require_rows(options, bad, len(good))
    for row in sorted([*plan.bad, *bad], key=lambda one: one.line):
        view.say(f"skipped: {row}")
    jobs = with_keys(good, hashes)
    if repeated := len(good) - len(jobs):
        view.say(f"rows that repeat another row: {repeated}; each result is made once")
    return jobs


def run_jobs(options: Options, plan: Plan, store: Store, stop: Stop, workers: pool.RayPool) -> int:
    view, gallery, begun = View(workers.names), Gallery(store), time.monotonic()
    view.say(
        f"{len(plan.jobs)} jobs, {len(workers.names)} workers, results in {store.root}; the workers start ..."
    )
    events = wait_for_worker(workers, view, stop)
    ready = next((event.worker for event in events if event.kind == "ready"), None)
    if ready is None:
        return report_end(options, None, view, True)
    about = workers.about[ready]
    of_worker = {name: digest for name, digest in about["hashes"].items() if digest}
    hashes = local_hashes(options, plan.jobs) | of_worker
    jobs = check_rows(options, plan, hashes, about["info"], view)
    written = [time.monotonic()]

    def changed(line: str) -> None:
        view.show(scheduler, workers.progress, line)
        if line and time.monotonic() - written[0] > GALLERY_S:
            gallery.write()
            written[0] = time.monotonic()

    scheduler = Scheduler(jobs, store, workers, options.tries, changed)
    alive = [name for name in workers.names if not any(e.kind == "gone" and e.worker == name for e in events)]
    for event in events:
        scheduler.take(event)
    try:
        scheduler.run(alive, stop)
        gallery.write()
    except OSError as error:
        view.say(f"error: {store.root} takes no more results: {error}")
        return report_end(options, scheduler, view, False)
    view.say(f"{counts(scheduler)} in {duration(time.monotonic() - begun)}; {store.root / 'index.html'}")
    return report_end(options, scheduler, view, stop())


def report_end(options: Options, scheduler: Scheduler | None, view: View, stopped: bool) -> int:
    """Say how to go on where jobs are left; the exit code."""
    if scheduler and not (scheduler.waiting or scheduler.running or scheduler.elsewhere):
        return TROUBLE if scheduler.failed else 0
    for name, reason in (scheduler.lost_workers if scheduler else {}).items():
        view.say(f"{name}: {reason}")
    if stopped:
        view.say("The workers end; a job that runs saves its checkpoint. Ctrl-C again ends them at once.")
    view.say(f"To go on: {go_on(options)}")
    return INTERRUPTED if stopped else TROUBLE


def default_comfyui() -> str:
    """ComfyUI's folder: COMFYUI_PATH, or the one whose custom_nodes hold this pack; "" = unknown."""
    around = Path(__file__).resolve().parents[3]
    return os.environ.get("COMFYUI_PATH") or (str(around) if (around / "main.py").is_file() else "")
