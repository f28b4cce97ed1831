"""Batches of lucid_batch: overhead of a job, two workers against one, random kills, and simulated workers.

overhead_s: time from a job to the next beside the client's run of it, the mean of one worker;
overhead_median_s: its median. speedup_2: 24 small jobs on two workers against one, each a real ComfyUI with
one thread, without each worker's first job; ceiling_2: the same for plain loops of numpy, the most that this
machine gives a second process. kills, lost, double: see kills.py, 20 kills with stand-in hosts.
efficiency_64: work per worker and second beside the ideal until the last job is handed out, 64 simulated
workers with 20 jobs each; with_tail_64 counts the time after it too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from devtools.base import prepare_base
from devtools.fetch import find_host
from devtools.tree import Tree
from lucid_batch.simulate import simulate

from .kills import ROOT, Batch, kill_at_random, with_stand_in

TREE = Tree(ROOT)
JOBS, STEPS = 24, 5
SIMULATED = [(workers, 20 * workers) for workers in (8, 16, 32, 64, 128, 256, 512)]  # workers, jobs
SIMULATED += [(64, 300), (64, 3200)]  # prompts of T3Bench; a long batch
SMALL = {
    **{"LucidPointCloud.count": 500, "LucidISM.surface_share": 0.0, "LucidDream.resolution": 64},
    **{"LucidDream.views": 1, "LucidSave.turntable_frames": 8, "LucidSave.turntable_size": 64},
    "LucidDream.steps": STEPS,
}
PARTS = ("overhead", "speedup", "kills", "simulation")
FOLDERS = ("warm", "workers_1", "workers_2", "kills")  # of the batches
LOOP = """
import time, numpy
a = numpy.random.default_rng(0).random((400, 400)).astype("float32")
count, end = 0, time.monotonic() + 8
while time.monotonic() < end:
    a = numpy.tanh(a @ a / 400)
    count += 1
print(count)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    help = "which to run (default: %(default)s)"
    parser.add_argument("--parts", type=parts_of, default=",".join(PARTS), help=help)
    parser.add_argument("--seed", type=int, default=1, help="of the kills (default: %(default)s)")
    help = f"folder for the batches; it deletes {', '.join(FOLDERS)} there (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default=TREE.root / "output" / "batch", help=help)


def parts_of(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}; there is {', '.join(PARTS)}")
    return parts


def main(as_json: bool, parts: list[str], seed: int, folder: Path) -> None:
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    found = {}
    if "overhead" in parts or "speedup" in parts:
        found |= real_batches(folder, (1, 2) if "speedup" in parts else (1,))
    if "kills" in parts:
        kills = kill_at_random(with_stand_in(folder / "kills", JOBS, 60, 0.05), seed)
        found |= {**asdict(kills), "kills": len(kills.kills)}
    if "simulation" in parts:
        rows = [simulate(workers, jobs) for workers, jobs in SIMULATED]
        of_64 = next(row for row in rows if row.workers == 64)
        found |= {"efficiency_64": round(of_64.throughput, 4), "with_tail_64": round(of_64.efficiency, 4)}
        found["simulated"] = [asdict(row) for row in rows]
    print(json.dumps(found) if as_json else table(found))


def real_batches(folder: Path, workers: tuple[int, ...]) -> dict[str, float]:
    """overhead_s, and with two counts of workers also speedup_2 and ceiling_2."""
    rates, found = {}, {}
    run_batch(folder / "warm", 1, 1)  # compiles the renderer, once for each checkout
    for count in workers:
        reports = run_batch(folder / f"workers_{count}", count, JOBS)
        rates[count] = rate(reports)
        found[f"jobs_a_minute_{count}"] = round(60 * rates[count], 2)
        if count == 1:
            overheads = overheads_of(reports)
            found["overhead_s"] = round(statistics.mean(overheads), 3)
            found["overhead_median_s"] = round(statistics.median(overheads), 3)
    if 2 in rates:
        found["speedup_2"] = round(rates[2] / rates[1], 3)
        found["ceiling_2"] = round(ceiling(), 3)
    return found


def overheads_of(reports: list[dict]) -> list[float]:
    """Seconds from the begin of each job of one worker to that of the next, beside the run."""
    begun = sorted((one["begun"], one["run_seconds"]) for one in reports)
    return [b - a - ran for (a, ran), (b, _) in itertools.pairwise(begun)]


def rate(reports: list[dict]) -> float:
    """Jobs per second once every worker has ended its first job, in which it loads models, to the end."""
    spans = [(one["worker"], one["begun"], one["begun"] + one["seconds"]) for one in reports]
    firsts = {worker: min(end for name, _, end in spans if name == worker) for worker, _, _ in spans}
    since, until = max(firsts.values()), max(end for _, _, end in spans)
    jobs = sum((end - max(begun, since)) / (end - begun) for _, begun, end in spans if end > since)
    return jobs / (until - since)


def run_batch(folder: Path, workers: int, jobs: int) -> list[dict]:
    """Run small jobs on so many ComfyUIs, each with one thread; the reports."""
    comfyui = find_host(TREE, os.environ.get("COMFYUI_PATH"))
    if comfyui is None:
        raise RuntimeError("no ComfyUI is set up; run `python dev.py test`")
    prepare_base(TREE, sys.executable)
    launcher = ROOT / "devtools" / "launch.py"
    host = ("--comfyui", str(comfyui), "--base", str(TREE.base), "--launcher", str(launcher))
    head = ["LucidPrompt.text", "LucidDream.seed", *SMALL]
    rows = [[f"a red mug {number}", number, *SMALL.values()] for number in range(jobs)]
    lines = "\n".join(",".join(map(str, row)) for row in [head, *rows]) + "\n"
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")}
    batch = Batch(folder, jobs, STEPS, (*host, "--workers", str(workers)), one_thread, lines)
    batch.prepare()
    if code := batch.start().wait():
        raise RuntimeError(f"the batch ended with code {code}; see {folder / 'log'}")
    return batch.reports()


def ceiling() -> float:
    """How much two plain loops on one thread each do in the time in which one does its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = lambda: subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, env=environment)
    rates = {}
    for count in (1, 2):
        loops = [start() for _ in range(count)]
        rates[count] = sum(int(loop.communicate()[0]) for loop in loops)
        time.sleep(0.5)
    return rates[2] / rates[1]


def table(found: dict) -> str:
    rows = found.pop("simulated", [])
    text = "\n".join(f"{name}: {value}" for name, value in found.items())
    if rows:
        text += "\n\n| workers | jobs | throughput | with the tail | tail, min | scheduler, ms a job |"
        text += "\n|---:|---:|---:|---:|---:|---:|"
        for row in rows:
            numbers = [row["workers"], row["jobs"], f"{row['throughput']:.3f}", f"{row['efficiency']:.3f}"]
            numbers += [f"{row['tail_s'] / 60:.0f}", f"{1000 * row['scheduler_s']:.1f}"]
            text += "\n| " + " | ".join(map(str, numbers)) + " |"
    return text
