"""The CPU rasterizer beside the host's RenderSplat: same splats, camera, size and process, runs taken in turn.

RenderSplat has no gradient, so its forward stands beside both our forward and our forward + backward
(projection, sorting and the gradients of every parameter included).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lucid_core.cameras import Cameras, turntable
from lucid_core.gaussians import SH_C0, Splats
from lucid_core.rasterize import rasterize, reference

BESIDE_THE_HOST = ((100_000, 512), (10_000, 128))  # splats, pixels
GROWTH = ((1_000, 512), (10_000, 512), (100_000, 512), (1_000_000, 512))
REPEATS = 7
RADIUS, FOVY_DEG = 4.0, 31.5


@dataclass(frozen=True)
class Row:
    """Medians in seconds; the factors are host_s over ours."""

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
    from demo.launch import needs_repair, repair_cpu_torch

    if needs_repair():
        repair_cpu_torch()
    sys.path.insert(0, str(find_host()))  # ahead of this repository, whose nodes/ would hide the host's nodes.py
    from comfy.cli_args import args

    args.cpu = True
    from comfy_extras.nodes_gaussian_splat import _lookat_camera_info, _render_gaussian

    def render(splats: Splats, px: int):
        # the world is the viewer's there: (x, y, z) -> (x, -y, -z)
        camera_info = _lookat_camera_info((0.0, 0.0, RADIUS), (0.0, 0.0, 0.0), FOVY_DEG, "cpu")
        rgb = (splats.sh[:, 0] * SH_C0 + 0.5).clamp(0, 1)
        quats = torch.nn.functional.normalize(splats.quats, dim=-1)
        with torch.no_grad():
            return _render_gaussian(
                splats.means, rgb, splats.opacities, splats.scales, quats, px, px, 1.0, (0.0, 0.0, 0.0), camera_info
            )

    return render


def ball(n: int, seed: int = 0) -> Splats:
    """n splats of scale 0.01 and random opacity, evenly in the unit ball."""
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


def forward_backward(splats: Splats, cameras: Cameras, px: int) -> None:
    splats = splats.map(lambda x: x.detach().requires_grad_())
    render = rasterize(splats, cameras, px, px)
    render.info["means2d"].retain_grad()
    render.rgb.backward(torch.ones_like(render.rgb))


def measure(n: int, px: int, host: Callable[[Splats, int], object] | None) -> Row:
    splats, cameras = ball(n), turntable(1, 0.0, RADIUS, FOVY_DEG, px, px)
    jobs = {
        "forward": lambda: forward(splats, cameras, px),
        "forward_backward": lambda: forward_backward(splats, cameras, px),
    }
    if host:
        jobs["host"] = lambda: host(splats, px)
    seconds = {name: [] for name in jobs}
    for repeat in range(REPEATS + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if repeat:  # the first run warms up
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    host_s = median.get("host")
    return Row(
        splats=n,
        px=px,
        host_s=host_s,
        forward_s=median["forward"],
        forward_backward_s=median["forward_backward"],
        forward_x=host_s and host_s / median["forward"],
        forward_backward_x=host_s and host_s / median["forward_backward"],
    )


def pairs(n: int, px: int) -> float:
    """Pairs of a pixel and a splat whose alpha reaches 1/255: the areas of the ellipses, image borders ignored."""
    splats, cameras = ball(n), turntable(1, 0.0, RADIUS, FOVY_DEG, px, px)
    means_cam = splats.means @ cameras.viewmats[0, :3, :3].T + cameras.viewmats[0, :3, 3]
    covars2d = reference.project_covariances(splats, means_cam[None], cameras, px, px)[0]  # (N, 2, 2)
    strength = (255 * splats.opacities).clamp_min(1).log()
    return (2 * math.pi * strength * covars2d.det().sqrt()).sum().item()


def peak_gb() -> float:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def table(rows: list[Row]) -> str:
    heads = ("splats", "px", "host ms", "forward ms", "fwd+bwd ms", "forward x", "fwd+bwd x", "Mpairs/s/core")
    lines = [" ".join(f"{head:>13}" for head in heads)]
    for row in rows:
        times = (row.host_s, row.forward_s, row.forward_backward_s)
        rate = pairs(row.splats, row.px) / row.forward_s / torch.get_num_threads()
        cells = [str(row.splats), str(row.px)]
        cells += [f"{t * 1e3:.1f}" if t else "-" for t in times]
        cells += [f"{x:.1f}" if x else "-" for x in (row.forward_x, row.forward_backward_x)]
        lines.append(" ".join(f"{cell:>13}" for cell in (*cells, f"{rate / 1e6:.0f}")))
    return "\n".join(lines)


def main(as_json: bool) -> None:
    host = host_renderer()
    rows = [measure(n, px, host) for n, px in BESIDE_THE_HOST]
    rows += [measure(n, px, None) for n, px in GROWTH]
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{torch.get_num_threads()} threads, medians of {REPEATS} runs; host: ComfyUI's RenderSplat, forward only.")
    print("Mpairs: million (pixel, splat) pairs with alpha >= 1/255, over the whole forward's time.\n")
    print(table(rows))
    if sys.platform != "win32":
        print(f"\npeak memory of this process {peak_gb():.1f} GB")
