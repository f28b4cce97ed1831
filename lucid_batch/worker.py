"""A worker: runs jobs on one ComfyUI, which it starts itself, or which is given. An actor of Ray runs this
class on a machine of the cluster; it knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from . import checkpoints, models, pictures, version_in
from .api.client import Client, ComfyError, Graph, Progress, output_files
from .jobs import Job, missing_on
from .server import Server, answers
from .store import FULL

STEMS = {".ply": "splat", ".mp4": "video", ".webm": "video", ".glb": "mesh", ".png": "image", ".jpg": "image"}
NO_SPACE = ("No space left on device", "Disk quota exceeded")
PAUSES_S = (2.0, 10.0)  # between attempts to start a server
INTERRUPT_S = 15.0
ENDING_S = 2.0  # a process closes its sockets before it is gone
REFUSED_CHECKPOINT = ("OtherRun", "BadFile")
LOST = (aiohttp.ClientConnectionError, asyncio.TimeoutError)  # causes of a ComfyError: no answer


@dataclass(frozen=True)
class Spec:
    """Settings of a worker.

    name: also its folder. root: the batch's output folder. driver: id of the driver. version: of the pack.
    comfyui, base, python, flags, launcher: of a ComfyUI to start; address: of one that runs, "" = start one.
    models: folders like ComfyUI/models beside the one of `base`. silence_s: time without a message after
    which a server counts as hanging. start_s: time for ComfyUI's start.
    """

    name: str
    root: str
    driver: str
    version: str
    comfyui: str = ""
    base: str = ""
    python: str = sys.executable
    launcher: str = ""
    flags: tuple[str, ...] = ()
    address: str = ""
    models: tuple[str, ...] = ()
    silence_s: float = 900
    start_s: float = 240


@dataclass(frozen=True)
class Result:
    """The outcome of a job.

    outcome: "done", "failed" (may be tried again), "refused" (will always fail), "lost" (the server died or
    hung), "unfit" (this machine cannot do it), "down" (this worker can do nothing more). reason: of all but
    "done". files: name -> content. report: of report.json.
    """

    outcome: str
    reason: str = ""
    files: dict[str, bytes] | None = None
    report: dict[str, Any] | None = None


class Worker:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.server: Server | None = None
        self.client: Client | None = None
        self._info: dict[str, Any] = {}  # of the nodes of the graphs that were seen
        self._hung = ""  # why a given server cannot be used
        self._files: set[tuple[str, str]] = set()  # of the last job, in the server's output folder
        self._last_key = ""
        self._ran_s = 0.0  # the last run of the client
        self._now: tuple[str, float, Progress | None] = ("", 0.0, None)  # job, since when, progress
        self._first: tuple[str, float, int] = ("", 0.0, 0)  # node's id, when, step: for the time left
        self._place()

    def _place(self) -> None:
        """The folder of what outlives this worker: the batch's if this machine sees it, else its own."""
        shared = Path(self.spec.root)
        self.shared = (shared / "drivers" / f"{self.spec.driver}.json").exists()
        self.root = shared if self.shared else Path(tempfile.mkdtemp(prefix="lucid-batch-"))
        self.output = self.root / "servers" / self.spec.driver / self.spec.name

    # ---- the server

    def start(self, graph: Graph, names: list[str]) -> dict[str, Any]:
        """Start the server, or find the given one. Returns what the driver should know: its machine, the
        nodes of `graph`, and the hashes of the models `names`. Raises RuntimeError if that fails.
        """
        self._ensure_server()
        assert self.client is not None
        self._look_at(graph)
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "address": self.client.address,
            "server": self.server.process.pid if self.server and self.server.process else 0,
            "info": self._info,
            "hashes": self.hashes(names),
        }

    def _look_at(self, graph: Graph) -> None:
        """Ask the server about the nodes of a graph: their inputs, and the models that it has."""
        assert self.client is not None
        for kind in {node["class_type"] for node in graph.values()}:
            self._info |= json.loads(self.client.request("GET", f"/object_info/{quote(kind, safe='')}"))

    def _ensure_server(self) -> None:
        """Raises RuntimeError if there is no server to work with, after some attempts."""
        if self._hung:
            raise RuntimeError(self._hung)
        for pause_s in (*PAUSES_S, None):
            try:
                if not self.spec.address:
                    if self.server is None or not self.server.is_alive():
                        self._start_own()
                elif answers(url_of(self.spec.address), 10):
                    self.client = Client(self.spec.address, silence_s=self.spec.silence_s)
                else:
                    raise RuntimeError(f"no ComfyUI answers at {self.spec.address}")
                return
            except (RuntimeError, ValueError, OSError):
                self._stop_server()
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def _start_own(self) -> None:
        self._stop_server()
        spec, base = self.spec, Path(self.spec.base or self.spec.comfyui)
        script = Path(spec.comfyui) / "main.py"
        if not spec.launcher and not script.is_file():
            raise RuntimeError(f"there is no ComfyUI in {spec.comfyui!r} on {socket.gethostname()}")
        packs = [version_in(path) for path in (base / "custom_nodes").glob("*/pyproject.toml")]
        other = [version for version in packs if version not in (None, spec.version)]
        if other:
            raise RuntimeError(
                f"the pack in {base} is {other[0]}, this is {spec.version}; update one of them"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        server = Server(
            Path(spec.comfyui),
            base,
            self.output / "server.log",
            timeout_s=spec.start_s,
            flags=spec.flags,
            output=self.output,
            python=spec.python,
        )
        server.launcher = Path(spec.launcher) if spec.launcher else None
        self.server = server
        try:
            server.__enter__()
        except (RuntimeError, ValueError, OSError):
            self._keep_log()
            raise
        self._files, self._last_key = set(), ""
        self.client = Client(server.address, silence_s=spec.silence_s)

    def _keep_log(self) -> None:
        """Copy the server's log to OUT/logs; its own folder is deleted at the end."""
        if self.shared:
            with contextlib.suppress(OSError):
                (self.root / "logs").mkdir(exist_ok=True)
                shutil.copyfile(self.output / "server.log", self.root / "logs" / f"{self.spec.name}.log")

    def _stop_server(self) -> None:
        if self.server is not None and self.server.process is not None:
            self.server.__exit__(None, None, None)
        self.server = None

    def hashes(self, names: list[str]) -> dict[str, str]:
        """Hashes of models on this machine; empty for a given server, whose files are not ours to read."""
        if self.spec.address:
            return {}
        base = Path(self.spec.base or self.spec.comfyui)
        return models.hashes(names, [base / "models", *map(Path, self.spec.models)])

    # ---- jobs

    def run(self, job: Job, uploads: dict[str, bytes]) -> Result:
        """Run a job to its end. An error of the job or of the server is a Result too.

        uploads: name on the server -> content of the files that the graph reads.
        """
        begun = time.time()
        self._now = (job.key, begun, None)
        try:
            self._ensure_server()
        except (RuntimeError, ValueError, OSError) as error:
            return Result("down", f"{outer_lines(error)} ({socket.gethostname()})")
        try:
            return self._run(job, uploads, begun)
        except ComfyError as error:
            return self._failure(error)
        except OSError as error:
            return Result("down" if error.errno in FULL else "failed", f"{error} ({self._where()})")
        finally:
            self._now = ("", 0.0, None)

    def _run(self, job: Job, uploads: dict[str, bytes], begun: float) -> Result:
        assert self.client is not None
        reason = self._why_unfit(job)
        if reason:
            return Result("unfit", reason)
        graph = copy.deepcopy(job.graph)
        for name, content in uploads.items():
            self.client.upload(name, content)
        nodes = self._resumable(graph) if self.server else []
        if self.server:
            checkpoints.rescue(self.root, job.key)  # before _tidy deletes those of this worker's attempt
            self._tidy(job.key)
            resumed = checkpoints.resume(self.root, job.key, graph, nodes, self.output)
        else:
            resumed = []
            self._cancel_left(graph)
        try:
            entry = self._follow(graph, job.key, nodes)
        except ComfyError as error:
            if not resumed or error.kind not in REFUSED_CHECKPOINT:
                raise
            # Another machine may round the start differently: the job begins anew.
            shutil.rmtree(self.root / "checkpoints" / job.key, ignore_errors=True)
            resumed, graph = [], copy.deepcopy(job.graph)
            entry = self._follow(graph, job.key, nodes)
        files = self._fetch(entry)
        if not files:
            return Result("refused", "the workflow saved no file; add Lucid Save or Save Image")
        report = self._report(job, entry, begun, resumed)
        files |= pictures.of(files)
        files["workflow.json"] = json.dumps(job.graph, indent=2).encode()
        return Result("done", "", files, {**report, "files": sorted(files)})

    def _why_unfit(self, job: Job) -> str:
        """Why this machine cannot do the job; "" if it can."""
        reason = missing_on(self._info, job.graph)
        if reason:  # a model may have arrived since
            self._look_at(job.graph)
            reason = missing_on(self._info, job.graph)
        if not reason:
            own = self.hashes([name for name, digest in job.models.items() if digest])
            other = [name for name, digest in own.items() if digest and digest != job.models[name]]
            reason = f"the model file {other[0]} differs from that of the other machines" if other else ""
        return f"{reason} on {self._where()}" if reason else ""

    def _where(self) -> str:
        return self.spec.address or socket.gethostname()

    def _resumable(self, graph: Graph) -> list[str]:
        """The nodes of a graph that can go on from a checkpoint."""
        inputs = {kind: one.get("input", {}) for kind, one in self._info.items()}
        return [
            name for name, node in graph.items() if "resume" in inputs[node["class_type"]].get("optional", {})
        ]

    def _tidy(self, key: str) -> None:
        """Delete the checkpoints of the job before, and note the new one."""
        if key != self._last_key:
            checkpoints.clear(self.output)
        self._last_key = key

    def _cancel_left(self, graph: Graph) -> None:
        """Cancel runs of the same job on a given server: their worker has died."""
        assert self.client is not None
        queue = json.loads(self.client.request("GET", "/queue"))
        for _, prompt_id, queued, *_ in [*queue["queue_running"], *queue["queue_pending"]]:
            if queued == graph:
                self.client.request("POST", f"/api/jobs/{prompt_id}/cancel")

    def _follow(self, graph: Graph, key: str, nodes: list[str]) -> dict[str, Any]:
        assert self.client is not None
        trail = checkpoints.Trail(self.output, key, nodes) if self.server else None

        def heard(progress: Progress) -> None:
            if trail and not progress.step:
                trail.node_begins(progress.id)
            if progress.step and self._first[0] != progress.id:
                self._first = (progress.id, time.monotonic(), progress.step)
            self._now = (*self._now[:2], progress)

        self._first = ("", 0.0, 0)
        begun = time.monotonic()
        entry: dict[str, Any] = self.client.run(graph, heard)
        self._ran_s = time.monotonic() - begun
        return entry

    def _fetch(self, entry: dict[str, Any]) -> dict[str, bytes]:
        """The output files of a run: splat.ply, video.mp4, splat_2.ply, ..."""
        assert self.client is not None
        kept: dict[str, bytes] = {}
        reported = set()
        for file in output_files(entry):
            place = (file["subfolder"], file["filename"])
            if file["type"] != "output" or place in reported:
                continue
            reported.add(place)
            suffix = Path(file["filename"]).suffix.lower()
            stem = STEMS.get(suffix, Path(file["filename"]).stem)
            number = next(n for n in range(1, 10_000) if number_file(stem, n, suffix) not in kept)
            kept[number_file(stem, number, suffix)] = self.client.view(file)
        if self.server:  # what the server still reports comes from its cache, and it needs the files
            for folder, name in self._files - reported:
                (self.output / folder / name).unlink(missing_ok=True)
        self._files = reported
        return kept

    def _report(self, job: Job, entry: dict[str, Any], begun: float, resumed: list[str]) -> dict[str, Any]:
        spec = self.spec
        return {
            **{"key": job.key, "line": job.line, "label": job.label, "values": job.values},
            **{"worker": spec.name, "host": self._where(), "driver": spec.driver},
            **{"pack": spec.version, "models": job.models, "resumed": resumed},
            **{"begun": round(begun, 3), "seconds": round(time.time() - begun, 3)},
            "run_seconds": round(self._ran_s, 3),  # the client's run alone
            "result": summary_of(entry),
            "scores": scores_of(entry),
        }

    def _failure(self, error: ComfyError) -> Result:
        """The result of a job that failed, or whose server did."""
        reason = str(error).strip()
        if any(words in reason for words in NO_SPACE):
            return Result("down", f"{reason} ({self._where()})")
        if error.node or error.kind:
            refused = bool(error.input) or error.kind.startswith(("value_", "required_", "prompt_"))
            return Result("refused" if refused else "failed", reason)
        died = self.server is not None and self.server.has_ended(ENDING_S)
        if not died and not isinstance(error.__cause__, LOST):  # an HTTP error of a server that works
            return Result("failed", reason)
        if self.server is not None:
            tail = self.server.log_tail().splitlines()[1:][-1:] if died else []
            self._stop_server()
            silent = isinstance(error.__cause__, asyncio.TimeoutError)
            silence = f"sent nothing for {self.spec.silence_s:.0f} s" if silent else "closed the connection"
            why = "died" if died else silence
            return Result("lost", " ".join([f"the ComfyUI on {self._where()} {why}.", *tail]))
        self._free_given()
        return Result("lost", reason)

    def _free_given(self) -> None:
        """End our run on a given server that hangs; one that cannot be freed cannot be used."""
        assert self.client is not None
        try:
            self.client.interrupt(INTERRUPT_S)
            if self.client.is_running():
                self._hung = f"the ComfyUI at {self.spec.address} hangs; restart it"
        except ComfyError:
            pass  # it is dead, and may come back

    # ---- while a job runs; called from other threads

    def progress(self) -> dict[str, Any]:
        """What the table shows: job, node, step, steps, seconds left (None = unknown)."""
        key, _, now = self._now
        if not key or now is None:
            return {"key": key, "node": "", "step": 0, "steps": 0, "left_s": None}
        node, since, first = self._first
        done = now.step - first
        rate = (time.monotonic() - since) / done if node == now.id and done > 0 else None
        left = rate * (now.steps - now.step) if rate is not None else None
        return {"key": key, "node": now.node, "step": now.step, "steps": now.steps, "left_s": left}

    def stop(self, wait_s: float = 15) -> None:
        """End the running job in order, so that a later one can go on from its checkpoint; end the server."""
        key = self._now[0]
        if self.client is not None and key:
            with contextlib.suppress(ComfyError):
                self.client.interrupt(wait_s)
            if self.server and self.shared:
                checkpoints.rescue(self.root, key)
        self._stop_server()
        shutil.rmtree(self.output if self.shared else self.root, ignore_errors=True)


def url_of(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def number_file(stem: str, number: int, suffix: str) -> str:
    return f"{stem}{suffix}" if number == 1 else f"{stem}_{number}{suffix}"


def last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def outer_lines(error: BaseException) -> str:
    """The first and the last line of an error's text: what failed, and the end of the log."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(dict.fromkeys((lines[0], lines[-1])))


def summary_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Steps, evaluations, splats, ... of the last Lucid Dream of a run."""
    found: dict[str, Any] = {}
    for node in entry["outputs"].values():
        for one in node.get("lucid", []):
            found |= {name: value for name, value in one.items() if isinstance(value, int | float | str)}
    return found


def scores_of(entry: dict[str, Any]) -> dict[str, float]:
    """Numbers of reports that the page shows as JSON, such as Lucid Score's."""
    found: dict[str, float] = {}
    for node in entry["outputs"].values():
        for text in node.get("text", []):
            with contextlib.suppress(ValueError, TypeError):
                report = json.loads(text)
                if isinstance(report, dict):
                    found |= {name: value for name, value in report.items() if type(value) in (int, float)}
    return found
