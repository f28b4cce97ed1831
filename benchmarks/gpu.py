"""The three backends on a CUDA GPU: time of forward and forward + backward, memory, and start-up time."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable

import torch

from lucid_core.rasterize import rasterize, to_device
from lucid_core.rasterize.choice import ON_CUDA, reason_against

from .rasterize import scene

BACKENDS = (*ON_CUDA, "numba")
SIZES = ((100_000, 512), (100_000, 1024), (1_000_000, 512), (1_000_000, 1024))  # splats, pixels
REPEATS = 10


def shortest(job: Callable[[], object]) -> float:
    """Seconds of the shortest of REPEATS runs after a warm-up run, with GPU synchronisation."""
    best, wait = float("inf"), torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for repeat in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        job()
        wait()
        best = min(best, time.perf_counter() - start) if repeat else best
    return best


def measure(backend: str, n: int, px: int) -> dict:
    device = torch.device("cpu" if backend == "numba" else "cuda")
    splats, cameras, gradient = scene(n, px)
    splats, cameras, gradient = (
        splats.map(lambda x: x.to(device)),
        to_device(cameras, device),
        gradient.to(device),
    )

    def forward() -> None:
        with torch.no_grad():
            rasterize(splats, cameras, px, px, backend=backend)

    def forward_backward() -> None:
        leaves = splats.map(lambda x: x.detach().requires_grad_())
        rasterize(leaves, cameras, px, px, backend=backend).rgb.backward(gradient)

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    row = {
        "backend": backend,
        "splats": n,
        "px": px,
        "forward_s": shortest(forward),
        "forward_backward_s": shortest(forward_backward),
    }
    return {**row, "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None}


def ready_seconds(backend: str) -> float:
    """Seconds until `backend` has rendered its first splat and gradient, with a new build of gsplat's
    extension.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows locks loaded files
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        start = time.perf_counter()
        reason_against(backend)
        return time.perf_counter() - start


def main(as_json: bool) -> None:
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks gpu: torch finds no CUDA GPU on this machine; for CPUs: python -m benchmarks "
            "rasterize"
        )
    seconds = {name: ready_seconds(name) for name in ON_CUDA}
    out = {name: reason_against(name) for name in BACKENDS if reason_against(name)}
    rows = [measure(backend, n, px) for n, px in SIZES for backend in BACKENDS if backend not in out]
    if as_json:
        print(json.dumps({"ready_s": seconds, "unusable": out, "rows": rows}))
        return
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; shortest of {REPEATS} runs; numba is on "
        f"the CPU."
    )
    print(
        "first render, compilation included: "
        + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    )
    for name, reason in out.items():
        print(f"{name} {reason}")
    print(f"\n{'backend':>10} {'splats':>10} {'px':>6} {'forward ms':>11} {'fwd+bwd ms':>11} {'peak MiB':>9}")
    for row in rows:
        times = f"{row['forward_s'] * 1e3:>11.2f} {row['forward_backward_s'] * 1e3:>11.2f}"
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        print(f"{row['backend']:>10} {row['splats']:>10} {row['px']:>6} {times} {peak:>9}")
