"""Cameras: OpenCV world-to-camera poses on an orbit about the origin, and the ranges they are drawn from.

World frame: x right, y down, z forward (up is -y). The front of an object faces -z, so at azimuth 0 the
camera is on the -z axis. Azimuth increases towards +x, elevation towards -y, as yaw and pitch of ComfyUI's
Create Camera Info.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from .errors import BadInput
from .settings import BoundedSettings, bounds_of, check_bounds, choice, require, setting
from .splats import Splats


@dataclass(frozen=True)
class Cameras:
    """B pinhole cameras: viewmats (B, 4, 4) OpenCV world-to-camera, Ks (B, 3, 3) intrinsics in pixels."""

    viewmats: Tensor
    Ks: Tensor

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def positions(self) -> Tensor:
        """The cameras' positions (B, 3) in the world."""
        return -(self.viewmats[:, :3, :3].mT @ self.viewmats[:, :3, 3:])[..., 0]

    def map(self, f: Callable[[Tensor], Tensor]) -> Cameras:
        """Apply `f` to both tensors."""
        return Cameras(f(self.viewmats), f(self.Ks))


CROPPED = 0.02  # least relative change of the ratio of the sides that is no rounding


@dataclass(frozen=True)
class SizedCameras:
    """V cameras, with the size in pixels of the pictures that their intrinsics belong to."""

    cameras: Cameras
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.cameras)

    def for_size(self, width: int, height: int) -> Cameras:
        """The cameras of the same pictures resized to `width` and `height` pixels.

        Raises BadInput if the pictures were cropped: the ratio of their sides differs.
        """
        if abs(width / height * self.height / self.width - 1) > CROPPED:
            raise BadInput(
                "cameras",
                f"belong to pictures of {self.width} x {self.height} px, not of {width} x {height} px; "
                f"resize the pictures without cropping",
            )
        return self.scale_to(width, height)

    def scale_to(self, width: int, height: int) -> Cameras:
        """As `for_size`, for any ratio of the sides: pixels need not be square."""
        factors = torch.tensor([width / self.width, height / self.height, 1.0], device=self.cameras.Ks.device)
        return replace(self.cameras, Ks=self.cameras.Ks * factors[:, None])


def orbit(
    azimuth_rad: Tensor, elevation_rad: Tensor, radius: Tensor, fovy_rad: Tensor, width: int, height: int
) -> Cameras:
    """Cameras that look at the origin; the four tensors are (B,), radius in world units.

    `fovy_rad` spans the shorter image side, as in ComfyUI. `width` and `height` in pixels.
    """
    sin_a, cos_a = azimuth_rad.sin(), azimuth_rad.cos()
    sin_e, cos_e = elevation_rad.sin(), elevation_rad.cos()
    zero = torch.zeros_like(sin_a)
    position = radius[:, None] * torch.stack([cos_e * sin_a, -sin_e, -cos_e * cos_a], -1)  # (B, 3) world
    right = torch.stack([cos_a, zero, sin_a], -1)
    forward = torch.stack([-cos_e * sin_a, sin_e, cos_e * cos_a], -1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)  # (B, 3, 3), rows are the camera axes
    viewmats = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ position[:, :, None])[:, :, 0]
    return Cameras(viewmats, intrinsics(fovy_rad, width, height))


def intrinsics(fovy_rad: Tensor, width: int, height: int) -> Tensor:
    """Fields of view (B,) over the shorter image side -> intrinsics (B, 3, 3) in pixels, centred."""
    focal = min(width, height) / 2 / (fovy_rad / 2).tan()
    Ks = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    Ks[:, 0, 0] = Ks[:, 1, 1] = focal
    Ks[:, 0, 2], Ks[:, 1, 2], Ks[:, 2, 2] = width / 2, height / 2, 1.0
    return Ks


def turntable(
    views: int, elevation_deg: float, radius: float, fovy_deg: float, width: int, height: int
) -> Cameras:
    """`views` cameras at equal azimuth steps around the object, starting at the front."""
    azimuth = torch.arange(views) * (2 * math.pi / views)
    full = torch.full_like(azimuth, 1.0)
    return orbit(
        azimuth,
        full * math.radians(elevation_deg),
        full * radius,
        full * math.radians(fovy_deg),
        width,
        height,
    )


@dataclass(frozen=True)
class Views:
    """A batch of training views: cameras, and the angles (B,) that view-dependent prompts use."""

    cameras: Cameras
    azimuth_rad: Tensor
    elevation_rad: Tensor


