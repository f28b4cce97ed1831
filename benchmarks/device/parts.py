"""The parts, one per process: `python -m benchmarks.device.parts NAME --out DIR --seconds N [--cpu]` prints a
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from demo import checkpoint as demo_checkpoint
from devtools.base import PACK, PRIOR, link_folder
from devtools.fetch import find_host
from devtools.host import Server
from devtools.tree import Tree
from lucid_core.settings import replace_settings
from workflows.api.client import Client, ComfyError, Progress, fill, read_graph

TREE = Tree(Path(__file__).resolve().parents[2])
GRAPH = TREE.root / "workflows" / "api" / "text_to_splat_sd.json"
RESUME = re.compile(r"resume: (\S+\.safetensors)")


@dataclass(frozen=True)
class Sizes:
    checkpoint: str
    views: int
    px: int
    splats: int
    steps: int
    renders: tuple[tuple[int, int], ...]  # splats, pixels
    limit_gb: float  # limit of torch's allocations in the run with little memory; 0 = no limit


REAL = Sizes(
    "random_sd15_fp16.safetensors", 4, 512, 100_000, 10, ((100_000, 512), (1_000_000, 512)), limit_gb=4.0
)
TOYS = Sizes(PRIOR, 2, 64, 300, 3, ((1_000, 64),), limit_gb=0.0)


# --- compile, checkpoint, tests


def compile_gsplat(out: Path, sizes: Sizes, seconds: int) -> dict:
    """Seconds until gsplat has rendered its first splat. Its extension is then built for the other parts."""
    from lucid_core.rasterize.choice import reason_against

    begun = time.perf_counter()
    reason = reason_against("gsplat")
    return {"gsplat_ready_s": round(time.perf_counter() - begun, 1), "unusable": reason, **gpu()}


def write_checkpoint(out: Path, sizes: Sizes, seconds: int) -> dict:
    file = checkpoint_of(out, sizes)
    if sizes is TOYS:
        return {"bytes": demo_checkpoint.write(file).stat().st_size}
    script = Path(__file__).with_name("checkpoint.py")
    command = [sys.executable, script, comfyui(), file]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def run_tests(out: Path, sizes: Sizes, seconds: int) -> dict:
    """Run tests/gpu, which compares the backends with the reference."""
    command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ".", "-q", "tests/gpu"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"], stdout=subprocess.PIPE, text=True, cwd=TREE.root
    )
    print(result.stdout, file=sys.stderr)
    counts = {
        name: int(n)
        for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", result.stdout.splitlines()[-1])
    }
    if result.returncode not in (0, 5):
        print(json.dumps(counts))
        raise SystemExit(f"tests/gpu: {result.stdout.splitlines()[-1]}")
    return counts


# --- the real host


@contextmanager
def host(out: Path, sizes: Sizes) -> Iterator[Client]:
    """A ComfyUI server with this pack, the tests' nodes and the checkpoint."""
    base = out / "base"
    for folder in ("custom_nodes", "input", "output", "models/checkpoints"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link_folder(base / "custom_nodes" / PACK, TREE.root)
    link_folder(base / "custom_nodes" / "lucid_test", TREE.root / "tests" / "host" / "pack")
    page = () if find_spec("comfyui_frontend_package") else ("--front-end-root", str(base / "input"))
    log = out / f"server-{os.getpid()}.log"
    log.touch()
    try:
        with Server(comfyui(), base, log, flags=page) as server:
            yield Client(server.address, server.log_tail)
    finally:
        print(log.read_text(errors="replace"), file=sys.stderr)


def run_host(out: Path, sizes: Sizes, seconds: int) -> dict:
    """Run text_to_splat_sd through /prompt: completely, cancelled and resumed, with little memory, and again
    without a memory limit.
    """
    found: dict = {}
    with host(out, sizes) as client:
        found["system"] = client_devices(client)
        graph = shipped(sizes, seed=1)
        found["run"] = summary_of(client.run(graph))
        found["warm_run"] = summary_of(client.run(shipped(sizes, seed=2)))
        found["image_targets"] = summary_of(client.run(shipped(sizes, seed=6, surface_share=1.0)))
        longer = shipped(sizes, seed=3, steps=4 * sizes.steps)
        text = cancelled(client, longer, sizes.steps // 2)
        found["cancelled"] = text.splitlines()[0]
        name = RESUME.search(text)
        if name is None:
            raise RuntimeError(f"the cancelled run left no checkpoint: {text}")
        found["resumed"] = summary_of(client.run(fill(longer, {"LucidDream": {"resume": name[1]}})))
        found["little_memory"] = summary_of(client.run(limited(shipped(sizes, seed=4), sizes.limit_gb)))
        found["after_it"] = summary_of(client.run(limited(shipped(sizes, seed=5), 0.0)))
    log = (out / f"server-{os.getpid()}.log").read_text(errors="replace")
    found["dynamic_vram"] = "DynamicVRAM support detected and enabled" in log
    told = (
        line.strip()[:160]
        for line in log.splitlines()
        if re.search("no memory|little memory|rasterizer", line)
    )
    found["said"] = sorted(set(told))
    return found


def shipped(sizes: Sizes, seed: int, steps: int | None = None, surface_share: float = 0.0) -> dict:
    """The shipped workflow for a real checkpoint, at `sizes`."""
    return fill(
        read_graph(str(GRAPH)),
        {
            "CheckpointLoaderSimple": {"ckpt_name": sizes.checkpoint},
            "LucidPointCloud": {"count": sizes.splats},
            "LucidISM": {"surface_share": surface_share},
            "LucidDream": {
                "steps": steps or sizes.steps,
                "views": sizes.views,
                "resolution": sizes.px,
                "seed": seed,
            },
            "LucidSave": {"turntable_frames": 8, "turntable_size": sizes.px},
        },
    )


def limited(graph: dict, gb: float) -> dict:
    """`graph` with the tests' node that limits torch's memory, between the checkpoint and Lucid ISM."""
    graph = json.loads(json.dumps(graph))
    ism = next(node for node in graph.values() if node["class_type"] == "LucidISM")
    inputs = {"model": ism["inputs"]["model"], "gb": gb, "nonce": time.time_ns() % 2**31}
    graph["limit"] = {"class_type": "LucidTestLimit", "inputs": inputs}
    ism["inputs"]["model"] = ["limit", 0]
    return graph


def summary_of(entry: dict) -> dict:
    """Lucid Dream's summary of its run."""
    return next(output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)


def cancelled(client: Client, graph: dict, step: int) -> str:
    """Run `graph` and interrupt it at `step` of Lucid Dream; returns the node's last text."""
    said, asked = [""], threading.Event()

    def follow(progress: Progress) -> None:
        if progress.text:
            said.append(progress.text)
        if progress.node == "LucidDream" and progress.step >= step and not asked.is_set():
            asked.set()
            threading.Thread(target=client.interrupt).start()

    try:
        client.run(graph, follow)
    except ComfyError as error:
        if error.kind != "interrupted":
            raise
        return said[-1]
    raise RuntimeError("the run ended before it was cancelled")


def client_devices(client: Client) -> dict:
    system = json.loads(client.request("GET", "/system_stats"))
    return {
        "comfyui": system["system"]["comfyui_version"],
        "torch": system["system"]["pytorch_version"],
        "devices": [device["name"] for device in system["devices"]],
    }


def split_step(out: Path, sizes: Sizes, seconds: int) -> dict:
    """Time of a step in the model, the VAE, the renderer and the rest, for different numbers of views."""
    graph = shipped(sizes, seed=1)
    of = lambda kind: next(name for name, node in graph.items() if node["class_type"] == kind)
    inputs = {"guidance": [of("LucidISM"), 0], "splat": [of("LucidPointCloud"), 0]}
    inputs |= {"views": sizes.views, "resolution": sizes.px}
    after = ("LucidDream", "LucidSave", "PreviewGaussianSplat")
    graph = {name: node for name, node in graph.items() if node["class_type"] not in after}
    graph["split"] = {"class_type": "LucidTestSplit", "inputs": inputs | {"steps": sizes.steps}}
    with host(out, sizes) as client:
        return {"rows": client.run(graph)["outputs"]["split"]["rows"]}


# --- renderers, training


def measure_backends(out: Path, sizes: Sizes, seconds: int) -> dict:
    from benchmarks.gpu import BACKENDS, measure
    from lucid_core.rasterize.choice import reason_against

    unusable = {name: reason for name in BACKENDS if (reason := reason_against(name))}
    rows, begun = [], time.monotonic()
    for n, px in sizes.renders:
        for backend in (name for name in BACKENDS if name not in unusable):
            if time.monotonic() - begun < 0.7 * seconds:  # a million Gaussians on numba may take the rest
                rows.append(measure(backend, n, px))
    return {"unusable": unusable, "rows": rows}


def train_prior(out: Path, sizes: Sizes, seconds: int) -> dict:
    """Train the demo prior from scratch in the remaining time."""
    from demo.train import Config, train

    config, device = Config(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    minutes = seconds / 60 * 0.8  # the rest is for rendering the images
    if sizes is TOYS:
        config = replace_settings(config, images=600)
    config = replace_settings(
        config,
        vae=replace(config.vae, minutes=0.35 * minutes),
        unet=replace(config.unet, minutes=0.5 * minutes),
    )
    lines: list[str] = []
    train(out / "train", config, device, report=lines.append)
    return {"device": device.type, "said": lines[-3:]}


def gpu() -> dict:
    if not torch.cuda.is_available():
        return {"gpu": None}
    return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}


def comfyui() -> Path:
    found = find_host(TREE, os.environ.get("COMFYUI_PATH"))
    if found is None:
        raise SystemExit("no ComfyUI is set up; run `python dev.py test`")
    return found


def checkpoint_of(out: Path, sizes: Sizes) -> Path:
    folder = out / "base" / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / sizes.checkpoint


PARTS = {
    "compile": compile_gsplat,
    "checkpoint": write_checkpoint,
    "tests": run_tests,
    "host": run_host,
    "split": split_step,
    "backends": measure_backends,
    "train": train_prior,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device.parts", description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    print(json.dumps(PARTS[options.part](options.out, TOYS if options.cpu else REAL, options.seconds)))


if __name__ == "__main__":
    main()
