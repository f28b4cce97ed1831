"""The demo: makes a splat from a prompt or a picture with a real ComfyUI. `python dev.py demo` sets it up and
runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from devtools.base import CAMERA, PRIOR
from devtools.host import Server
from lucid_core.cameras import frame_splats, rotate
from lucid_core.io import ply, video
from lucid_core.rasterize import rasterize
from lucid_core.splats import Splats
from workflows.api.client import Client, ComfyError, Graph, Printer, Progress, fill, output_files

from . import measures, score, world

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows" / "api"
KEPT = {".ply": "splat.ply", ".mp4": "turntable.mp4"}
PHASES = {"LucidDream": "distil", "LucidSave": "save"}  # all other nodes count as "load"
SHEET_COLUMNS = 8
# Pixels. Stable Diffusion 1.5 was trained at 512, Stable Zero123 at 256; the workflows are set to 128.
FULL_SIZE, CAMERA_SIZE = 512, 256
FILL = 0.8  # of a picture for Stable Zero123; the demo's own is framed already


def slug(prompt: str) -> str:
    """A folder name of a-z, 0-9 and - only. Raises ValueError if nothing is left of the prompt."""
    name = re.sub("[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-")
    if not name:
        raise ValueError(
            f"the prompt {prompt!r} has no letter a-z and no digit for a folder name; add a word"
        )
    return name


class Reporter:
    """Prints LucidDream's progress to stderr and measures the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.node, self.since, self.show = "", time.monotonic(), Printer()

    def phase_ends(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.since, 1)
        self.since = now

    def __call__(self, progress: Progress) -> None:
        if progress.node != self.node:
            self.node_ends()
            self.node = progress.node
        elif progress.node == "LucidDream":
            self.show(progress)

    def node_ends(self) -> None:
        self.phase_ends(PHASES.get(self.node, "load"))


def dream(server: Server, graph: Graph, reporter: Reporter, image: Path | None = None) -> tuple[dict, Client]:
    """Upload `image`, run `graph` and return its history entry. Ctrl-C stops it on the server too."""
    client = Client(server.address, server.log_tail)
    if image:
        loaded = {"LoadImage": {"image": client.upload(image.name, image.read_bytes())}}
        graph = fill(graph, loaded)
    try:
        entry = client.run(graph, reporter)
    except KeyboardInterrupt:
        client.interrupt()
        print(
            f"\nInterrupted; the unfinished splat is in {server.base / 'output' / 'lucid'}", file=sys.stderr
        )
        raise
    reporter.node_ends()
    return entry, client


def keep_files(client: Client, entry: dict, folder: Path) -> None:
    """Save the files in KEPT of a history entry to `folder`. Raises ComfyError if one is missing."""
    found = {Path(file["filename"]).suffix: file for file in output_files(entry)}
    for suffix, name in KEPT.items():
        if suffix not in found:
            raise ComfyError(
                f"the run wrote no {suffix} file; the workflow must end in LucidSave with "
                "turntable_frames > 0"
            )
        (folder / name).write_bytes(client.view(found[suffix]))


def dream_summary(entry: dict) -> dict:
    """LucidDream's summary of its run: steps, evaluations, splats (number of Gaussians), seconds."""
    return next(node["lucid"][0] for node in entry["outputs"].values() if "lucid" in node)


def sheet(splats: Splats, thing: world.Thing | None, scale: float) -> Tensor:
    """Views from all around, (B, H, W, 3) in [0, 1]; for an object of the demo world after those of the
    truth.
    """
    if thing is None:
        return around(splats)
    every = score.VIEWS // SHEET_COLUMNS
    return torch.cat([score.truth(thing).rgb[::every], score.render(splats, thing, scale)[::every]])


def around(splats: Splats, size: int = 256) -> Tensor:
    splats, camera = frame_splats(splats, math.radians(15), math.radians(30), size, size)
    cameras = rotate(camera, torch.arange(SHEET_COLUMNS) * (2 * math.pi / SHEET_COLUMNS), torch.zeros(3))
    with torch.no_grad():
        return rasterize(splats, cameras, size, size, background=torch.ones(3)).rgb