# world units from camera to splat; far beyond the near planes of the renderers (0.01 and 0.2)
VIEWING_DISTANCE = 5.0
SCHEDULES = ("official", "linear")
WIDENINGS = 10  # number of times per run that the official schedule changes the ranges
_RADIUS = "distance of the camera from the centre of the splat, in world units"
_FOVY = "vertical field of view in degrees"


@dataclass(frozen=True)
class CloseUp(BoundedSettings):
    """A share of the views that orbit another point than the origin, at a smaller field of view.

    Raises BadSetting for a value out of bounds.
    """

    share: float = setting(
        0.3, 0, 1, "Fraction of the views that look at the point; 1 = all, 0 = none.", advanced=False
    )
    zoom: float = setting(
        3.0,
        0.1,
        100,
        "Magnification of these views, by a smaller field of view; 1 = none.",
        step=0.1,
        advanced=False,
    )
    x: float = setting(
        0.0, -1000, 1000, "The point along x (to the right), in world units; 0 = the origin.", advanced=False
    )
    y: float = setting(
        0.0,
        -1000,
        1000,
        "The point along y (down), in world units; 0 = the origin; a head is at a negative y.",
        advanced=False,
    )
    z: float = setting(
        0.0,
        -1000,
        1000,
        "The point along z (from front to back), in world units; 0 = the origin.",
        advanced=False,
    )

    def apply(self, cameras: Cameras, generator: Generator) -> Cameras:
        """The cameras, of which those that `generator` chooses are moved and zoomed."""
        near = torch.rand(len(cameras), generator=generator) < self.share
        shift = cameras.viewmats[:, :3, :3] @ cameras.viewmats.new_tensor([self.x, self.y, self.z])
        viewmats, Ks = cameras.viewmats.clone(), cameras.Ks.clone()
        viewmats[near, :3, 3] -= shift[near]
        Ks[near, :2, :2] *= self.zoom
        return Cameras(viewmats, Ks)


