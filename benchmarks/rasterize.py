"""The CPU rasterizer compared with the host's RenderSplat: same Gaussians, camera, size and process, in
alternating runs.

RenderSplat has no gradient, so its forward pass is compared with both our forward and our forward + backward
(including projection, sorting and the gradients of every parameter).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lucid_core.cameras import Cameras, turntable
from lucid_core.rasterize import Render, rasterize
from lucid_core.splats import SH_C0, Splats

from . import inner_loops

BESIDE_THE_HOST = ((100_000, 512), (10_000, 128))  # splats, pixels
GROWTH = ((1_000, 512), (10_000, 512), (100_000, 512), (1_000_000, 512))
SECONDS, LEAST = 8.0, 5  # seconds of rounds for each row, and their least number
# Seconds between turns: the threads of torch's last operation keep the cores busy for some milliseconds.
REST = 0.01
TURN = 0.1  # seconds
RADIUS, FOVY_DEG = 4.0, 31.5


@dataclass(frozen=True)
class Row:
    """Shortest times in seconds; the factors are host_s over ours."""

    splats: int
    px: int
    host_s: float | None
    forward_s: float
    forward_backward_s: float
    forward_x: float | None
    forward_backward_x: float | None


def find_host() -> Path:
    """The ComfyUI to compare with."""
    candidates = [Path(p) for p in (os.environ.get("COMFYUI_PATH"), ".host/ComfyUI") if p]
    for path in candidates:
        if (path / "comfy_extras" / "nodes_gaussian_splat.py").is_file():
            return path.resolve()
    tried = ", ".join(str(path) for path in candidates)
    raise SystemExit(f"no ComfyUI with comfy_extras/nodes_gaussian_splat.py in {tried}; set COMFYUI_PATH")


def host_renderer() -> Callable[[Splats, int], object]:
    """The host's RenderSplat on its CPU path, as a function of splats and image size."""
    from devtools.launch import needs_repair, repair_cpu_torch

    if needs_repair():
        repair_cpu_torch()
    # Before this repository, whose nodes/ would hide the host's nodes.py.
    sys.path.insert(0, str(find_host()))
    from comfy.cli_args import args

    args.cpu = True
    from comfy_extras.nodes_gaussian_splat import _lookat_camera_info, _render_gaussian

    def render(splats: Splats, px: int):
        # The host uses the viewer's frame: (x, y, z) -> (x, -y, -z).
        camera_info = _lookat_camera_info((0.0, 0.0, RADIUS), (0.0, 0.0, 0.0), FOVY_DEG, "cpu")
        rgb = (splats.sh[:, 0] * SH_C0 + 0.5).clamp(0, 1)
        quats = torch.nn.functional.normalize(splats.quats, dim=-1)
        with torch.no_grad():
            return _render_gaussian(
                splats.means,
                rgb,
                splats.opacities,
                splats.scales,
                quats,
                px,
                px,
                1.0,
                (0.0, 0.0, 0.0),
                camera_info,
            )

    return render


