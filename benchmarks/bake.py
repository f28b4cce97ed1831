"""A splat of the demo world, its mesh by the host's SplatToMesh, and the texture that is baked onto it.

The splat covers the true surface with flat Gaussians in the true colours; --splat takes a finished one.

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

import numpy as np
import torch
from torch import Tensor

from demo import shapes, world
from demo.score import psnr
from devtools.launch import needs_repair, repair_cpu_torch
from devtools.tree import Tree
from lucid_core.bake.shade import shade
from lucid_core.bake.solid import Solid, solidify
from lucid_core.bake.texture import Bake, Baked, bake
from lucid_core.bake.views import GOLDEN_ANGLE
from lucid_core.cameras import Cameras, orbit
from lucid_core.io import glb, ply
from lucid_core.io.video import contact_sheet, write_png
from lucid_core.rasterize import Renderer, rasterize
from lucid_core.rasterize.jit import kernel
from lucid_core.splats import Splats
from lucid_core.starts.mesh import Mesh
from lucid_core.starts.points import AXES, Start

from .rasterize import find_host

FOLDER = Tree(Path(__file__).resolve().parents[1]).root / "output" / "bake"
FOVY = math.radians(26)
SPLATS, NEWTON = 12_000, 12
HELD_OUT, SCORED_PX = 8, 256
# The node's defaults but smooth and level: kernel, smooth, level, min_component, min_opacity, color_sharpen.
TO_MESH = (5, 10, 0.8, 500, 0.02, 2.0)


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
    parser.add_argument("--splat", type=Path, metavar="PLY", help="a splat of it, as text_to_splat makes")
    parser.add_argument("--size", type=int, default=1024, help="texels along a side of the texture")
    parser.add_argument("--resolution", type=int, default=96, help="grid of the host's SplatToMesh")


def main(as_json: bool, prompt: str, splat: Path | None, size: int, resolution: int) -> None:
    try:
        thing = world.thing_of(prompt)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = splat.stem if splat else prompt.replace(" ", "-")
    splats = ply.read(splat) if splat else cover(thing)
    mesh = mesh_of(solidify(splats, Solid(), Renderer("numba")), resolution)
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


@kernel()
def _project(first, end, kind, albedo, points, normals, colors):
    """Move points (N, 3) onto the surface of the object `kind` (y up), and give their normals and colours."""
    e = shapes.NORMAL_REACH
    for i in range(first, end):
        x, y, z = points[i]
        for _ in range(NEWTON):
            a, b = shapes.surface(kind, x + e, y - e, z - e)[0], shapes.surface(kind, x - e, y - e, z + e)[0]
            c, d = shapes.surface(kind, x - e, y + e, z - e)[0], shapes.surface(kind, x + e, y + e, z + e)[0]
            nx, ny, nz = a - b - c + d, c + d - a - b, b + d - a - c
            length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
            distance, material = shapes.surface(kind, x, y, z)
            x, y, z = (
                x - distance * nx / length,
                y - distance * ny / length,
                z - distance * nz / length,
            )
        points[i, 0], points[i, 1], points[i, 2] = x, y, z
        normals[i, 0], normals[i, 1], normals[i, 2] = nx / length, ny / length, nz / length
        brightness = shapes.light_at(kind, x, y, z)
        for j in range(3):
            own = albedo[j] if material == shapes.MAIN else shapes.MATERIALS[material, j]
            colors[i, j] = min(own * brightness, 1.0)


def cover(thing: world.Thing) -> Splats:
    """A splat of SPLATS flat Gaussians on the surface of `thing`, in its true colours."""
    kind, radius = world.KINDS.index(thing.kind), world.bounding_radius(thing.kind)
    g = np.random.default_rng(0)
    points = g.uniform(-radius, radius, (6 * SPLATS, 3))
    normals, colors = np.zeros_like(points), np.zeros_like(points)
    _project(0, len(points), kind, np.array(thing.rgb), points, normals, colors)
    found = np.abs([shapes.surface(kind, *point)[0] for point in points]) < 1e-3
    chosen = np.flatnonzero(found)[:SPLATS]
    points, normals, colors = (torch.from_numpy(x[chosen]).float() for x in (points, normals, colors))
    turn = AXES["y up"].T
    return Start(SPLATS, 0.0, 0.95, 0.1).splats(points @ turn, colors, 0, normals @ turn)


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