@dataclass(frozen=True)
class CameraRanges:
    """Ranges from which training cameras are drawn uniformly. Defaults: the official ranges.

    schedule "official": at every tenth of the run radii are multiplied by 0.95, the minimum field of view by
    0.75 and the maximum one by 1.1 (or divided, depending on direction), until they reach their `_end`
    values. `angle_factor` widens the azimuth range about its middle, up to 360 degrees, and the polar angles
    of the elevation range, up to its `_end` values. Source: LucidDreamer's train.py; its configs for heads
    start with azimuths of -80 to 80 degrees and a factor of 1.5. schedule "linear": radius and field of view
    change linearly from their initial to their `_end` ranges over the first `widen` of the run. close_up: a
    share of the views that look closer at one point; None = none.

    Raises BadSetting for a value out of bounds or a minimum above its maximum.
    """

    azimuth_min_deg: float = setting(
        -180,
        -360,
        360,
        "Minimum azimuth in degrees; 0 = front, 90 = from the viewer's right.",
        step=1,
        advanced=False,
    )
    azimuth_max_deg: float = setting(180, -360, 360, "Maximum azimuth in degrees.", step=1, advanced=False)
    elevation_min_deg: float = setting(
        -15, -90, 90, "Minimum elevation in degrees; 0 = horizon.", step=1, advanced=False
    )
    elevation_max_deg: float = setting(
        45, -90, 90, "Maximum elevation in degrees; 90 = directly above.", step=1, advanced=False
    )
    radius_min: float = setting(5.2, 0.01, 1000, f"Minimum {_RADIUS}.", advanced=False)
    radius_max: float = setting(5.5, 0.01, 1000, f"Maximum {_RADIUS}.", advanced=False)
    radius_min_end: float = setting(3.5, 0.01, 1000, f"Minimum {_RADIUS}, late in the run.")
    radius_max_end: float = setting(5.0, 0.01, 1000, f"Maximum {_RADIUS}, late in the run.")
    fovy_min_deg: float = setting(18.3, 1, 120, f"Minimum {_FOVY}.", step=0.1, advanced=False)
    fovy_max_deg: float = setting(34.4, 1, 120, f"Maximum {_FOVY}.", step=0.1, advanced=False)
    fovy_min_end_deg: float = setting(9.2, 1, 120, f"Minimum {_FOVY}, late in the run.", step=0.1)
    fovy_max_end_deg: float = setting(34.4, 1, 120, f"Maximum {_FOVY}, late in the run.", step=0.1)
    widen: float = setting(
        0.5,
        0,
        1,
        "Schedule linear: fraction of the run over which initial ranges change to late ones; 0 = at once.",
    )
    gamma: float = setting(
        1.0,
        0.1,
        10,
        "Above 1 favours the middle of the azimuth and elevation ranges, below 1 their ends; 1 = uniform.",
        step=0.1,
    )
    sphere_share: float = setting(
        0.0,
        0,
        1,
        "Fraction of views uniform by area on the sphere (within the ranges); 0 = none.",
    )
    jitter_center: float = setting(
        0.05,
        0,
        10,
        "Random shift of the camera position along each axis: full width in world units; 0 = none.",
    )
    jitter_target: float = setting(
        0.05, 0, 10, "Random shift of the look-at point: standard deviation in world units; 0 = none."
    )
    jitter_up: float = setting(
        0.01, 0, 1, "Random tilt of the up vector: standard deviation in radians; 0 = none."
    )
    schedule: str = choice(
        SCHEDULES,
        "How radius and field of view change to their late ranges. official: in steps, every tenth of the "
        "run; linear: continuously over `widen`.",
    )
    angle_factor: float = setting(
        1.0,
        1,
        10,
        "Growth of the azimuth and elevation ranges at every tenth of the run; 1 = off, 1.5 = official. "
        "With a narrow initial azimuth range it reduces the multi-face problem.",
        step=0.1,
    )
    elevation_min_end_deg: float = setting(
        -15, -90, 90, "Minimum elevation that `angle_factor` may reach, in degrees.", step=1
    )
    elevation_max_end_deg: float = setting(
        45, -90, 90, "Maximum elevation that `angle_factor` may reach, in degrees.", step=1
    )
    close_up: CloseUp | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in bounds_of(self):
            if "_min" in name:
                low, top = getattr(self, name), getattr(self, name.replace("_min", "_max"))
                require(low <= top, name, low, f"at most {name.replace('_min', '_max')} ({top})")

    def sample(self, views: int, progress: float, width: int, height: int, generator: Generator) -> Views:
        """Draw `views` cameras at `progress` (0 to 1) of the run; `width`, `height` in pixels.

        Azimuths are stratified, one in each of `views` equal parts of the range, so that a batch covers all
        sides.
        """
        (azimuth_low, azimuth_high), (low, high), radii, fovys = self.ranges(progress)
        part = (torch.randperm(views, generator=generator) + torch.rand(views, generator=generator)) / views
        u_elevation, u_radius, u_fovy = torch.rand(3, views, generator=generator)
        azimuth = torch.lerp(azimuth_low, azimuth_high, draw_to_middle(part, self.gamma)).deg2rad()
        elevation = torch.lerp(low, high, draw_to_middle(u_elevation, self.gamma)).deg2rad()
        if self.sphere_share:
            spread = torch.rand(views, generator=generator) < self.sphere_share
            evenly = torch.lerp(low.deg2rad().sin(), high.deg2rad().sin(), u_elevation).clamp(-1, 1).asin()
            elevation = torch.where(spread, evenly, elevation)
            around = torch.lerp(azimuth_low, azimuth_high, part).deg2rad()
            azimuth = torch.where(spread, around, azimuth)
        radius = torch.lerp(*radii, u_radius)
        fovy = torch.lerp(*fovys, u_fovy).deg2rad()
        cameras = self._jitter(orbit(azimuth, elevation, radius, fovy, width, height), generator)
        if self.close_up and self.close_up.share:
            cameras = self.close_up.apply(cameras, generator)
        return Views(cameras, azimuth, elevation)

    def ranges(self, progress: float) -> tuple[tuple[Tensor, Tensor], ...]:
        """(minimum, maximum) of azimuth, elevation, radius and field of view at `progress`, in degrees."""
        times = int(progress * WIDENINGS + 1e-6)  # number of changes so far
        share = min(progress / self.widen, 1.0) if self.widen else 1.0

        def late(first: float, last: float, factor: float) -> float:
            if self.schedule == "linear":
                return first + share * (last - first)
            return max(first / factor**times, last) if last < first else min(first * factor**times, last)

        growth = self.angle_factor**times
        middle = (self.azimuth_min_deg + self.azimuth_max_deg) / 2
        half = (self.azimuth_max_deg - self.azimuth_min_deg) / 2
        half = max(min(half * growth, 180.0), half)
        low = max(
            90 - (90 - self.elevation_min_deg) * growth,
            min(self.elevation_min_end_deg, self.elevation_min_deg),
        )
        high = min(
            90 - (90 - self.elevation_max_deg) / growth,
            max(self.elevation_max_end_deg, self.elevation_max_deg),
        )
        radii = [
            late(getattr(self, f"radius_{end}"), getattr(self, f"radius_{end}_end"), 1 / 0.95)
            for end in ("min", "max")
        ]
        fovys = [
            late(self.fovy_min_deg, self.fovy_min_end_deg, 1 / 0.75),
            late(self.fovy_max_deg, self.fovy_max_end_deg, 1.1),
        ]
        fovys[0] = min(fovys)
        return _ends(middle - half, middle + half), _ends(low, high), _ends(*radii), _ends(*fovys)

    def _jitter(self, cameras: Cameras, generator: Generator) -> Cameras:
        """Add random shift and tilt as in LucidDreamer's code; draws no random numbers if all are 0."""
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


