"""Cameras: OpenCV world-to-camera poses on an orbit about the origin, and the ranges they are drawn from.

World frame: x right, y down, z forward (up is -y). An object's front looks at -z, so azimuth 0 puts the camera on -z;
azimuth grows towards +x, elevation towards -y. This is the yaw and pitch of the host's Create Camera Info.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from .checks import bounds_of, check_bounds, choice, require, setting
from .gaussians import Splats


@dataclass(frozen=True)
class Cameras:
    """B pinhole cameras: viewmats (B, 4, 4) OpenCV world-to-camera, Ks (B, 3, 3) intrinsics in pixels."""

    viewmats: Tensor
    Ks: Tensor

    def __len__(self) -> int:
        return self.viewmats.shape[0]


def orbit(azimuth_rad: Tensor, elevation_rad: Tensor, radius: Tensor, fovy_rad: Tensor, width: int, height: int) -> Cameras:
    """Cameras that look at the origin; all four tensors (B,). `fovy_rad` spans the smaller image side, as in the host."""
    sin_a, cos_a = azimuth_rad.sin(), azimuth_rad.cos()
    sin_e, cos_e = elevation_rad.sin(), elevation_rad.cos()
    zero = torch.zeros_like(sin_a)
    position = radius[:, None] * torch.stack([cos_e * sin_a, -sin_e, -cos_e * cos_a], -1)  # (B, 3) world
    right = torch.stack([cos_a, zero, sin_a], -1)
    forward = torch.stack([-cos_e * sin_a, sin_e, cos_e * cos_a], -1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)  # (B, 3, 3) rows are the camera's axes
    viewmats = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ position[:, :, None])[:, :, 0]
    return Cameras(viewmats, intrinsics(fovy_rad, width, height))


def intrinsics(fovy_rad: Tensor, width: int, height: int) -> Tensor:
    """(B,) fields of view over the smaller image side -> (B, 3, 3) pinhole matrices with the centre in the middle."""
    focal = min(width, height) / 2 / (fovy_rad / 2).tan()
    Ks = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    Ks[:, 0, 0] = Ks[:, 1, 1] = focal
    Ks[:, 0, 2], Ks[:, 1, 2], Ks[:, 2, 2] = width / 2, height / 2, 1.0
    return Ks


def turntable(views: int, elevation_deg: float, radius: float, fovy_deg: float, width: int, height: int) -> Cameras:
    """`views` cameras evenly round the object, beginning at the front."""
    azimuth = torch.arange(views) * (2 * math.pi / views)
    full = torch.full_like(azimuth, 1.0)
    return orbit(azimuth, full * math.radians(elevation_deg), full * radius, full * math.radians(fovy_deg), width, height)


@dataclass(frozen=True)
class Views:
    """A batch of training views: the cameras and the angles (B,) that the prompts depend on."""

    cameras: Cameras
    azimuth_rad: Tensor
    elevation_rad: Tensor


VIEWING_DISTANCE = 5.0  # of a splat that is looked at; the renderers' near planes, 0.01 and 0.2, lie well before it
SCHEDULES = ("official", "linear")
WIDENINGS = 10  # times in a run that the official ranges are widened
_RADIUS = "distance of the camera from the centre of the splat, in its units"
_FOVY = "vertical field of view in degrees"


@dataclass(frozen=True)
class CameraRanges:
    """Where training cameras are drawn from, uniformly; the defaults are the official ranges.

    `schedule` "official": at every tenth of the run radii shrink to 0.95 times, the smallest field of view to 0.75 times, and
    the largest one grows to 1.1 times (or the other way about), until they reach their `_end` values. `angle_factor` lets the
    azimuth range grow about its middle up to all round, and the polar angles of the elevation range up to its `_end` values
    (LucidDreamer's train.py; its configs for heads begin at -80 to 80 degrees of azimuth, with a factor of 1.5).
    "linear": radius and field of view go from their first ranges to the `_end` ones over the first `widen` of the run.
    """

    azimuth_min_deg: float = setting(-180, -360, 360, "Least azimuth in degrees; 0 faces the front.", step=1, rare=False)
    azimuth_max_deg: float = setting(180, -360, 360, "Largest azimuth in degrees.", step=1, rare=False)
    elevation_min_deg: float = setting(-15, -90, 90, "Lowest camera, degrees above the horizon.", step=1, rare=False)
    elevation_max_deg: float = setting(45, -90, 90, "Highest camera, degrees above the horizon.", step=1, rare=False)
    radius_min: float = setting(5.2, 0.01, 1000, f"Least {_RADIUS}.", rare=False)
    radius_max: float = setting(5.5, 0.01, 1000, f"Largest {_RADIUS}.", rare=False)
    radius_min_end: float = setting(3.5, 0.01, 1000, f"Least {_RADIUS}, late in the run.")
    radius_max_end: float = setting(5.0, 0.01, 1000, f"Largest {_RADIUS}, late in the run.")
    fovy_min_deg: float = setting(18.3, 1, 120, f"Least {_FOVY}.", step=0.1, rare=False)
    fovy_max_deg: float = setting(34.4, 1, 120, f"Largest {_FOVY}.", step=0.1, rare=False)
    fovy_min_end_deg: float = setting(9.2, 1, 120, f"Least {_FOVY}, late in the run.", step=0.1)
    fovy_max_end_deg: float = setting(34.4, 1, 120, f"Largest {_FOVY}, late in the run.", step=0.1)
    widen: float = setting(
        0.5, 0, 1, "Schedule linear: share of the run over which the first ranges become the late ones; 0 = at once."
    )
    gamma: float = setting(
        1.0, 0.1, 10, "Draws azimuth and elevation towards the middle of their ranges; 1 = evenly.", step=0.1
    )
    sphere_share: float = setting(0.0, 0, 1, "Share of the views that are spread evenly over the sphere within the ranges, "
                                  "which means fewer near the poles; 0 = none.")  # fmt: skip
    jitter_center: float = setting(0.05, 0, 10, "Random shift of the camera along each axis, full width in the splat's units.")
    jitter_target: float = setting(0.05, 0, 10, "Random shift of the point that it looks at, standard deviation.")
    jitter_up: float = setting(0.01, 0, 1, "Random tilt of the camera's upright, standard deviation.")
    schedule: str = choice(
        SCHEDULES, "How radius and field of view reach their late ranges. official: by steps, at every tenth of the run. "
        "linear: evenly over `widen`.",
    )  # fmt: skip
    angle_factor: float = setting(
        1.0, 1, 10, "Factor by which the ranges of azimuth and elevation grow at every tenth of the run: begin with a narrow "
        "azimuth range about the front against many faces. 1 = they stay; 1.5 = the official factor.", step=0.1,
    )  # fmt: skip
    elevation_min_end_deg: float = setting(-15, -90, 90, "Lowest camera that `angle_factor` leads to, in degrees.", step=1)
    elevation_max_end_deg: float = setting(45, -90, 90, "Highest camera that `angle_factor` leads to, in degrees.", step=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in bounds_of(self):
            if "_min" in name:
                low, top = getattr(self, name), getattr(self, name.replace("_min", "_max"))
                require(low <= top, name, low, f"at most {name.replace('_min', '_max')} ({top})")

    def sample(self, views: int, progress: float, width: int, height: int, generator: Generator) -> Views:
        """Draw `views` cameras at `progress` (0 to 1) of the run.

        Azimuths are stratified: one in each of `views` equal parts of the range, so that a batch sees all sides.
        """
        (azimuth_low, azimuth_high), (low, high), radii, fovys = self.ranges(progress)
        part = (torch.randperm(views, generator=generator) + torch.rand(views, generator=generator)) / views
        u_elevation, u_radius, u_fovy = torch.rand(3, views, generator=generator)
        azimuth = torch.lerp(azimuth_low, azimuth_high, centred(part, self.gamma)).deg2rad()
        elevation = torch.lerp(low, high, centred(u_elevation, self.gamma)).deg2rad()
        if self.sphere_share:
            spread = torch.rand(views, generator=generator) < self.sphere_share
            evenly = torch.lerp(low.deg2rad().sin(), high.deg2rad().sin(), u_elevation).clamp(-1, 1).asin()
            elevation = torch.where(spread, evenly, elevation)
            around = torch.lerp(azimuth_low, azimuth_high, part).deg2rad()
            azimuth = torch.where(spread, around, azimuth)
        radius = torch.lerp(*radii, u_radius)
        fovy = torch.lerp(*fovys, u_fovy).deg2rad()
        cameras = orbit(azimuth, elevation, radius, fovy, width, height)
        return Views(self._jittered(cameras, generator), azimuth, elevation)

    def ranges(self, progress: float) -> tuple[tuple[Tensor, Tensor], ...]:
        """Least and largest azimuth (degrees), elevation (degrees), radius and field of view (degrees) at `progress`."""
        times = int(progress * WIDENINGS + 1e-6)  # so often have the ranges been widened
        share = min(progress / self.widen, 1.0) if self.widen else 1.0

        def late(first: float, last: float, factor: float) -> float:
            if self.schedule == "linear":
                return first + share * (last - first)
            return max(first / factor**times, last) if last < first else min(first * factor**times, last)

        growth = self.angle_factor**times
        middle, half = (self.azimuth_min_deg + self.azimuth_max_deg) / 2, (self.azimuth_max_deg - self.azimuth_min_deg) / 2
        half = max(min(half * growth, 180.0), half)
        low = max(90 - (90 - self.elevation_min_deg) * growth, min(self.elevation_min_end_deg, self.elevation_min_deg))
        high = min(90 - (90 - self.elevation_max_deg) / growth, max(self.elevation_max_end_deg, self.elevation_max_deg))
        radii = [late(getattr(self, f"radius_{end}"), getattr(self, f"radius_{end}_end"), 1 / 0.95) for end in ("min", "max")]
        fovys = [
            late(self.fovy_min_deg, self.fovy_min_end_deg, 1 / 0.75),
            late(self.fovy_max_deg, self.fovy_max_end_deg, 1.1),
        ]
        fovys[0] = min(fovys)
        return _ends(middle - half, middle + half), _ends(low, high), _ends(*radii), _ends(*fovys)

    def _jittered(self, cameras: Cameras, generator: Generator) -> Cameras:
        """Shift and tilt each camera a little, as in LucidDreamer's code; without jitter nothing is drawn."""
        if not (self.jitter_center or self.jitter_target or self.jitter_up):
            return cameras
        box = self.jitter_center * (torch.rand(len(cameras), 3, generator=generator) - 0.5)
        target, tilt = torch.randn(2, len(cameras), 3, generator=generator)
        rotation = cameras.viewmats[:, :3, :3]
        position = box - (rotation.mT @ cameras.viewmats[:, :3, 3:])[..., 0]  # (B, 3) world
        forward = torch.nn.functional.normalize(self.jitter_target * target - position, dim=-1)
        down = rotation[:, 1] + self.jitter_up * tilt
        right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
        viewmats = cameras.viewmats.clone()
        viewmats[:, :3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
        viewmats[:, :3, 3] = -(viewmats[:, :3, :3] @ position[..., None])[..., 0]
        return Cameras(viewmats, cameras.Ks)


def centred(u: Tensor, gamma: float) -> Tensor:
    """Uniform draws in [0, 1) -> the same about 0.5 with the distance from it to the power of gamma."""
    side = 2 * u - 1
    return 0.5 + 0.5 * side.sign() * side.abs() ** gamma


def _ends(first: float, last: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(float(first)), torch.tensor(float(last))


def look(position: Tensor, target: Tensor, rotation: Tensor | None = None) -> Tensor:
    """One world-to-camera pose (1, 4, 4) from (3,) points; `rotation` (3, 3) world-to-camera, or None = upright."""
    if rotation is None:
        forward = torch.nn.functional.normalize(target - position, dim=0)
        right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
        if right.norm() < 1e-6:  # straight up or down
            right = torch.tensor([1.0, 0.0, 0.0])
        right = torch.nn.functional.normalize(right, dim=0)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ position
    return pose[None]


def turned(camera: Cameras, azimuth_rad: Tensor, centre: Tensor) -> Cameras:
    """One camera carried round the vertical through `centre` (3,) by angles (B,)."""
    sin, cos, zero, one = azimuth_rad.sin(), azimuth_rad.cos(), torch.zeros_like(azimuth_rad), torch.ones_like(azimuth_rad)
    back = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1).reshape(-1, 3, 3)  # turns the world back
    world = torch.eye(4).repeat(len(azimuth_rad), 1, 1)
    world[:, :3, :3], world[:, :3, 3] = back, centre - back @ centre
    return Cameras(camera.viewmats @ world, camera.Ks.expand(len(azimuth_rad), 3, 3))


def framed(splats: Splats, elevation_rad: float, fovy_rad: float, width: int, height: int) -> tuple[Splats, Cameras]:
    """`splats` at the origin, of another size, and a camera before their front that frames the whole of them.

    Far-off stragglers do not count: the frame holds the nearest 99% of the Gaussians, to three standard deviations.
    """
    solid = splats.map(lambda x: x[splats.opacities >= 1 / 255]) if (splats.opacities >= 1 / 255).any() else splats
    centre = torch.from_numpy(np.median(solid.means.numpy(), axis=0))
    reach = ((solid.means - centre).norm(dim=-1) + 3 * solid.scales.amax(-1)).sort().values
    extent = float(reach[math.ceil(0.99 * len(reach)) - 1].clamp_min(1e-12))
    factor = VIEWING_DISTANCE * 0.95 * math.sin(fovy_rad / 2) / extent
    one = torch.ones(1)
    camera = orbit(0 * one, elevation_rad * one, VIEWING_DISTANCE * one, fovy_rad * one, width, height)
    return replace(splats, means=(splats.means - centre) * factor, scales=splats.scales * factor), camera


def from_viewing_distance(splats: Splats, camera: Cameras, target: Tensor) -> tuple[Splats, Cameras]:
    """The same view of `splats`, moved so that `target` (3,) is the origin, and where they are near the camera, enlarged.

    Renderers cull what is nearer than a fixed distance, which would be all of a small splat. Half of the Gaussians in front of
    the camera are then at least `VIEWING_DISTANCE` off.
    """
    rotation, shift = camera.viewmats[:, :3, :3], camera.viewmats[:, :3, 3]
    shift = (rotation @ target) + shift  # (1, 3) the target as the camera sees it
    depths = (splats.means - target) @ rotation[0, 2] + shift[0, 2]
    in_front = depths[depths > 0]
    factor = max(VIEWING_DISTANCE / float(in_front.median().clamp_min(1e-12)), 1.0) if len(in_front) else 1.0
    viewmats = camera.viewmats.clone()
    viewmats[:, :3, 3] = shift * factor
    return replace(splats, means=(splats.means - target) * factor, scales=splats.scales * factor), Cameras(viewmats, camera.Ks)


def why_unseen(splats: Splats) -> str:
    """What may keep `splats` from showing in a picture that frames them."""
    if float(splats.opacities.max()) < 1 / 255:
        return f"no Gaussian is more opaque than {float(splats.opacities.max()):.2g}"
    where = ", ".join(f"{value:.3g}" for value in splats.means.median(dim=0).values.tolist())
    return f"no camera looks at it: it lies about ({where})"
