"""Analysis of the CPU rasterizer's two most expensive loops: kernel times, step counts, instruction counts.

The unit is the block step: one Gaussian is evaluated at the 4x4 pixels of one block of a tile. Its
instructions are counted in the assembly that LLVM generates on this machine.
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
from lucid_core.rasterize import cpu, cpu_blend
from lucid_core.rasterize.cpu_bins import TILE
from lucid_core.rasterize.cpu_blend import CHECK, LANES, SIDE
from lucid_core.splats import Splats

LOOPS = {
    "blend": "_blend_tile",
    "blend_backward": "_pair_backward",
}  # kernel -> the function that holds its loop
REPEATS = 7
# x86-64 instructions; the first pattern that matches counts. Suffixes: p packed, s scalar.
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
def _count_steps(records, pairs, offsets, latest, tiles_x, tiles):
    """Number of block steps in blending; latest (B * tiles, LANES): index at which each block's last pixel
    stops.
    """
    steps = 0
    for t in range(latest.shape[0]):
        left, top = t % tiles % tiles_x * TILE, t % tiles // tiles_x * TILE
        for k in range(offsets[t + 1] - offsets[t]):
            n, open = pairs[offsets[t] + k], 0
            for m in range(LANES):
                open |= (latest[t, m] >= k // CHECK * CHECK) << m
            dx, dy = np.float32(left + 0.5) - records[n, 0], np.float32(top + 0.5) - records[n, 1]
            mask = cpu_blend._blocks(records, n, left, top, dx, dy, open)
            while mask:
                mask &= mask - 1
                steps += 1
    return steps


def block_steps(grad_fn, px: int) -> int:
    """Number of block steps of a render, from the Blend node in its autograd graph."""
    bins, stop = grad_fn.bins, grad_fn.saved_tensors[2][..., 0]  # (B, H, W)
    tiles_x = -(-px // TILE)
    margin = tiles_x * TILE - px
    stop = torch.nn.functional.pad(stop, (0, margin, 0, margin), value=-1.0)
    blocks = stop.unflatten(2, (tiles_x, SIDE, SIDE)).unflatten(1, (tiles_x, SIDE, SIDE)).amax((3, 6))
    latest = blocks.transpose(2, 3).reshape(-1, LANES).numpy()  # (B, rows, SIDE, columns, SIDE) before
    return _count_steps(bins.records, bins.pairs, bins.offsets, latest, tiles_x, tiles_x * tiles_x)


def instruction_mix(name: str) -> Counter:
    """Counts of instruction kinds in one block step of kernel `name`; empty if the machine is not x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Counter()
    kernel = getattr(cpu_blend, name)
    options = {name: value for name, value in kernel.targetoptions.items() if name != "nopython"}
    fresh = numba.njit(**options)(kernel.py_func)  # numba shows no code that came from its cache
    fresh.compile(kernel.signatures[0])
    code = next(iter(fresh.inspect_asm().values()))
    function = re.search(rf"^_ZN\S*{LOOPS[name]}\S*:$(.*?)^\.Lfunc_end", code, re.M | re.S).group(1)
    function = re.sub(
        r"^\tj.*$", r"\g<0>\n.LBBnext:", function, flags=re.M
    )  # a jump ends a block as a label does
    blocks = [
        re.findall(r"^\t([a-z]\w*)(.*)$", block, re.M)
        for block in re.split(r"^\.LBB\S+:", function, flags=re.M)
    ]
    step = max(
        blocks,
        key=lambda block: sum(bool(re.fullmatch(KINDS["packed fma"], mnemonic)) for mnemonic, _ in block),
    )
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
        leaves, black = splats.map(lambda x: x.detach().requires_grad_()), torch.zeros(len(cameras), 3)
        rgb, *_ = cpu.render(leaves, cameras, px, px, splats.sh_degree, black)
        steps.append(rgb.grad_fn)
        rgb.backward(gradient, retain_graph=True)

    steps, threads = [], torch.get_num_threads()
    seconds = kernel_seconds(job)
    count = block_steps(steps[-1], px)
    lines = [f"{len(splats):,} splats, {px} px: {count:,} block steps of {LANES} pixels; ms in each kernel:"]
    lines.append("  " + ", ".join(f"{name} {s * 1e3:.2f}" for name, s in seconds.items()))
    for name in LOOPS:
        ns = seconds[name] * threads / count * 1e9
        rate = f"{LANES / ns:.2f} G pixel-splat evaluations a second and core"
        lines.append(f"  {name}: {ns:.1f} ns a block step and core, {rate}")
        mix = instruction_mix(name)
        if mix:
            lanes, total = (
                mix.pop("lanes"),
                sum(n for kind, n in mix.items() if not kind.startswith("of all")),
            )
            packed = sum(n for kind, n in mix.items() if kind.startswith(("packed", "broadcast")))
            lines.append(
                f"    {total} instructions a step, {packed} of them packed ({lanes} lanes), {total / ns:.1f} "
                f"a ns:"
            )
            lines.append("    " + ", ".join(f"{n} {kind}" for kind, n in mix.most_common() if n))
    return "\n".join(lines)
