"""Bake: the colours of a splat, seen from all sides, become the texture of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cameras import Cameras
from ..errors import BadInput
from ..frames import RADIUS, Frame
from ..rasterize import Renderer
from ..settings import BoundedSettings, setting
from ..splats import Splats
from ..starts.mesh import Mesh, validate
from .fill import fill_unseen, nearest_texels
from .surface import Texels, overlap_of, prepare, project, texels_of
from .views import around, box_of, picture_of

SHELL = 0.04  # standard deviation of the splat's depth about the mesh, in radii
MARGIN = 0.1  # Gaussians farther outside the mesh's box, in its longest sides, do not colour it
STRAYS = 0.02  # fraction of the Gaussians at either end of an axis that the splat's box leaves out
OVERLAP = 0.5  # least share of the mesh's box, along each axis, that the splat's box must cover
GAIN = 0.002  # an additional view must show at least this share of the texels for the first time
SOLID = 1 / 255  # least opacity of a visible Gaussian
OnView = Callable[[int, Tensor], None]  # views done of 2 * Bake.views, picture (H, W, 3)


@dataclass(frozen=True)
class Bake(BoundedSettings):
    """Settings of a bake. Raises BadSetting for a value out of bounds."""

    size: int = setting(1024, 64, 4096, "Width and height of the texture in texels.", step=64, advanced=False)
    faces: int = setting(
        20_000,
        0,
        200_000,
        "Maximum number of faces of a mesh without UVs, which is simplified before it is unwrapped. "
        "0 = keep all.",
        step=1000,
        advanced=False,
    )
    views: int = setting(
        32,
        6,
        256,
        "Number of views around the mesh from which the splat is rendered. Up to as many again are added for "
        "texels that these miss.",
        step=1,
    )
    angle_power: float = setting(
        4.0,
        0,
        32,
        "Power of the cosine of the angle between view and surface, by which views are weighted. Higher = "
        "sharper, as views that face the surface count more; 1 = the cosine; 0 = equal weights.",
        step=0.5,
    )


@dataclass(frozen=True)
class Baked:
    """A mesh with UVs and texture.

    texels: number of those on the surface. seen: fraction of them that the views show; the others are filled.
    left_out: number of Gaussians outside the mesh's box. overlap: fraction of the UVs' area that shares its
    texels with other faces.
    """

    mesh: Mesh
    texels: int
    seen: float
    left_out: int
    overlap: float


def bake(
    splats: Splats, mesh: Mesh, config: Bake, renderer: Renderer, on_view: OnView | None = None
) -> Baked:
    """Bake the colours of `splats` into a texture of `mesh`; both in one frame, on the CPU.

    Each texel is the weighted mean of the splat's renders that show it. Visibility is tested against the
    depth of the mesh, and the splat's depth weights what is left (see kernels.collect). Splat colours are
    sRGB, as glTF's baseColorTexture is: they are not converted. View dependence is averaged.

    Raises BadInput or BadSetting if the mesh cannot be textured or the splat lies elsewhere, MissingPackage,
    and what the renderer raises.
    """
    validate(mesh)
    require_same_place(splats, mesh)
    mesh = prepare(mesh, config.faces, config.size)
    kept = in_reach(splats, mesh)
    frame = Frame.of_points(mesh.vertices)
    scene = frame.enter(splats.map(lambda x: x[kept]))
    moved = replace(mesh, vertices=frame.enter_points(mesh.vertices))
    texels = texels_of(moved, config.size)
    sums = torch.from_numpy(_look_from_all_sides(scene, moved, texels, config, renderer, on_view))
    seen = sums[:, 3] > 0
    if not seen.any():
        raise BadInput("the splat", "is not visible on the mesh from any side; connect a mesh of this splat")
    colors = (sums[:, :3] / sums[:, 3:].where(seen[:, None], 1)).clamp(0, 1).float()
    filled = fill_unseen(colors, texels.points, seen)
    texture = filled[nearest_texels(texels.index, config.size, config.size)]
    overlap = overlap_of(mesh, texels)
    baked = replace(mesh, texture=texture.reshape(config.size, config.size, 3))
    return Baked(baked, len(seen), float(seen.double().mean()), int((~kept).sum()), overlap)


def _look_from_all_sides(
    splats: Splats, mesh: Mesh, texels: Texels, config: Bake, renderer: Renderer, on_view: OnView | None
) -> NDArray[np.float64]:
    """Sums (T, 4) of weight * rgb and weight * opacity over the views of a mesh about the origin."""
    from .kernels import collect  # numba loads on first use

    px = max(64, config.size // 2)  # about one pixel per texel on a closed surface
    splats = splats.map(lambda x: x.to(renderer.device))
    points, normals = texels.points.numpy(), texels.normals.numpy()
    sums = np.zeros((len(points), 4))
    blank, reach = np.ones((px, px, 5), np.float32), SHELL * RADIUS
    for view, camera in enumerate(around(2 * config.views, px)):
        pose, K = camera.viewmats[0].numpy(), camera.Ks[0].numpy()
        depth = depth_of(mesh, camera, px)
        if view >= config.views:
            unseen = sums[:, 3] == 0
            found = np.zeros((int(unseen.sum()), 4))
            collect(points[unseen], normals[unseen], pose, K, blank, depth, 1.0, np.inf, found)
            if (found[:, 3] > 0).sum() < GAIN * len(points):
                continue
        picture = picture_of(splats, camera, px, renderer)
        collect(points, normals, pose, K, picture.numpy(), depth, config.angle_power, reach, sums)
        if on_view:
            on_view(view + 1, picture[..., :3])
    return sums


def depth_of(mesh: Mesh, camera: Cameras, px: int) -> NDArray[np.float32]:
    """Depth (px, px) of a mesh in front of one camera, infinite where it is not."""
    from .kernels import draw  # numba loads on first use

    return draw(project(mesh.vertices, mesh.faces, camera).numpy(), px, px)[1]


def require_same_place(splats: Splats, mesh: Mesh) -> None:
    """Raise BadInput, with both boxes, unless the visible Gaussians extend over the mesh along every axis."""
    visible = splats.means[splats.opacities >= SOLID]
    if not len(visible):
        raise BadInput("the splat", "has no visible Gaussian; use one that Lucid Render shows")
    core = visible.sort(dim=0).values
    ours = core[int(STRAYS * (len(core) - 1))], core[math.ceil((1 - STRAYS) * (len(core) - 1))]
    theirs = box_of(mesh.vertices)
    size = (theirs[1] - theirs[0]).clamp_min(1e-3 * float((theirs[1] - theirs[0]).max()))
    shared = torch.minimum(ours[1], theirs[1]) - torch.maximum(ours[0], theirs[0])
    if bool((shared < OVERLAP * size).any()):
        problem = (
            f"lies in the box {_text(ours)}, the mesh in {_text(theirs)}; both must be in one place: make "
            f"the mesh from this splat, or move and scale one of them"
        )
        raise BadInput("the splat", problem)


def _text(box: tuple[Tensor, Tensor]) -> str:
    return " to ".join(f"({', '.join(f'{x:.3g}' for x in end.tolist())})" for end in box)


def in_reach(splats: Splats, mesh: Mesh) -> Tensor:
    """Which Gaussians (N,) lie in the mesh's box, widened by MARGIN: others would only hide the surface."""
    low, high = box_of(mesh.vertices)
    margin = MARGIN * (high - low).max()
    return ((splats.means >= low - margin) & (splats.means <= high + margin)).all(-1)
