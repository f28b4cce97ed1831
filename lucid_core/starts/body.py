"""A neutral human body of capsules: its surface as a mesh, and its OpenPose skeleton as splats.

Lengths are fractions of the standing height. Body frame: x to the body's left, y up from the ground, z to the
front, as in glTF. The results are scaled and centred half-way up.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import check_bounds, require, setting
from ..splats import Splats, round_splats
from .mesh import Mesh
from .surface_nets import cut_edges, join_faces, number_cells

CENTRE = torch.tensor([0.0, 0.5, 0.0])
TO_WORLD = torch.tensor([1.0, -1.0, -1.0])  # of splats: y down, z to the back
CELL = 1 / 128  # of the grid on which the surface is found
BLEND = 0.008  # width over which the capsules are blended
MARGIN = 0.02  # space around the body

# OpenPose's 18 keypoints of COCO in its order; keypoint i has the hue i / 18 (Cao et al. 2019, its code).
KEYPOINTS = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow"),
    *("left wrist", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle"),
    *("right eye", "left eye", "right ear", "left ear"),
)
# The limbs in the order of ControlNet's annotator; limb i has the hue i / 18 too, darkened.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
LIMB_LIGHT = 0.6
# Half the annotator's width is 4 pixels of 512: here for a body that fills three quarters of a view.
STICK = 4 / (0.75 * 512)
DISC = 1.3 * STICK  # the annotator draws discs over limbs; larger ones show through limbs before them
SPACING = 0.0035  # between the Gaussians of a stick
HIDING = 0.9  # radius of the black head that hides the face from behind, as a share of the head's


@dataclass(frozen=True)
class Limb:
    """Angles in degrees from hanging down: out to the body's own side, forward, and bend of the elbow
    (forward) or the knee (backward).
    """

    out: float = 0.0
    forward: float = 0.0
    bend: float = 0.0


@dataclass(frozen=True)
class Pose:
    """The limbs, right and left."""

    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb] = (Limb(5), Limb(5))


POSES = {
    "A pose": Pose((Limb(45), Limb(45))),
    "T pose": Pose((Limb(90), Limb(90))),
    "walking": Pose((Limb(10, 28, 30), Limb(10, -28, 15)), (Limb(1, -16, 24), Limb(1, 26, 8))),
}


@dataclass(frozen=True)
class Capsule:
    """The hull of a ball of radius `ra` at `a` (3,) and one of radius `rb` at `b` (3,)."""

    a: Tensor
    b: Tensor
    ra: float
    rb: float

    def depth(self, points: Tensor) -> Tensor:
        """Depth of points (..., 3) below the surface; negative outside."""
        axis = self.b - self.a
        share = ((points - self.a) @ axis / (axis @ axis)).clamp(0, 1)
        away: Tensor = (points - self.a - share[..., None] * axis).norm(dim=-1)
        return self.ra + (self.rb - self.ra) * share - away


@dataclass(frozen=True)
class Body:
    """A body in one of POSES. Raises BadSetting for an unknown pose or a height out of bounds."""

    pose: str = "A pose"
    height: float = setting(
        1.0,
        0.001,
        1000,
        "Height of the standing body in world units; its middle is the origin.",
        advanced=False,
    )

    def __post_init__(self) -> None:
        require(self.pose in POSES, "pose", repr(self.pose), f"one of {', '.join(POSES)}")
        check_bounds(self)

    def mesh(self) -> Mesh:
        """The closed surface of the body, without colours, in glTF's frame."""
        body = capsules(joints(POSES[self.pose]))
        points, faces = surface(body)
        return Mesh((points - CENTRE) * self.height, faces)

    def skeleton(self) -> Splats:
        """OpenPose's picture of the body in the world frame: coloured limbs, discs at the keypoints, and a
        black head that hides the face from behind.

        Rendered on black it is the hint of a pose ControlNet. The limbs are as wide as OpenPose draws them
        where the body fills three quarters of the view, and wider in a closer view.
        """
        positions = joints(POSES[self.pose])
        points = torch.stack([positions[name] for name in KEYPOINTS])
        parts = [
            *((fill_stick(points[a], points[b]), LIMB_LIGHT * hue(i)) for i, (a, b) in enumerate(LIMBS)),
            *((fill_ellipsoid(torch.full((3,), DISC)) + point, hue(i)) for i, point in enumerate(points)),
            (fill_capsule(head()[0], HIDING), torch.zeros(3)),
        ]
        means = (torch.cat([filled for filled, _ in parts]) - CENTRE) * self.height * TO_WORLD
        colors = torch.cat([color.expand(len(filled), 3) for filled, color in parts])
        return round_splats(means, 0.5 * SPACING * self.height, 0.99, colors)


def joints(pose: Pose) -> dict[str, Tensor]:
    """The KEYPOINTS, and the ends of hands and feet, by name -> (3,) in the body frame."""
    positions = {"neck": torch.tensor([0.0, 0.815, 0.0]), "nose": torch.tensor([0.0, 0.925, 0.072])}
    for side, sign, arm, leg in (
        ("right", -1.0, pose.arms[0], pose.legs[0]),
        ("left", 1.0, pose.arms[1], pose.legs[1]),
    ):
        upper, lower = direction(arm, sign), direction(arm, sign, arm.bend)
        thigh, shin = direction(leg, sign), direction(leg, sign, -leg.bend)
        found = {
            "eye": torch.tensor([0.02 * sign, 0.945, 0.062]),
            "ear": torch.tensor([0.057 * sign, 0.935, 0.0]),
            "shoulder": torch.tensor([0.115 * sign, 0.815, 0.0]),
            "hip": torch.tensor([0.055 * sign, 0.525, 0.0]),
        }
        found["elbow"] = found["shoulder"] + 0.165 * upper
        found["wrist"] = found["elbow"] + 0.14 * lower
        found["hand"] = found["wrist"] + 0.07 * lower
        found["knee"] = found["hip"] + 0.245 * thigh
        found["ankle"] = found["knee"] + 0.235 * shin
        forward = torch.stack([torch.zeros(()), shin[2], -shin[1]])  # at right angles to the shin
        found["toes"] = found["ankle"] + 0.02 * shin + 0.09 * forward
        positions |= {f"{side} {name}": place for name, place in found.items()}
    return positions


