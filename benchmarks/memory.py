"""Cost of the backward pass through a VAE: Stable Diffusion's compared with TAESD, all views at once compared
with one at a time.

Uses full-size networks (diffusers' AutoencoderKL and AutoencoderTiny, as in SD 1.5 and the host) with random
weights, because time and memory do not depend on the weights. The similarity of their gradients does; the
benchmark `taesd` measures it.

kept: bytes of activations kept for the backward pass, without the weights; "host x" is this divided by the
host's estimate for a pass without gradients (1767 numbers per pixel), per view. peak: how far memory (of the
GPU, or of the process on Linux) rises during both passes. "1, in blocks": the encoder's blocks are recomputed
one by one, as is done if the activations of not even one view fit. "as targets": encoded and decoded without
gradients, as for the images of image targets.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from devtools.launch import needs_repair, repair_cpu_torch
from lucid_core.diffusion.encoder import Encode, encode_in, encode_in_blocks, encode_in_parts
from lucid_core.optional import load

SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
STATUS = Path("/proc/self/status")  # Linux only
# Per pixel of a view: VAE.memory_used_encode of the host, the same for SD's VAE and TAESD.
HOST_NUMBERS = 1767
ROW = (
    "| {vae} | {dtype} | {at_a_time} | {seconds:.2f} | {x:.2f} | {kept_mb:,.0f} | {host_x:.2f} "
    "| {peak_mb:,.0f} |"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="rounds; reports the shortest time")


def main(as_json: bool, views: int, px: int, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.rand(views, 3, px, px, generator=torch.Generator().manual_seed(0)).to(device)
    cases = encoders(device, views)
    seconds = [float("inf")] * len(cases)
    for _ in range(rounds):  # the cases take turns
        for i, (*_, encode, size) in enumerate(cases):
            seconds[i] = min(seconds[i], timed(encode, images, size))
    rows = []
    for (vae, dtype, at_a_time, encode, size), shortest in zip(cases, seconds):
        kept = kept_bytes(encode, images, size)
        estimate = HOST_NUMBERS * px * px * views * dtype.itemsize
        rows.append(
            {
                "vae": vae,
                "dtype": str(dtype).removeprefix("torch."),
                "at_a_time": at_a_time,
                "seconds": shortest,
                "x": shortest / seconds[0],
                "kept_mb": kept / 1e6,
                "host_x": kept / estimate,
                "peak_mb": peak_bytes(encode, images, size) / 1e6,
            }
        )
    if as_json:
        print(json.dumps({"device": device, "views": views, "px": px, "rows": rows}))
        return
    print(f"{views} views of {px} px on {device}, forward and backward\n")
    print(
        "| VAE | type | views at a time | s | x | kept MB | host x | peak MB "
        "|\n|---|---|---|---:|---:|---:|---:|---:|"
    )
    print("\n".join(ROW.format(**row) for row in rows))


def encoders(device: str, views: int) -> list[tuple[str, torch.dtype, str, Encode, int]]:
    """(VAE, dtype, label of the way of encoding, encode function, views per call)."""
    if needs_repair():
        repair_cpu_torch()
    diffusers = load("diffusers", "diffusers")
    diffusers.utils.logging.set_verbosity_error()
    from diffusers.models.attention_processor import Attention
    from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    full, tiny = diffusers.AutoencoderKL(**SD_VAE), diffusers.AutoencoderTiny()
    of_full = lambda vae, x: vae.encode(x).latent_dist.mode()
    of_tiny = lambda vae, x: vae.encode(x).latents
    pictured = lambda vae, ask, x: vae.decode(ask(vae, x)).sample
    dtypes = (
        (torch.float32, torch.bfloat16) if device == "cpu" else (torch.float32, torch.bfloat16, torch.float16)
    )
    found = []
    for name, vae, ask in (("SD", full, of_full), ("TAESD", tiny, of_tiny)):
        for dtype in dtypes:
            whole, blocks = (
                type(vae).from_config(vae.config).to(device, dtype).eval().requires_grad_(False)
                for _ in range(2)
            )
            encode_in_blocks(blocks, (ResnetBlock2D, Attention, AutoencoderTinyBlock))
            for at_a_time, own, size in (
                (f"{views}", whole, views),
                ("1", whole, 1),
                ("1, in blocks", blocks, 1),
            ):
                encode = lambda x, own=own, ask=ask, dtype=dtype: encode_in(dtype, lambda p: ask(own, p), x)
                found.append((name, dtype, at_a_time, encode, size))
            picture = lambda p, own=whole, ask=ask: pictured(own, ask, p)
            picture = torch.no_grad()(lambda x, picture=picture, dtype=dtype: encode_in(dtype, picture, x))
            found.append((name, dtype, f"{views}, as targets", picture, views))
            each = lambda x, picture=picture: torch.cat([picture(view) for view in x.split(1)])
            found.append((name, dtype, "1, as targets", each, views))
    return found


def encoded(encode: Encode, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    pixels = images.clone().requires_grad_()
    return pixels, encode(pixels) if size == len(images) else encode_in_parts(encode, pixels, size)


def timed(encode: Encode, images: Tensor, size: int) -> float:
    """Seconds of the forward and backward pass."""
    begun = time.perf_counter()
    pixels, latents = encoded(encode, images, size)
    if latents.requires_grad:
        latents.sum().backward()
        pixels.grad.sum().item()
    return time.perf_counter() - begun


def kept_bytes(encode: Encode, images: Tensor, size: int) -> int:
    storages = {}

    def note(x: Tensor) -> Tensor:
        if not isinstance(x if x._base is None else x._base, torch.nn.Parameter):  # nor a view of one
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        encoded(encode, images, size)
    return sum(storages.values())


def peak_bytes(encode: Encode, images: Tensor, size: int) -> int:
    """Rise of memory during the forward and backward pass, in bytes; 0 if it cannot be measured."""
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed(encode, images, size)
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return 0
    read = lambda name: (
        next(int(row.split()[1]) for row in STATUS.read_text().splitlines() if row.startswith(name)) * 1024
    )
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc keeps would hide part of the rise
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    timed(encode, images, size)
    return read("VmHWM") - before
