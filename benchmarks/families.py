"""Time of a Lucid Dream step compared with the host's own evaluation of the same model, by model family, in a
running ComfyUI.

Uses the small models of tests/host/families.py with the stock loaders. After each step the host's
calc_cond_batch repeats the model evaluations of that step, then the VAE runs forward and backward. step x:
(steps - VAE) / host, which shows what render, regularisers, optimiser and our overhead add to the model.
peak: how far process memory rises in the first two steps, compared with the loaded model; each family has a
new process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from devtools.base import PACK, link_folder, prepare_base
from devtools.fetch import find_host
from devtools.host import Server
from devtools.tree import Tree
from workflows.api.client import Client

TREE = Tree(Path(__file__).resolve().parents[1])
FAMILIES = (
    "demo",
    "sd15",
    "sd2",
    "sd2_v",
    "sdxl",
    "sd3",
    "flux",
    "flux2",
    "chroma",
    "z_image",
    "qwen_image",
    "krea2",
)
ROW = (
    "| {family} | {evaluations:.1f} | {step_s:.3f} | {host_s:.3f} | {vae_s:.3f} | **{step_x:.2f}** "
    "| {peak_mb:,.0f} |"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="steps per round (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds; reports their median (default: %(default)s)"
    )
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)


def main(as_json: bool, views: int, px: int, steps: int, rounds: int, families: list[str]) -> None:
    comfyui = find_host(TREE, None)
    if comfyui is None:
        raise SystemExit("no ComfyUI is set up; run `python dev.py test`")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base, comfyui)
        for family in families:  # a new process for each, to measure its memory
            with Server(comfyui, base, base / "server.log") as server:
                rows.append(
                    measured(Client(server.address, server.log_tail), family, views, px, steps, rounds)
                )
    if as_json:
        print(json.dumps({"views": views, "px": px, "rows": rows}))
        return
    print(f"{views} views of {px} px, 8,000 splats\n")
    print("| family | evaluations | step s | host s | VAE s | step x | peak MB |")
    print("|---|---:|---:|---:|---:|---:|---:|\n" + "\n".join(ROW.format(**row) for row in rows))


def prepare(base: Path, comfyui: Path) -> None:
    """A base directory with the pack, the tests' nodes and the small models."""
    prepare_base(TREE, sys.executable)
    models = TREE.cache / "families"
    builder = TREE.root / "tests" / "host" / "families.py"
    subprocess.run([sys.executable, builder, comfyui, models], check=True, stdout=subprocess.DEVNULL)
    for name in ("custom_nodes", "input", "output", "models"):
        (base / name).mkdir()
    link_folder(base / "models" / "checkpoints", TREE.checkpoints)
    for name in ("diffusion_models", "vae", "vae_approx"):
        link_folder(base / "models" / name, models / name)
    link_folder(base / "custom_nodes" / PACK, TREE.root)
    link_folder(base / "custom_nodes" / "lucid_test", TREE.root / "tests" / "host" / "pack")


def measured(client: Client, family: str, views: int, px: int, steps: int, rounds: int) -> dict:
    from tests.host.family_graphs import FamilyGraph

    graph = FamilyGraph(family).dream()
    of = lambda kind: next(name for name, node in graph.items() if node["class_type"] == kind)
    ism, cloud = of("LucidISM"), of("LucidPointCloud")
    graph[cloud]["inputs"]["count"] = 8000
    graph[ism]["inputs"] |= {"preset.inversion_steps": 1, "preset.delta_s": 1.0}  # as the preset fast
    for kind in ("LucidDream", "LucidSave", "PreviewGaussianSplat"):
        del graph[of(kind)]
    sizes = {"views": views, "resolution": px, "steps": steps, "rounds": rounds}
    graph["pace"] = {
        "class_type": "LucidTestPace",
        "inputs": {"guidance": [ism, 0], "splat": [cloud, 0], **sizes},
    }
    found = client.run(graph)["outputs"]["pace"]
    step, host, vae = (median(found[name]) / steps for name in ("steps", "host", "vae"))
    ratio = median((a - c) / b for a, b, c in zip(found["steps"], found["host"], found["vae"]))
    return {
        "family": family,
        "evaluations": median(found["evaluations"]) / steps / views,
        "step_s": step,
        "host_s": host,
        "vae_s": vae,
        "step_x": ratio,
        "peak_mb": found["peak"][0] / 1e6,
    }
