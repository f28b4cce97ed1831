"""CPU kernels of the bake: triangles into a depth buffer, and colours of one view into texels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..rasterize.jit import kernel, spread

ROWS_EACH, TEXELS_EACH = 16, 8192  # least work of a thread
REACH = 2.2  # pixels from a point to the farthest pixel centre of the 3x3 around it, rounded up
FLAT = 0.1  # least cosine between the surface and a view that may colour it
FAINT = 0.1  # least opacity of a pixel that may colour the surface


@kernel()
def _draw(first, end, corners, face, depth):  # type: ignore[no-untyped-def]  # numba infers the types
    width = face.shape[1]
    for f in range(corners.shape[0]):
        ax, ay, az = corners[f, 0]
        bx, by, bz = corners[f, 1]
        cx, cy, cz = corners[f, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or min(az, bz, cz) <= 0:
            continue
        low = max(first, math.ceil(min(ay, by, cy) - 0.5))
        high = min(end - 1, math.floor(max(ay, by, cy) - 0.5))
        left = max(0, math.ceil(min(ax, bx, cx) - 0.5))
        right = min(width - 1, math.floor(max(ax, bx, cx) - 0.5))
        for row in range(low, high + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
                c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                a = 1 - b - c
                if a < 0 or b < 0 or c < 0:
                    continue
                z = 1 / (a / az + b / bz + c / cz)
                if z < depth[row, column]:
                    depth[row, column] = z
                    face[row, column] = f


def draw(
    corners: NDArray[np.float64], width: int, height: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest triangle at every pixel centre.

    corners (F, 3, 3): x and y in pixels, z the depth, by which x and y were divided. Returns the face
    (H, W), -1 = none, and its depth (H, W), infinite = none. Triangles behind the camera are left out.
    """
    face = np.full((height, width), -1, np.int32)
    depth = np.full((height, width), np.inf, np.float32)
    spread(_draw, height, ROWS_EACH, np.ascontiguousarray(corners, np.float64), face, depth)
    return face, depth


@kernel()
def _collect(first, end, points, normals, pose, K, picture, depth, power, reach, sums):  # type: ignore[no-untyped-def]  # numba infers the types
    height, width = depth.shape
    for i in range(first, end):
        x, y, z = points[i]
        nx, ny, nz = normals[i]
        cx = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]
        cy = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]
        cz = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
        if cz <= 0:
            continue
        u = K[0, 0] * cx / cz + K[0, 2] - 0.5
        v = K[1, 1] * cy / cz + K[1, 2] - 0.5
        if not (0 <= u < width - 1 and 0 <= v < height - 1):
            continue
        facing = (
            cx * (pose[0, 0] * nx + pose[0, 1] * ny + pose[0, 2] * nz)
            + cy * (pose[1, 0] * nx + pose[1, 1] * ny + pose[1, 2] * nz)
            + cz * (pose[2, 0] * nx + pose[2, 1] * ny + pose[2, 2] * nz)
        )
        cosine = min(abs(facing) / math.sqrt(cx * cx + cy * cy + cz * cz), 1.0)
        if cosine < FLAT:
            continue
        column, row = math.floor(u + 0.5), math.floor(v + 0.5)
        nearest = np.inf
        for j in range(max(row - 1, 0), min(row + 2, height)):
            for k in range(max(column - 1, 0), min(column + 2, width)):
                nearest = min(nearest, depth[j, k])
        slope = math.sqrt(1 - cosine * cosine) / cosine
        if cz > nearest + (1 + REACH * slope) * cz / K[0, 0]:
            continue
        column, row = int(u), int(v)
        right, down = u - column, v - row
        opacity, red, green, blue, distance = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(2):
            for k in range(2):
                share = (down if j else 1 - down) * (right if k else 1 - right)
                red += share * picture[row + j, column + k, 0]
                green += share * picture[row + j, column + k, 1]
                blue += share * picture[row + j, column + k, 2]
                opacity += share * picture[row + j, column + k, 3]
                distance += share * picture[row + j, column + k, 4]
        if opacity < FAINT:
            continue
        off = (distance / opacity - cz) / reach
        weight = cosine**power * math.exp(-off * off / 2)
        sums[i, 0] += weight * red
        sums[i, 1] += weight * green
        sums[i, 2] += weight * blue
        sums[i, 3] += weight * opacity


def collect(
    points: NDArray[np.float32],
    normals: NDArray[np.float32],
    pose: NDArray[np.float32],
    K: NDArray[np.float32],
    picture: NDArray[np.float32],
    depth: NDArray[np.float32],
    power: float,
    reach: float,
    sums: NDArray[np.float64],
) -> None:
    """Add the colours that the points show in one view to `sums` (T, 4): weight * rgb, weight * opacity.

    points and unit normals (T, 3) in the world; pose (4, 4) world-to-camera; K (3, 3) in pixels; picture
    (H, W, 5) of the splat: rgb on black, opacity, depth times opacity; depth (H, W) of the mesh.

    weight = cosine**power * exp(-(d / reach)**2 / 2), of the angle between normal and view, whose sign does
    not matter, and of the difference d between the depths of the splat and of the point. A point counts
    unless it is behind the nearest depth of the 3x3 pixels around it; the tolerance is what the surface's own
    slope makes of these pixels. The depth of the splat alone would not do, since it is a mean over a shell as
    thick as the Gaussians are large; that of the mesh alone lets soft edges in front bleed on what is behind.
    """
    spread(_collect, len(points), TEXELS_EACH, points, normals, pose, K, picture, depth, power, reach, sums)
