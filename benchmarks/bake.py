"""A splat of the demo world, its mesh by the host's SplatToMesh, and the texture that is baked onto it.

psnr_splat and psnr_mesh: renders of the splat and of the textured mesh, compared with the true object from
views that neither was made from. seconds: the bake alone, simplification and unwrap included, with compiled
kernels. peak_mb: the highest memory of the process that bakes, torch included.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from demo import world
from demo.score import psnr
from devtools.launch import needs_repair, repair_cpu_torch
from devtools.tree import Tree
from lucid_core.bake.shade import shade
from lucid_core.bake.texture import Bake, Baked, bake
from lucid_core.cameras import Cameras, orbit
from lucid_core.io import glb, ply
from lucid_core.io.video import contact_sheet, write_png
from lucid_core.rasterize import Renderer, rasterize
from lucid_core.splats import Splats, activate, parameters
from lucid_core.starts.mesh import Mesh
from lucid_core.starts.points import AXES
from lucid_core.starts.shapes import PointCloud

from .rasterize import find_host

FOLDER = Tree(Path(__file__).resolve().parents[1]).root / "output" / "bake"
FOVY, GOLDEN_ANGLE = math.radians(26), math.pi * (3 - math.sqrt(5))
VIEWS, STEPS, SPLATS, PX = 48, 600, 6000, 128  # of the fit
HELD_OUT, SCORED_PX = 8, 256
TO_MESH = (5, 10, 0.4, 500, 0.02, 2.0)  # kernel, smooth, level, min_component, min_opacity, color_sharpen
RATES = {"means": 4e-3, "quats": 1e-2, "scales": 1e-2, "opacities": 5e-2, "sh0": 2e-2, "shN": 1e-3}


@dataclass(frozen=True)
class Row:
    """See the module; texels: those that lie on the surface."""

    psnr_splat: float
    psnr_mesh: float
    seconds: float
    texels: int
    faces: int
    peak_mb: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--prompt", default="a red mushroom", help="a thing of the demo world")
    parser.add_argument("--size", type=int, default=1024, help="texels along a side of the texture")
    parser.add_argument("--resolution", type=int, default=160, help="grid of the host's SplatToMesh")


def main(as_json: bool, prompt: str, size: int, resolution: int) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    thing, name = world.parse(prompt), prompt.replace(" ", "-")
    path = FOLDER / f"{name}.ply"
    if not path.exists():
        ply.write(path, fit(thing))
    splats = ply.read(path)
    mesh = mesh_of(splats, resolution)
    context = multiprocessing.get_context("spawn")  # its memory is the bake's alone
    with context.Pool(1) as pool:
        baked, seconds, peak_mb = pool.apply(bake_alone, (splats, mesh, Bake(size=size)))
    truth, ours, theirs = compare(thing, splats, baked.mesh)
    score = lambda pictures: round(psnr(pictures, truth), 2)
    row = Row(score(ours), score(theirs), round(seconds, 2), baked.texels, len(baked.mesh.faces), peak_mb)
    write_png(FOLDER / f"{name}.png", contact_sheet(torch.cat([truth, ours, theirs]), HELD_OUT))
    write_png(FOLDER / f"{name}-texture.png", contact_sheet(baked.mesh.texture[None], 1))
    (FOLDER / f"{name}.glb").write_bytes(glb.encode(baked.mesh.rotate(AXES["y up"].T)))
    if as_json:
        print(json.dumps(asdict(row)))
        return
    print(f"| {' | '.join(asdict(row))} |\n|{'---:|' * len(asdict(row))}")
    print(f"| {' | '.join(str(value) for value in asdict(row).values())} |")


def fit(thing: world.Thing) -> Splats:
    """A splat of `thing`, fitted by Adam to VIEWS pictures of PX pixels from all around."""
    cameras, pictures = look_at(thing, VIEWS, PX, 0.0)
    params = parameters(PointCloud(count=SPLATS, size=2 * world.bounding_radius(thing.kind)).splats(0))
    groups = [{"params": [value], "lr": RATES[name]} for name, value in params.items() if value.numel()]
    optimizer, generator = torch.optim.Adam(groups), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.05 ** (1 / STEPS))
    for _ in range(STEPS):
        chosen = torch.randint(VIEWS, (2,), generator=generator)
        some = Cameras(cameras.viewmats[chosen], cameras.Ks[chosen])
        shown = rasterize(activate(params), some, PX, PX, background=torch.ones(3)).rgb
        optimizer.zero_grad()
        ((shown - pictures[chosen]).abs().mean() * 100).backward()
        optimizer.step()
        schedule.step()
    return activate(params).detach()


def look_at(thing: world.Thing, views: int, px: int, turn_rad: float) -> tuple[Cameras, Tensor]:
    """Cameras evenly over the sphere, turned by `turn_rad`, and the true pictures (views, px, px, 3)."""
    order = torch.arange(views).double()
    elevation = (1 - (2 * order + 1) / views).asin().float()
    azimuth = (order * GOLDEN_ANGLE + turn_rad).remainder(2 * math.pi).float()
    radius, full = float(world.distance(thing.kind, FOVY, 0.8)), torch.ones(views)
    rgb, _ = world.render(thing, azimuth, elevation, FOVY, px, radius=radius, supersample=4)
    return orbit(azimuth, elevation, radius * full, FOVY * full, px, px), torch.from_numpy(rgb)


def mesh_of(splats: Splats, resolution: int) -> Mesh:
    """The mesh (V, 3), (F, 3) of the host's SplatToMesh, in the splat's frame."""
    if needs_repair():
        repair_cpu_torch()
    sys.path.insert(0, str(find_host()))
    from comfy.cli_args import args

    args.cpu = True
    from comfy_api.latest import Types
    from comfy_extras.nodes_gaussian_splat import _gaussian_to_mesh

    s = splats
    quats = torch.nn.functional.normalize(s.quats, dim=-1)
    given = Types.SPLAT(s.means[None], s.scales[None], quats[None], s.opacities[None, :, None], s.sh[None])
    # The node's defaults, with as much smoothing as its grid needs.
    vertices, faces, _ = _gaussian_to_mesh(given, 0, resolution, *TO_MESH, torch.device("cpu"))
    return Mesh(vertices.float(), faces).rotate(AXES["y up"])


def bake_alone(splats: Splats, mesh: Mesh, config: Bake) -> tuple[Baked, float, int]:
    """The baked mesh, seconds, and the peak memory of this process in MB."""
    bake(splats, mesh, replace(config, size=64, views=6), Renderer("numba"))  # compiles
    start = time.perf_counter()
    baked = bake(splats, mesh, config, Renderer("numba"))
    return baked, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def compare(thing: world.Thing, splats: Splats, mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out pictures (HELD_OUT, SCORED_PX, SCORED_PX, 3) on white: the truth, the splat, the mesh."""
    cameras, truth = look_at(thing, HELD_OUT, SCORED_PX, 1.0)
    with torch.no_grad():
        shown = rasterize(splats, cameras, SCORED_PX, SCORED_PX, background=torch.ones(3)).rgb.clamp(0, 1)
    pictures = []
    for pose, K in zip(cameras.viewmats, cameras.Ks):
        rgb, alpha = shade(mesh, Cameras(pose[None], K[None]), SCORED_PX, SCORED_PX)
        pictures.append(rgb + 1 - alpha)
    return truth, shown, torch.stack(pictures)