def direction(limb: Limb, sign: float, bend: float = 0.0) -> Tensor:
    """Unit vector (3,) along a part of the limb; `sign`: 1 on the left, -1 on the right."""
    out, forward = math.radians(limb.out), math.radians(limb.forward + bend)
    down = math.cos(out)
    return torch.tensor([sign * math.sin(out), -down * math.cos(forward), down * math.sin(forward)])


def head() -> list[Capsule]:
    """Head and neck."""
    at = torch.tensor
    return [
        Capsule(at([0.0, 0.91, 0.014]), at([0.0, 0.945, 0.0]), 0.046, 0.055),
        Capsule(at([0.0, 0.8, -0.008]), at([0.0, 0.9, 0.0]), 0.032, 0.03),
    ]


def capsules(positions: dict[str, Tensor]) -> list[Capsule]:
    """The parts of the body whose joints are at `positions`."""
    at = torch.tensor
    trunk = [
        Capsule(at([-0.075, 0.755, 0.0]), at([0.075, 0.755, 0.0]), 0.058, 0.058),
        Capsule(at([-0.105, 0.8, -0.005]), at([0.105, 0.8, -0.005]), 0.035, 0.035),
        Capsule(at([-0.025, 0.72, 0.0]), at([-0.02, 0.56, 0.0]), 0.07, 0.06),
        Capsule(at([0.025, 0.72, 0.0]), at([0.02, 0.56, 0.0]), 0.07, 0.06),
        Capsule(at([-0.045, 0.535, -0.005]), at([0.045, 0.535, -0.005]), 0.06, 0.06),
    ]
    bones = (
        *(("shoulder", "elbow", 0.034, 0.026), ("elbow", "wrist", 0.027, 0.019)),
        *(("wrist", "hand", 0.02, 0.017), ("hip", "knee", 0.058, 0.037)),
        *(("knee", "ankle", 0.038, 0.024), ("ankle", "toes", 0.026, 0.018)),
    )
    limbs = [
        Capsule(positions[f"{side} {first}"], positions[f"{side} {last}"], ra, rb)
        for side in ("right", "left")
        for first, last, ra, rb in bones
    ]
    return [*head(), *trunk, *limbs]


def surface(parts: list[Capsule]) -> tuple[Tensor, Tensor]:
    """The blended union of capsules as points (V, 3) and triangles (F, 3), counter-clockwise seen from
    outside.
    """
    ends = torch.stack([end for part in parts for end in (part.a, part.b)])
    reach = max(max(part.ra, part.rb) for part in parts) + MARGIN
    low, high = ends.amin(0) - reach, ends.amax(0) + reach
    axes = [torch.arange(float(low[i]), float(high[i]), CELL) for i in (2, 1, 0)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x, y, z], -1)
    depth = torch.full(x.shape, -torch.inf)
    for part in parts:
        depth = torch.logaddexp(depth, part.depth(grid) / BLEND)
    sums, counts, cuts = cut_edges(depth * BLEND)
    passed = counts > 0
    faces = join_faces(cuts, number_cells(counts))
    return low + CELL * sums[passed] / counts[passed][:, None], faces


def fill_stick(a: Tensor, b: Tensor) -> Tensor:
    """Points (N, 3) SPACING apart in an ellipsoid from `a` to `b`."""
    length = float((b - a).norm())
    along = (b - a) / length
    across = torch.linalg.cross(along, torch.eye(3)[int(along.abs().argmin())])
    across = torch.nn.functional.normalize(across, dim=0)
    frame = torch.stack([across, torch.linalg.cross(along, across), along])
    return fill_ellipsoid(torch.tensor([STICK, STICK, length / 2])) @ frame + (a + b) / 2


def fill_capsule(part: Capsule, share: float) -> Tensor:
    """Points (N, 3) SPACING apart in the capsule with its radii multiplied by `share`."""
    part = Capsule(part.a, part.b, share * part.ra, share * part.rb)
    reach = (part.b - part.a).norm() / 2 + max(part.ra, part.rb)
    grid = fill_ellipsoid(reach.expand(3)) + (part.a + part.b) / 2
    return grid[part.depth(grid) >= 0]


def fill_ellipsoid(reach: Tensor) -> Tensor:
    """Points (N, 3) SPACING apart in the ellipsoid about 0 with semi-axes `reach` (3,)."""
    axes = [SPACING * torch.arange(-int(side / SPACING), int(side / SPACING) + 1) for side in reach.tolist()]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return grid[(grid / reach).norm(dim=-1) <= 1]


def hue(i: int) -> Tensor:
    """The colour (3,) of keypoint or limb `i`."""
    return torch.tensor(colorsys.hsv_to_rgb(i / len(KEYPOINTS), 1.0, 1.0))