def draw_to_middle(u: Tensor, gamma: float) -> Tensor:
    """Concentrate uniform draws in [0, 1) near 0.5: the scaled distance from 0.5 to the power of gamma."""
    side = 2 * u - 1
    return 0.5 + 0.5 * side.sign() * side.abs() ** gamma


def _ends(first: float, last: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(float(first)), torch.tensor(float(last))


def look(position: Tensor, target: Tensor, rotation: Tensor | None = None) -> Tensor:
    """World-to-camera pose (1, 4, 4) at `position` (3,), looking at `target` (3,).

    rotation: (3, 3) world-to-camera; None = upright, towards `target`.
    """
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


def rotate(camera: Cameras, azimuth_rad: Tensor, centre: Tensor) -> Cameras:
    """One camera rotated about the vertical axis through `centre` (3,) by angles (B,) -> B cameras."""
    sin = azimuth_rad.sin()
    cos = azimuth_rad.cos()
    zero = torch.zeros_like(azimuth_rad)
    one = torch.ones_like(azimuth_rad)
    # inverse rotation, applied to the world
    back = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1).reshape(-1, 3, 3)
    world = torch.eye(4).repeat(len(azimuth_rad), 1, 1)
    world[:, :3, :3], world[:, :3, 3] = back, centre - back @ centre
    return Cameras(camera.viewmats @ world, camera.Ks.expand(len(azimuth_rad), 3, 3))


def frame_splats(
    splats: Splats, elevation_rad: float, fovy_rad: float, width: int, height: int
) -> tuple[Splats, Cameras]:
    """Centre and rescale `splats`, and return them with a camera (1) at their front that frames them, as
    `framing` says.
    """
    centre, distance = framing(splats, fovy_rad)
    factor = VIEWING_DISTANCE / distance
    one = torch.ones(1)
    camera = orbit(0 * one, elevation_rad * one, VIEWING_DISTANCE * one, fovy_rad * one, width, height)
    return replace(splats, means=(splats.means - centre) * factor, scales=splats.scales * factor), camera


def framing(splats: Splats, fovy_rad: float) -> tuple[Tensor, float]:
    """The point (3,) in the middle of `splats`, and the distance from which a view of it contains the nearest
    99% of the visible Gaussians, to three standard deviations.

    The others are taken as outliers.
    """
    solid = (
        splats.map(lambda x: x[splats.opacities >= 1 / 255])
        if (splats.opacities >= 1 / 255).any()
        else splats
    )
    centre = torch.from_numpy(np.median(solid.means.numpy(), axis=0))
    reach = ((solid.means - centre).norm(dim=-1) + 3 * solid.scales.amax(-1)).sort().values
    extent = float(reach[math.ceil(0.99 * len(reach)) - 1].clamp_min(1e-12))
    return centre, extent / (0.95 * math.sin(fovy_rad / 2))


def from_viewing_distance(splats: Splats, camera: Cameras, target: Tensor) -> tuple[Splats, Cameras]:
    """The same view of `splats`, with `target` (3,) moved to the origin and close scenes scaled up.

    Renderers cull everything nearer than a fixed distance, which could be the whole of a small splat. After
    scaling, half of the Gaussians in front of the camera are at least `VIEWING_DISTANCE` away.
    """
    rotation, shift = camera.viewmats[:, :3, :3], camera.viewmats[:, :3, 3]
    shift = (rotation @ target) + shift  # (1, 3) target in the camera frame
    depths = (splats.means - target) @ rotation[0, 2] + shift[0, 2]
    in_front = depths[depths > 0]
    factor = max(VIEWING_DISTANCE / float(in_front.median().clamp_min(1e-12)), 1.0) if len(in_front) else 1.0
    viewmats = camera.viewmats.clone()
    viewmats[:, :3, 3] = shift * factor
    return replace(splats, means=(splats.means - target) * factor, scales=splats.scales * factor), Cameras(
        viewmats, camera.Ks
    )


def why_unseen(splats: Splats) -> str:
    """The likely reason why `splats` are invisible in a view that frames them."""
    if float(splats.opacities.max()) < 1 / 255:
        return f"no Gaussian is more opaque than {float(splats.opacities.max()):.2g}"
    where = ", ".join(f"{value:.3g}" for value in splats.means.median(dim=0).values.tolist())
    return f"no camera looks at it: it lies about ({where})"