def measure(splats: Splats, thing: world.Thing) -> dict[str, float]:
    """Measures of `splats` against an object of the demo world, and the scale that fits it best."""
    truth = score.truth(thing)
    scale, rgb, alpha = score.best_view(splats, truth)
    return {
        "scale": scale,
        "psnr": score.psnr(rgb, truth.rgb),
        "iou": score.iou(alpha > 0.5, truth.mask > 0.5),
        "sharpness": measures.sharpness(rgb, truth.rgb),
        "mud": measures.mud(rgb, alpha, truth.rgb, truth.mask),
        "fog": measures.fog(rgb, truth.mask),
    }


def graph_of(options: argparse.Namespace, name: str) -> Graph:
    """The workflow of a prompt or of a picture with these options; its files are called `name`."""
    dream = {"steps": options.steps, "seed": options.seed}
    if options.image:
        own_model = options.checkpoint != CAMERA
        workflow, size = "image_to_splat", CAMERA_SIZE if own_model else None
        angles = {"elevation_deg": options.elevation, "azimuth_deg": options.azimuth}
        inputs = {
            "ImageOnlyCheckpointLoader": {"ckpt_name": options.checkpoint},
            "LoadImage": {"image": options.image.name},
            "LucidImagePrompt": {**angles, "fill": FILL if own_model else None, "size": size},
        }
    else:
        workflow, size = "text_to_splat", None if options.checkpoint == PRIOR else FULL_SIZE
        inputs = {
            "CheckpointLoaderSimple": {"ckpt_name": options.checkpoint},
            "LucidPrompt": {"text": options.prompt},
        }
    inputs["LucidDream"] = {**dream, "resolution": size}
    inputs["LucidSave"] = {"filename_prefix": f"lucid/{name}"}
    return fill(json.loads((WORKFLOWS / f"{workflow}.json").read_text()), inputs)


def run(options: argparse.Namespace) -> dict:
    """Run the demo. Returns the report, which is also written to report.json."""
    name = slug(options.image.stem if options.image else options.prompt)
    folder = (options.out or ROOT / "output" / "demo" / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    graph = graph_of(options, name)
    reporter = Reporter()
    print("Starting ComfyUI ...", file=sys.stderr, flush=True)
    with Server(options.comfyui, options.base, folder / "server.log", options.port) as server:
        reporter.phase_ends("start")
        print(
            "Distilling; without a GPU, the first run compiles a renderer for about a minute ...",
            file=sys.stderr,
            flush=True,
        )
        entry, client = dream(server, graph, reporter, options.image)
        keep_files(client, entry, folder)
    splats, thing = ply.read(folder / KEPT[".ply"]), world.parse(options.prompt)
    measured = measure(splats, thing) if thing else {}
    frames = sheet(splats, thing, measured.pop("scale", 1.0))
    video.write_png(folder / "turntable.png", video.contact_sheet(frames, SHEET_COLUMNS))
    reporter.phase_ends("finish")
    report = {
        "splat": str(folder / KEPT[".ply"]),
        "video": str(folder / KEPT[".mp4"]),
        "sheet": str(folder / "turntable.png"),
        "seconds": reporter.seconds,
        **{key: dream_summary(entry)[key] for key in ("steps", "evaluations", "splats")},
    }
    report |= {name: round(value, 3) for name, value in measured.items()}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--elevation", type=float, default=0.0)
    parser.add_argument("--azimuth", type=float, default=0.0)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument(
        "--base", type=Path, required=True, help="its base directory, with the checkpoint in it"
    )
    parser.add_argument("--checkpoint", required=True, help="name of the checkpoint in ComfyUI")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--port", type=int, default=0)
    return parser.parse_args(words)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped too
    try:
        print(json.dumps(run(parse())), flush=True)
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
