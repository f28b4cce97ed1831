"""The host's SPLAT and camera_info as lucid_core's Splats and Cameras, and back."""

from __future__ import annotations

import logging
import math

import torch
from comfy_api.latest import Types
from torch import Tensor

from ...lucid_core.cameras import Cameras, intrinsics, look
from ...lucid_core.checks import require
from ...lucid_core.gaussians import Splats, repair, validate

log = logging.getLogger(__name__)
FLIP = torch.tensor([1.0, -1.0, -1.0])  # viewer (x right, y up, z to the viewer) <-> splat frame


def from_splats(splats: Splats) -> Types.SPLAT:
    s = splats.detach()
    quats = torch.nn.functional.normalize(s.quats, dim=-1)
    return Types.SPLAT(s.means[None], s.scales[None], quats[None], s.opacities[None, :, None], s.sh[None])


def to_splats(splat: Types.SPLAT) -> list[Splats]:
    """Each item of the host's batch on the CPU, checked. The host's tensors are shared and cached: these are copies."""
    items = []
    with torch.inference_mode(False):
        for i in range(len(splat.positions)):
            n = int(splat.counts[i]) if splat.counts is not None else splat.positions.shape[1]
            take = lambda x, i=i, n=n: torch.clone(x[i, :n].cpu().float())
            item = Splats(
                take(splat.positions), take(splat.rotations), take(splat.scales), take(splat.opacities)[:, 0], take(splat.sh)
            )
            if len(item):
                item, note = repair(item)
                if note:
                    log.warning("The splat was repaired: %s.", note)
            validate(item)
            items.append(item)
    if not items:
        raise ValueError("the splat is empty (a batch of 0); connect a splat that has some Gaussians")
    return items


def one_splat(splat: Types.SPLAT) -> Splats:
    items = to_splats(splat)
    if len(items) > 1:
        raise ValueError(f"this is a batch of {len(items)} splats; connect one, or join them with Merge Splat")
    return items[0]


def camera_of(info: dict, width: int, height: int) -> tuple[Cameras, Tensor]:
    """The host's camera_info -> one camera and the point (3,) that it turns about, in the splat frame."""
    if str(info.get("cameraType", "")).lower().startswith("ortho"):
        raise ValueError("camera_info is orthographic; set its camera_type to perspective")
    point = lambda key: torch.tensor([float(info.get(key, {}).get(axis, 0.0)) for axis in "xyz"]) * FLIP
    position, target = point("position"), point("target")
    fov_deg, zoom = float(info.get("fov") or 35.0), float(info.get("zoom") or 1.0)
    require(0 < fov_deg < 180, "camera_info's fov", fov_deg, "between 0 and 180 degrees")
    rotation = None
    if info.get("quaternion"):
        x, y, z, w = (float(info["quaternion"].get(axis, axis == "w")) for axis in "xyzw")
        rotation = FLIP[:, None] * _rotation(w, x, y, z).T * FLIP  # three.js camera axes -> OpenCV, viewer -> splat
    K = intrinsics(torch.tensor([math.radians(fov_deg)]), width, height)
    K[:, :2, :2] *= zoom
    return Cameras(look(position, target, rotation), K), target


def _rotation(w: float, x: float, y: float, z: float) -> Tensor:
    q = torch.nn.functional.normalize(torch.tensor([w, x, y, z]), dim=0)
    w, v = q[0], q[1:]
    cross = torch.linalg.cross(torch.eye(3), v.expand(3, 3))  # rows e_i x v
    return torch.eye(3) * (w * w - v @ v) + 2 * torch.outer(v, v) + 2 * w * cross
