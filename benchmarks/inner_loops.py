"""What the CPU rasterizer's two hottest loops do and what that costs: kernel times, steps counted, instructions read.

The unit is the row step: one splat meets 16 pixels of one row of a tile. Its instructions are those that LLVM made here,
counted in the disassembly, not guessed.
"""

from __future__ import annotations

import math
import platform
import re
import time
from collections import Counter
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from lucid_core.cameras import Cameras
from lucid_core.gaussians import Splats
from lucid_core.rasterize import cpu, cpu_blend, rasterize
from lucid_core.rasterize.cpu_bins import TILE

LOOPS = {"blend": "_blend_tile", "blend_backward": "_pair_backward"}  # kernel -> the function that holds its loop
REPEATS = 7
# x86-64, the first that matches; p packed, s scalar
KINDS = {
    "packed fma": r"vfn?m(add|sub)\w*ps",
    "packed mul": r"vmulps",
    "packed add": r"v(add|sub)ps",
    "packed min/max": r"v(min|max)ps",
    "packed compare": r"vcmp\w*ps|vptest\w*",
    "packed reciprocal": r"vrcp\w*ps|vdivps",
    "broadcast": r"vbroadcast\w*",
    "packed move": r"vmov[au]p[sd]|vblend\w*|v?(and|xor|or)p[sd]",
    "scalar float": r"v\w+(ss|sd)|vcvt\w+",
    "integer and jump": r"\w+",
}


def kernel_seconds(job: Callable[[], object]) -> dict[str, float]:
    """Kernel -> its shortest time in REPEATS runs of `job`, dispatch to threads included."""
    best, spread = {}, cpu.spread

    def timed(kernel, *args) -> None:
        start = time.perf_counter()
        spread(kernel, *args)
        best[kernel.__name__] = min(best.get(kernel.__name__, math.inf), time.perf_counter() - start)

    cpu.spread = timed
    try:
        for _ in range(REPEATS):
            job()
    finally:
        cpu.spread = spread
    return best


@numba.njit
def _count_steps(records, pairs, offsets, ends, tiles_x, tiles):
    """Row steps that the blending takes: rows within the tile that are not missed; ends (tiles,) where each stops."""
    steps = 0
    for t in range(ends.shape[0]):
        left, top = t % tiles % tiles_x * TILE, t % tiles // tiles_x * TILE
        for k in range(min(ends[t], offsets[t + 1] - offsets[t])):
            n = pairs[offsets[t] + k]
            first, end = cpu_blend._rows(records, n, top)
            for j in range(first, end):
                dy = np.float32(top + j + 0.5) - records[n, 1]
                u = records[n, 2] * (np.float32(left + 0.5) - records[n, 0]) + records[n, 3] * dy
                steps += not cpu_blend._row_misses(u, records[n, 2], records[n, 4] * dy * dy, records[n, 10])
    return steps


def row_steps(grad_fn, px: int) -> int:
    """From the node of Blend in a render's graph."""
    bins, stop = grad_fn.bins, grad_fn.saved_tensors[2][..., 0]  # (B, H, W)
    tiles_x = -(-px // TILE)
    margin = tiles_x * TILE - px
    stop = torch.nn.functional.pad(stop, (0, margin, 0, margin), value=-1.0)
    ends = stop.unflatten(2, (tiles_x, TILE)).unflatten(1, (tiles_x, TILE)).amax((2, 4)).flatten()  # (B * tiles,)
    ends = (ends + 1).clamp(0, 2**30).long().numpy()  # the splat that stops a pixel is itself looked at
    return _count_steps(bins.records, bins.pairs, bins.offsets, ends, tiles_x, tiles_x * tiles_x)


def instruction_mix(name: str) -> Counter:
    """Kinds of instruction in one row step of kernel `name`; empty where the machine is not x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Counter()
    kernel = getattr(cpu_blend, name)
    options = {name: value for name, value in kernel.targetoptions.items() if name != "nopython"}
    fresh = numba.njit(**options)(kernel.py_func)  # numba shows no code that came from its cache
    fresh.compile(kernel.signatures[0])
    code = next(iter(fresh.inspect_asm().values()))
    function = re.search(rf"^_ZN\S*{LOOPS[name]}\S*:$(.*?)^\.Lfunc_end", code, re.M | re.S).group(1)
    blocks = [re.findall(r"^\t([a-z]\w*)(.*)$", block, re.M) for block in re.split(r"^\.LBB\S+:", function, flags=re.M)]
    step = max(blocks, key=lambda block: sum(bool(re.fullmatch(KINDS["packed fma"], mnemonic)) for mnemonic, _ in block))
    mix = Counter()
    for mnemonic, operands in step:
        mix[next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, mnemonic))] += 1
        to_memory = mnemonic.startswith("vmov") and operands.rstrip().endswith(")")
        mix["of all: stores"] += to_memory
        mix["of all: loads"] += "(" in operands and not to_memory
    mix["lanes"] = 16 if any("zmm" in operands for _, operands in step) else 8
    return mix


def report(splats: Splats, cameras: Cameras, gradient: Tensor, px: int) -> str:
    def job():
        render = rasterize(splats.map(lambda x: x.detach().requires_grad_()), cameras, px, px)
        steps.append(render.rgb.grad_fn)
        render.rgb.backward(gradient, retain_graph=True)

    steps, threads = [], torch.get_num_threads()
    seconds = kernel_seconds(job)
    count = row_steps(steps[-1], px)
    lines = [f"{len(splats):,} splats, {px} px: {count:,} row steps of {TILE} pixels; ms in each kernel:"]
    lines.append("  " + ", ".join(f"{name} {s * 1e3:.2f}" for name, s in seconds.items()))
    for name in LOOPS:
        ns = seconds[name] * threads / count * 1e9
        lines.append(f"  {name}: {ns:.1f} ns a row step and core, {TILE / ns:.2f} G pixel-splat evaluations a second and core")
        mix = instruction_mix(name)
        if mix:
            lanes, total = mix.pop("lanes"), sum(n for kind, n in mix.items() if not kind.startswith("of all"))
            packed = sum(n for kind, n in mix.items() if kind.startswith(("packed", "broadcast")))
            lines.append(f"    {total} instructions a step, {packed} of them packed ({lanes} lanes), {total / ns:.1f} a ns:")
            lines.append("    " + ", ".join(f"{n} {kind}" for kind, n in mix.most_common() if n))
    return "\n".join(lines)
