"""Conversion between the host's SPLAT, MESH and camera_info and lucid_core's Splats, Mesh and Cameras."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from comfy_api.latest import Types
from torch import Tensor

from ...lucid_core.cameras import Cameras, intrinsics, look
from ...lucid_core.errors import BadInput, BadSplats
from ...lucid_core.optimize.views import PosedImages
from ...lucid_core.settings import require
from ...lucid_core.splats import Splats, repair, validate
from ...lucid_core.starts.mesh import Mesh

log = logging.getLogger(__name__)
# Viewer frame (x right, y up, z towards the viewer) <-> splat frame.
FLIP = torch.tensor([1.0, -1.0, -1.0])


def from_splats(splats: Splats) -> Types.SPLAT:
    """A SPLAT with a batch of one, detached, with normalised quaternions; the other tensors are shared."""
    s = splats.detach()
    quats = torch.nn.functional.normalize(s.quats, dim=-1)
    return Types.SPLAT(s.means[None], s.scales[None], quats[None], s.opacities[None, :, None], s.sh[None])


def to_splats(splat: Types.SPLAT) -> list[Splats]:
    """Each item of the host's batch as float32 Splats on the CPU, repaired (with a warning) and validated.

    The tensors are copies, because the host shares and caches its own. Raises BadSplats for an empty batch,
    and what `validate` raises.
    """
    items = []
    with torch.inference_mode(False):
        for i in range(len(splat.positions)):
            n = int(splat.counts[i]) if splat.counts is not None else splat.positions.shape[1]
            take = lambda x, i=i, n=n: torch.clone(x[i, :n].cpu().float())
            item = Splats(
                take(splat.positions),
                take(splat.rotations),
                take(splat.scales),
                take(splat.opacities)[:, 0],
                take(splat.sh),
            )
            if len(item):
                item, note = repair(item)
                if note:
                    log.warning("The splat was repaired: %s.", note)
            validate(item)
            items.append(item)
    if not items:
        raise BadSplats("batch", "is empty; connect a splat with at least one Gaussian")
    return items


def one_splat(splat: Types.SPLAT) -> Splats:
    """The only item of the batch, as `to_splats` returns it. Raises BadSplats for a batch of several."""
    items = to_splats(splat)
    if len(items) > 1:
        raise BadSplats("batch", f"holds {len(items)} splats; connect one, or join them with Merge Splat")
    return items[0]


def to_mesh(mesh: Types.MESH) -> Mesh:
    """The only mesh of the batch on the CPU, in its own frame (glTF: y up). Raises BadSetting for a batch of
    several.

    The tensors are copies, because the host shares its own.
    """
    require(len(mesh.vertices) == 1, "mesh", f"a batch of {len(mesh.vertices)}", "one mesh")
    v = int(mesh.vertex_counts[0]) if mesh.vertex_counts is not None else mesh.vertices.shape[1]
    f = int(mesh.face_counts[0]) if mesh.face_counts is not None else mesh.faces.shape[1]
    with torch.inference_mode(False):
        take = lambda x, n: torch.clone(x[0, :n].cpu().float()) if x is not None else None
        vertices, colors = take(mesh.vertices, v), take(mesh.vertex_colors, v)
        colors = None if colors is None else colors[:, :3]
        # Since ComfyUI 0.33; linear RGB that multiplies the other colours.
        factor = (getattr(mesh, "material", None) or {}).get("base_color_factor")
        if factor is not None:
            colors = (torch.ones_like(vertices) if colors is None else colors) * torch.tensor(factor[:3])
        faces = torch.clone(mesh.faces[0, :f].cpu().long())
        return Mesh(vertices, faces, colors, take(mesh.uvs, v), take(mesh.texture, None))


def from_mesh(mesh: Mesh) -> Types.MESH:
    """A MESH with a batch of one; the tensors are shared, the texture is raised by a hundredth of a level.

    The host's SaveGLB and SaveImage cut decimals off, which would darken levels that float32 rounds down.
    """
    batch = lambda x: None if x is None else x[None]
    texture = None if mesh.texture is None else ((mesh.texture * 255).round() + 0.01).div(255).clamp_max(1)
    return Types.MESH(
        mesh.vertices[None],
        mesh.faces[None],
        uvs=batch(mesh.uvs),
        vertex_colors=batch(mesh.colors),
        texture=batch(texture),
        unlit=True,
    )


def camera_of(info: dict, width: int, height: int) -> tuple[Cameras, Tensor]:
    """The host's camera_info -> one camera, and the point (3,) that it orbits, both in the splat frame.

    `width` and `height` are in pixels. Raises BadInput for an orthographic camera, BadSetting for a
    fov outside (0, 180) degrees.
    """
    if str(info.get("cameraType", "")).lower().startswith("ortho"):
        raise BadInput("camera_info", "is orthographic; set its camera_type to perspective")
    point = lambda key: torch.tensor([float(info.get(key, {}).get(axis, 0.0)) for axis in "xyz"]) * FLIP
    position, target = point("position"), point("target")
    fov_deg, zoom = float(info.get("fov") or 35.0), float(info.get("zoom") or 1.0)
    require(0 < fov_deg < 180, "camera_info's fov", fov_deg, "between 0 and 180 degrees")
    rotation = None
    if info.get("quaternion"):
        x, y, z, w = (float(info["quaternion"].get(axis, axis == "w")) for axis in "xyzw")
        # Camera axes: three.js -> OpenCV; world axes: viewer -> splat.
        rotation = FLIP[:, None] * _rotation(w, x, y, z).T * FLIP
    K = intrinsics(torch.tensor([math.radians(fov_deg)]), width, height)
    K[:, :2, :2] *= zoom
    return Cameras(look(position, target, rotation), K), target


def cameras_of(infos: Iterable[Any], width: int, height: int) -> Cameras:
    """Each camera_info, or list of them, as `camera_of` gives it."""
    flat = [one for info in infos for one in (info if isinstance(info, (list, tuple)) else [info])]
    if not flat:
        raise BadInput("cameras", "are missing; connect one camera_info per picture")
    cameras = [camera_of(info, width, height)[0] for info in flat]
    return Cameras(*(torch.cat([getattr(one, name) for one in cameras]) for name in ("viewmats", "Ks")))


def posed_images(image: Tensor, mask: Tensor | None, depth: Tensor | None, cameras: Cameras) -> PosedImages:
    """The host's IMAGE, MASK and depth IMAGE (bright = near) with their cameras, as copies on the CPU.

    Raises BadInput if they do not belong together.
    """
    with torch.inference_mode(False):
        take = lambda x: None if x is None else torch.clone(x.detach().cpu().float())
        images, masks, depths = take(image)[..., :3].clamp(0, 1), take(mask), take(depth)
        masks = None if masks is None else masks.reshape(-1, *masks.shape[-2:])  # one mask may come without V
        return PosedImages(images, cameras, masks, None if depths is None else depths[..., 0])


def camera_info_of(position: Tensor, target: Tensor, fov_deg: float) -> dict:
    """The host's camera_info of an upright camera at `position` (3,) that looks at `target` (3,), both in the
    splat frame, with a field of view of `fov_deg` degrees.
    """
    point = lambda at: dict(zip("xyz", (at * FLIP).tolist()))
    return {
        "position": point(position),
        "target": point(target),
        "fov": fov_deg,
        "zoom": 1,
        "cameraType": "perspective",
    }


def _rotation(w: float, x: float, y: float, z: float) -> Tensor:
    """Rotation matrix (3, 3) of a quaternion, which need not have unit length."""
    q = torch.nn.functional.normalize(torch.tensor([w, x, y, z]), dim=0)
    w, v = q[0], q[1:]
    cross = torch.linalg.cross(torch.eye(3), v.expand(3, 3))  # rows e_i x v
    return torch.eye(3) * (w * w - v @ v) + 2 * torch.outer(v, v) + 2 * w * cross