def ball(n: int, seed: int = 0) -> Splats:
    """n Gaussians of scale 0.01 and random opacity, uniform in the unit ball."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    return Splats(
        means=directions * torch.rand(n, 1, generator=g) ** (1 / 3),
        quats=torch.randn(n, 4, generator=g),
        scales=torch.full((n, 3), 0.01),
        opacities=torch.rand(n, generator=g),
        sh=torch.randn(n, 1, 3, generator=g),
    )


def forward(splats: Splats, cameras: Cameras, px: int) -> None:
    with torch.no_grad():
        rasterize(splats, cameras, px, px)


def forward_backward(splats: Splats, cameras: Cameras, px: int, gradient: Tensor) -> Render:
    """Computes all gradients. `gradient` (B, H, W, 3) is that of the images; its first channel is also
    used for alpha and depth.
    """
    splats, background = splats.map(lambda x: x.detach().requires_grad_()), torch.ones(3, requires_grad=True)
    render = rasterize(splats, cameras, px, px, background=background)
    render.info["means2d"].retain_grad()
    torch.autograd.backward(
        (render.rgb, render.alpha, render.depth), (gradient, gradient[..., :1], gradient[..., :1])
    )
    return render


def scene(n: int, px: int) -> tuple[Splats, Cameras, Tensor]:
    return ball(n), turntable(1, 0.0, RADIUS, FOVY_DEG, px, px), torch.ones(1, px, px, 3)


def shortest(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Name -> shortest seconds. The jobs take turns of TURN seconds, with at least one run each; the
    first round is a warm-up.
    """
    best, end, rounds = dict.fromkeys(jobs, math.inf), math.inf, 0
    while rounds <= LEAST or time.perf_counter() < end:
        for name, job in jobs.items():
            time.sleep(REST)
            turn = time.perf_counter()
            while (start := time.perf_counter()) < turn + TURN:
                job()
                best[name] = min(best[name], time.perf_counter() - start) if rounds else math.inf
        end = end if rounds else time.perf_counter() + SECONDS
        rounds += 1
    return best


def measure(n: int, px: int, host: Callable[[Splats, int], object] | None) -> Row:
    splats, cameras, gradient = scene(n, px)
    jobs = {
        "forward": lambda: forward(splats, cameras, px),
        "forward_backward": lambda: forward_backward(splats, cameras, px, gradient),
    }
    if host:
        jobs["host"] = lambda: host(splats, px)
    best = shortest(jobs)
    host_s = best.get("host")
    return Row(
        splats=n,
        px=px,
        host_s=host_s,
        forward_s=best["forward"],
        forward_backward_s=best["forward_backward"],
        forward_x=host_s and host_s / best["forward"],
        forward_backward_x=host_s and host_s / best["forward_backward"],
    )


def table(rows: list[Row]) -> str:
    heads = (
        "splats",
        "px",
        "host ms",
        "forward ms",
        "fwd+bwd ms",
        "forward x",
        "fwd+bwd x",
        "fwd+bwd us/splat",
    )
    lines = [" ".join(f"{head:>10}" for head in heads)]
    for row in rows:
        times = (row.host_s, row.forward_s, row.forward_backward_s)
        cells = [str(row.splats), str(row.px)]
        cells += [f"{t * 1e3:.1f}" if t else "-" for t in times]
        cells += [f"{x:.1f}" if x else "-" for x in (row.forward_x, row.forward_backward_x)]
        cells += [f"{row.forward_backward_s / row.splats * 1e6:.2f}"]
        lines.append(" ".join(f"{cell:>{max(len(head), 10)}}" for head, cell in zip(heads, cells)))
    return "\n".join(lines)


def peak_gb(n: int, px: int) -> tuple[float, float]:
    """Peak memory of a process in GiB, before and after one forward + backward. Linux only."""

    def peak() -> float:
        status = Path("/proc/self/status").read_text()  # getrusage would return the parent's peak
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 2**20

    forward_backward(*scene(1000, 64)[:2], 64, torch.ones(1, 64, 64, 3))  # loads the code
    splats, cameras, gradient = scene(n, px)
    before = peak()
    forward_backward(splats, cameras, px, gradient)
    return before, peak()


def main(as_json: bool) -> None:
    host = host_renderer()
    rows = [measure(n, px, host) for n, px in BESIDE_THE_HOST]
    rows += [measure(n, px, None) for n, px in GROWTH]
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, shortest run of at least {LEAST} "
        f"turns;"
    )
    print("host: ComfyUI's RenderSplat on the same splats and camera; forward only, as it has no gradient.\n")
    print(table(rows))
    if sys.platform == "linux":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, after = pool.apply(peak_gb, GROWTH[-1])
        print(
            f"\npeak memory of a process at {GROWTH[-1][0]:,} splats, {GROWTH[-1][1]} px: {after:.1f} GB, "
            f"before {before:.1f}"
        )
    for n, px in BESIDE_THE_HOST:
        print("\n" + inner_loops.report(*scene(n, px), px))
