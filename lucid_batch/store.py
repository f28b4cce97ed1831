"""The output folder: results, failures, and who works on what.

    jobs/KEY/            a finished job: splat.ply, video.mp4, sheet.jpg, report.json, ...
    failed/KEY.json      a job that was given up, with the reasons of all its attempts
    claims/KEY.N         the N-th driver that took the job; the highest N holds it
    drivers/ID.json      a driver that runs; it touches this file every few seconds
    checkpoints/, servers/   see checkpoints.py
    logs/WORKER.log      the log of a ComfyUI that could not be started
    index.html, index.sqlite  see gallery.py

Claims are files made with O_EXCL, because this is atomic on network file systems too, where sqlite's locks
are not reliable. A claim is never renamed or removed: a claim of a driver that has ended or died is overruled
by KEY.N+1, which one driver alone can create. A result is a folder that is written elsewhere and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import Mistake

FOLDERS = ("jobs", "failed", "claims", "drivers", "partial", "checkpoints", "servers")
BEAT_S, LEASE_S = 5.0, 60.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # trouble of the disk, not of a job


def machine() -> str:
    """This machine, boot and container: process ids can be compared within it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_runs(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # there is no harmless question; the lease decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path of this process; what is written there becomes `path` at the end.

    Readers see the old file or the complete new one. Raises OSError.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write `path` atomically; see `whole`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if it is not there or not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class Store:
    """One driver's view of the output folder `root`. `clock` is in seconds. A driver on another machine that
    has not touched its file for `lease_s` seconds counts as dead.
    """

    def __init__(
        self, root: Path, clock: Callable[[], float] = time.monotonic, lease_s: float = LEASE_S
    ) -> None:
        self.root, self.clock, self.lease_s = Path(root), clock, lease_s
        self.driver = uuid.uuid4().hex[:12]
        self._seen: dict[str, tuple[int, float]] = {}  # other driver -> (last touch, when we noticed it)
        self._claims: dict[str, int] = {}  # key -> N of our claim
        self._old_failures: dict[str, str] = {}  # of before this driver: they are tried again
        self._ended = threading.Event()

    # ---- the driver itself

    def open(self, beat: bool = True) -> None:
        """Make the folders and register this driver. Raises Mistake if the folder cannot be written."""
        try:
            for name in FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
            write_whole(
                self.root / "drivers" / f"{self.driver}.json",
                json.dumps({"machine": machine(), "pid": os.getpid(), "started": time.time()}),
            )
        except OSError as error:
            raise Mistake(f"the output folder {self.root} cannot be written: {error.strerror}") from error
        self._old_failures = {key: found["by"] for key, found in self.failures().items()}
        self._clear_partial_results()
        if beat:
            threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        """Unregister this driver: others may take its jobs."""
        self._ended.set()
        shutil.rmtree(self.root / "servers" / self.driver, ignore_errors=True)
        (self.root / "drivers" / f"{self.driver}.json").unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.root / "drivers" / f"{self.driver}.json")

    def _clear_partial_results(self) -> None:
        """Delete the unfinished results of drivers that are dead."""
        for folder in (self.root / "partial").iterdir():
            if not self.is_alive(folder.name.partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)

    def is_alive(self, driver: str) -> bool:
        """Whether a driver still runs. One on another machine is known to be dead only after the lease."""
        path = self.root / "drivers" / f"{driver}.json"
        found = read_json(path)
        if driver == self.driver or found is None:
            return driver == self.driver
        if found["machine"] == machine() and not process_runs(found["pid"]):
            return False
        try:
            touched = path.stat().st_mtime_ns
        except OSError:
            return False
        now = self.clock()
        if self._seen.get(driver, (None, 0.0))[0] != touched:
            self._seen[driver] = (touched, now)
        return now - self._seen[driver][1] <= self.lease_s

    # ---- jobs

    def is_done(self, key: str) -> bool:
        return (self.root / "jobs" / key / "report.json").exists()

    def why_given_up(self, key: str) -> str:
        """Why a driver gave the job up since this one began; "" if none did."""
        found = read_json(self.root / "failed" / f"{key}.json")
        new = found is not None and self._old_failures.get(key) != found["by"]
        return (found["reason"] or "for no known reason") if found and new else ""

    def claim(self, key: str) -> bool:
        """Take a job; False if another living driver has it, or it is done."""
        if key in self._claims:
            return self._claims[key] == self._last_claim(key)
        last = self._last_claim(key)
        if last >= 0:
            holder = read_json(self.root / "claims" / f"{key}.{last}")
            # A claim that is not whole yet is as new as can be; after the lease its driver was killed there.
            if self.is_alive(holder["driver"] if holder else f"?{key}.{last}") or (
                holder is None and self._is_new(f"{key}.{last}")
            ):
                return False
        try:
            with (self.root / "claims" / f"{key}.{last + 1}").open("x", encoding="utf-8") as file:
                json.dump({"driver": self.driver}, file)
        except FileExistsError:
            return False
        self._claims[key] = last + 1
        return not self.is_done(key)

    def _is_new(self, claim: str) -> bool:
        first = self._seen.setdefault(claim, (0, self.clock()))[1]
        return self.clock() - first <= self.lease_s

    def _last_claim(self, key: str) -> int:
        last = -1
        while (self.root / "claims" / f"{key}.{last + 1}").exists():
            last += 1
        return last

    def publish(self, key: str, files: dict[str, bytes], report: dict[str, Any]) -> bool:
        """Store a result atomically. False if another driver's is there already.

        Raises OSError if the disk is full; nothing is left then.
        """
        part = self.root / "partial" / f"{self.driver}-{key}"
        try:
            part.mkdir(parents=True)
            whole = {**files, "report.json": (json.dumps(report, indent=2) + "\n").encode()}
            for name, content in whole.items():
                with (part / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            try:
                part.rename(self.root / "jobs" / key)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) and self.is_done(key):
                    return False
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.root / "checkpoints" / key, ignore_errors=True)
        return True

    def give_up(self, key: str, record: dict[str, Any]) -> None:
        """Keep why a job failed; the next run of the command tries it again."""
        record = {**record, "by": f"{self.driver}-{uuid.uuid4().hex[:6]}"}
        write_whole(self.root / "failed" / f"{key}.json", json.dumps(record, indent=2) + "\n")

    def failures(self) -> dict[str, dict[str, Any]]:
        """Key -> the record of each job that was given up and has no result."""
        found = {path.stem: read_json(path) for path in (self.root / "failed").glob("*.json")}
        return {key: record for key, record in found.items() if record and not self.is_done(key)}
