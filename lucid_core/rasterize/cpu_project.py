"""CPU kernels, 1 of 3: projection of Gaussians to the screen, and its gradient (EWA, Zwicker et al. 2001).

Arithmetic is float64, inputs and outputs are float32: float64 costs little here and keeps needles and huge
Gaussians exact. Gaussians that overflow are culled. Kernels only call kernels of the same file, because
numba's cache does not track changes in other files.

Gaussians are processed in blocks of BLOCK: their values are copied to rows of a scratch array, the geometry
is a branch-free loop over lanes, which LLVM vectorises, and the results are copied out. Colours are computed
separately.

A screen covariance [[sxx, sxy], [sxy, syy]] is returned as rows (p, q), (0, s) of a factor of its inverse:
    1/2 d' Sigma^-1 d = (p dx + q dy)^2 + (s dy)^2,
    p = 1 / sqrt(2 v), q = -p sxy / syy, s = 1 / sqrt(2 syy), v = sxx - sxy^2 / syy.
A conic (a, b, c) is equivalent, but for a needle its three terms cancel, which is too inaccurate in float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .cpu_bins import TILE
from .jit import kernel
from .limits import ALPHA_MIN, EXTENT, FAR, JACOBIAN_MARGIN, LOW_PASS, NEAR

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Vector = tuple[float, float, float]
Row = tuple[float, float, float, float]  # of a camera pose

KEEPS_NAN = {"arcp", "contract", "reassoc"}  # the subset of fastmath that preserves inf and NaN
LARGEST = 1e9  # pixels, factors and colours beyond this are culled; their squares stay finite in float32
SLACK = 1e-3  # pixels; against rounding at the box edges, as blending tests every pixel anyway
BLOCK = 16
# rows of the scratch array of a block: inputs, and 3x3 matrices row by row
MEAN, QUAT, SCALE, STRENGTH, R, M, ROWS = 0, 3, 7, 10, 11, 20, 29
# rows per view, forward: visible, radii x y, mean x y, factor p q s, z, box x0 x1 y0 y1
SHOWN, RADII, MEAN2D, FACTOR, DEPTH, BOX, ROWS_OUT = 0, 1, 3, 5, 8, 9, 13
# rows, backward: visible, gradients of mean x y, factor p q s and z in a view, sums over the views
G_MEAN2D, G_FACTOR, G_DEPTH, G_MEAN, G_M, ROWS_BACK = 1, 3, 6, 7, 10, 19


@kernel(fastmath=KEEPS_NAN, inline=True)
def _sh_basis(x: float, y: float, z: float, bands: int, basis: Array) -> None:
    """Real spherical harmonics of a unit direction, 3DGS order and signs; `bands` = (degree + 1)**2."""
    basis[0] = 0.28209479177387814
    if bands > 1:
        basis[1] = -0.4886025119029199 * y
        basis[2] = 0.4886025119029199 * z
        basis[3] = -0.4886025119029199 * x
    if bands > 4:
        xx, yy, zz = x * x, y * y, z * z
        basis[4], basis[5] = 1.0925484305920792 * x * y, -1.0925484305920792 * y * z
        basis[6] = 0.31539156525252005 * (2 * zz - xx - yy)
        basis[7], basis[8] = -1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy)
        if bands > 9:
            basis[9] = -0.5900435899266435 * y * (3 * xx - yy)
            basis[10] = 2.890611442640554 * x * y * z
            basis[11] = -0.4570457994644658 * y * (4 * zz - xx - yy)
            basis[12] = 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)
            basis[13] = -0.4570457994644658 * x * (4 * zz - xx - yy)
            basis[14] = 1.445305721320277 * z * (xx - yy)
            basis[15] = -0.5900435899266435 * x * (xx - 3 * yy)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _sh_backward(x: float, y: float, z: float, bands: int, g: Array) -> Vector:
    """Gradient g (bands,) of the basis -> gradient of x, y, z, not yet projected onto the sphere."""
    gx, gy, gz = 0.0, 0.0, 0.0
    if bands > 1:
        gx, gy, gz = -0.4886025119029199 * g[3], -0.4886025119029199 * g[1], 0.4886025119029199 * g[2]
    if bands > 4:
        a, b, c = 1.0925484305920792, 0.6307831305050401, 1.0925484305920792
        gx += a * (y * g[4] - z * g[7]) - b * x * g[6] + c * x * g[8]
        gy += a * (x * g[4] - z * g[5]) - b * y * g[6] - c * y * g[8]
        gz += -a * (y * g[5] + x * g[7]) + 2 * b * z * g[6]
    if bands > 9:
        xx, yy, zz = x * x, y * y, z * z
        a, b, c = 0.5900435899266435 * 3, 2.890611442640554, 0.4570457994644658
        d, e = 0.3731763325901154, 1.445305721320277
        gx += -a * (2 * x * y * g[9] + (xx - yy) * g[15]) + b * y * z * g[10] + 2 * c * x * y * g[11]
        gx += -6 * d * x * z * g[12] - c * (4 * zz - 3 * xx - yy) * g[13] + 2 * e * x * z * g[14]
        gy += -a * ((xx - yy) * g[9] - 2 * x * y * g[15]) + b * x * z * g[10] + 2 * c * x * y * g[13]
        gy += -6 * d * y * z * g[12] - c * (4 * zz - xx - 3 * yy) * g[11] - 2 * e * y * z * g[14]
        gz += b * x * y * g[10] - 8 * c * z * (y * g[11] + x * g[13])
        gz += d * (6 * zz - 3 * xx - 3 * yy) * g[12] + e * (xx - yy) * g[14]
    return gx, gy, gz


@kernel(fastmath=KEEPS_NAN, inline=True)
def _to_world(W: Array, x: float, y: float, z: float) -> Vector:
    """Rotate a direction or gradient from the camera frame to the world frame."""
    X = W[0, 0] * x + W[1, 0] * y + W[2, 0] * z
    Y = W[0, 1] * x + W[1, 1] * y + W[2, 1] * z
    Z = W[0, 2] * x + W[1, 2] * y + W[2, 2] * z
    return X, Y, Z


@kernel(fastmath=KEEPS_NAN, inline=True)
def _view_direction(W: Array, means: Floats, i: int, bands: int) -> Row:
    """Unit vector from camera to mean in the world frame, and the distance; constants for degree 0."""
    if bands == 1:
        return 0.0, 0.0, 1.0, 1.0
    X, Y, Z = _to_world(W, W[0, 3], W[1, 3], W[2, 3])  # minus the camera position
    X, Y, Z = means[i, 0] + X, means[i, 1] + Y, means[i, 2] + Z
    distance = max(math.sqrt(X * X + Y * Y + Z * Z), 1e-12)
    return X / distance, Y / distance, Z / distance, distance


@kernel(fastmath=KEEPS_NAN, inline=True)
def _slope_limits(K: Array, axis: int, size: float) -> tuple[float, float]:
    """Minimum and maximum x/z (axis 0) or y/z (axis 1), to which the Jacobian is clamped."""
    f, c = K[axis, axis], K[axis, 2]
    margin = JACOBIAN_MARGIN * 0.5 * size / f
    return -c / f - margin, (size - c) / f + margin


@kernel(fastmath=KEEPS_NAN, inline=True)
def _gather(first: int, count: int, means: Floats, quats: Floats, scales: Floats, s: Array) -> None:
    """Copy `count` Gaussians from index `first` to the rows of s."""
    for j in range(count):
        i = first + j
        for c in range(3):
            s[MEAN + c, j], s[SCALE + c, j] = means[i, c], scales[i, c]
        for c in range(4):
            s[QUAT + c, j] = quats[i, c]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes(s: Array) -> None:
    """Fill R and M = R diag(scale), whose columns are the half axes of the Gaussian."""
    for j in range(BLOCK):
        w, x, y, z = s[QUAT, j], s[QUAT + 1, j], s[QUAT + 2, j], s[QUAT + 3, j]
        f = 2 / max(w * w + x * x + y * y + z * z, 1e-24)  # a quaternion of any length
        s[R, j], s[R + 1, j], s[R + 2, j] = 1 - f * (y * y + z * z), f * (x * y - w * z), f * (x * z + w * y)
        s[R + 3, j] = f * (x * y + w * z)
        s[R + 4, j] = 1 - f * (x * x + z * z)
        s[R + 5, j] = f * (y * z - w * x)
        s[R + 6, j] = f * (x * z - w * y)
        s[R + 7, j] = f * (y * z + w * x)
        s[R + 8, j] = 1 - f * (x * x + y * y)
        for row in range(3):
            for k in range(3):
                s[M + 3 * row + k, j] = s[R + 3 * row + k, j] * s[SCALE + k, j]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _row(W: Array, i: int) -> Row:
    return W[i, 0], W[i, 1], W[i, 2], W[i, 3]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _to_camera(s: Array, j: int, w1: Row, w2: Row, w3: Row) -> tuple[float, float, float, bool]:
    """Mean in the camera frame, and whether z is in range; z is 1 if not. w1, w2, w3: rows of the pose."""
    X, Y, Z = s[MEAN, j], s[MEAN + 1, j], s[MEAN + 2, j]
    x = w1[0] * X + w1[1] * Y + w1[2] * Z + w1[3]
    y = w2[0] * X + w2[1] * Y + w2[2] * Z + w2[3]
    z = w3[0] * X + w3[1] * Y + w3[2] * Z + w3[3]
    inside = (z > NEAR) & (z < FAR)
    return x, y, z if inside else 1.0, inside


@kernel(fastmath=KEEPS_NAN, inline=True)
def _screen_axes(s: Array, j: int, w: Row, w3: Row, slope: float, f: float) -> Vector:
    """One row of J W M; the row of J is f * (unit vector of the axis of w - slope * z axis)."""
    a, b, c = f * (w[0] - slope * w3[0]), f * (w[1] - slope * w3[1]), f * (w[2] - slope * w3[2])
    m0 = a * s[M, j] + b * s[M + 3, j] + c * s[M + 6, j]
    m1 = a * s[M + 1, j] + b * s[M + 4, j] + c * s[M + 7, j]
    m2 = a * s[M + 2, j] + b * s[M + 5, j] + c * s[M + 8, j]
    return m0, m1, m2


@kernel(fastmath=KEEPS_NAN, inline=True)
def _covariance(m1: Vector, m2: Vector) -> Row:
    """Rows of J W M -> sxx, sxy, syy, and v = sxx - sxy^2 / syy without cancellation (Cauchy-Binet)."""
    s1 = m1[0] * m1[0] + m1[1] * m1[1] + m1[2] * m1[2]
    s2 = m2[0] * m2[0] + m2[1] * m2[1] + m2[2] * m2[2]
    sxy = m1[0] * m2[0] + m1[1] * m2[1] + m1[2] * m2[2]
    c0, c1, c2 = m1[1] * m2[2] - m1[2] * m2[1], m1[2] * m2[0] - m1[0] * m2[2], m1[0] * m2[1] - m1[1] * m2[0]
    det = c0 * c0 + c1 * c1 + c2 * c2 + LOW_PASS * (s1 + s2) + LOW_PASS * LOW_PASS
    return s1 + LOW_PASS, sxy, s2 + LOW_PASS, det / (s2 + LOW_PASS)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _project_block(s: Array, out: Array, W: Array, K: Array, width: float, height: float) -> None:
    """Project the block in s to one view -> rows of out."""
    w1, w2, w3 = _row(W, 0), _row(W, 1), _row(W, 2)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    (left, right), (top, bottom) = _slope_limits(K, 0, width), _slope_limits(K, 1, height)
    for j in range(BLOCK):
        x, y, z, inside = _to_camera(s, j, w1, w2, w3)
        near = 1 / z
        u, v = fx * x * near + cx, fy * y * near + cy
        m1 = _screen_axes(s, j, w1, w3, min(max(x * near, left), right), fx * near)
        m2 = _screen_axes(s, j, w2, w3, min(max(y * near, top), bottom), fy * near)
        sxx, sxy, syy, variance = _covariance(m1, m2)
        p = 1 / math.sqrt(2 * variance)
        q = -p * sxy / syy
        extent = min(math.sqrt(2 * s[STRENGTH, j]), EXTENT)
        half_x, half_y = extent * math.sqrt(sxx), extent * math.sqrt(syy)
        rx, ry = np.ceil(half_x), np.ceil(half_y)
        shown = inside & (rx > 0) & (ry > 0) & (abs(u) < LARGEST) & (abs(v) < LARGEST) & (abs(q) < LARGEST)
        shown &= (u + rx > 0) & (u - rx < width) & (v + ry > 0) & (v - ry < height)
        out[SHOWN, j] = 1.0 if shown else 0.0
        out[RADII, j] = min(rx, LARGEST)
        out[RADII + 1, j] = min(ry, LARGEST)
        out[MEAN2D, j], out[MEAN2D + 1, j], out[DEPTH, j] = u, v, z
        out[FACTOR, j], out[FACTOR + 1, j], out[FACTOR + 2, j] = p, q, 1 / math.sqrt(2 * syy)
        # box of the pixel centres where alpha may reach 1/255; clamped as floats, which do not overflow
        half_x, half_y = half_x + SLACK, half_y + SLACK
        out[BOX, j] = min(max(u - half_x + 0.5, 0.0), width)
        out[BOX + 1, j] = min(max(u + half_x + 0.5, 0.0), width)
        out[BOX + 2, j] = min(max(v - half_y + 0.5, 0.0), height)
        out[BOX + 3, j] = min(max(v + half_y + 0.5, 0.0), height)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _color(i: int, means: Floats, sh: Floats, W: Array, bands: int, basis: Array, record: Floats) -> bool:
    """Colour of Gaussian i in one view -> record; returns whether it is finite and below LARGEST."""
    dx, dy, dz, _ = _view_direction(W, means, i, bands)
    _sh_basis(dx, dy, dz, bands, basis)
    fits = True
    for c in range(3):
        color = 0.5
        for k in range(bands):
            color += basis[k] * sh[i, k, c]
        record[6 + c] = max(color, 0.0)
        fits &= color < LARGEST  # False for NaN
    return fits


@kernel(fastmath=KEEPS_NAN, inline=True)
def _place(
    out: Array, j: int, opacity: float, strength: float, record: Floats, rect: NDArray[np.int32]
) -> int:
    """Write record and tile rectangle x0 x1 y0 y1 of a visible Gaussian; returns its number of tiles."""
    x0, x1, y0, y1 = int(out[BOX, j]), int(out[BOX + 1, j]), int(out[BOX + 2, j]), int(out[BOX + 3, j])
    record[0], record[1] = out[MEAN2D, j], out[MEAN2D + 1, j]
    record[2] = out[FACTOR, j]
    record[3] = out[FACTOR + 1, j]
    record[4] = out[FACTOR + 2, j]
    record[5] = opacity
    record[9], record[10] = out[DEPTH, j], strength
    record[11], record[12], record[13], record[14] = x0, x1, y0, y1
    if x0 >= x1 or y0 >= y1:
        return 0
    rect[0], rect[1] = x0 // TILE, (x1 - 1) // TILE + 1
    rect[2], rect[3] = y0 // TILE, (y1 - 1) // TILE + 1
    tiles: int = (rect[1] - rect[0]) * (rect[3] - rect[2])
    return tiles


@kernel(fastmath=KEEPS_NAN, allocates=True)
def project(
    first: int,
    end: int,
    means: Floats,
    quats: Floats,
    scales: Floats,
    opacities: Floats,
    sh: Floats,
    views: Array,
    Ks: Array,
    bands: int,
    width: int,
    height: int,
    means2d: Floats,
    records: Floats,
    radii: NDArray[np.int32],
    rects: NDArray[np.int32],
    depths: Floats,
    touched: NDArray[np.int64],
) -> None:
    """Project Gaussians first to end into all views.

    Inputs: means (N, 3), quats (N, 4), scales (N, 3), opacities (N,), sh (N, K, 3), float32; views (B, 4, 4)
    and Ks (B, 3, 3), float64. Outputs: means2d (B, N, 2) and radii (B, N, 2), 0 if culled; records
    (B, N, RECORD), only set if visible; rects (B, N, 4), tiles x0 x1 y0 y1; touched (B, N), number of tiles;
    depths (B, N), z or 0 if no tile is touched.
    """
    s, out, basis = np.zeros((ROWS, BLOCK)), np.zeros((ROWS_OUT, BLOCK)), np.empty(16)
    for begin in range(first, end, BLOCK):
        count = min(BLOCK, end - begin)
        _gather(begin, count, means, quats, scales, s)
        for j in range(count):
            s[STRENGTH, j] = math.log(max(opacities[begin + j] / ALPHA_MIN, 1.0))
        _axes(s)
        for b in range(views.shape[0]):
            _project_block(s, out, views[b], Ks[b], float(width), float(height))
            for j in range(count):
                i = begin + j
                means2d[b, i, 0], means2d[b, i, 1], radii[b, i, 0], radii[b, i, 1] = 0, 0, 0, 0
                rects[b, i, 0], rects[b, i, 1], rects[b, i, 2], rects[b, i, 3] = 0, 0, 0, 0
                depths[b, i], touched[b, i] = 0, 0
                if out[SHOWN, j] > 0 and _color(i, means, sh, views[b], bands, basis, records[b, i]):
                    touched[b, i] = _place(out, j, opacities[i], s[STRENGTH, j], records[b, i], rects[b, i])
                    depths[b, i] = out[DEPTH, j] if touched[b, i] else 0.0
                    for c in range(2):
                        means2d[b, i, c], radii[b, i, c] = out[MEAN2D + c, j], out[RADII + c, j]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _factor_backward(sxy: float, syy: float, variance: float, gp: float, gq: float, gs: float) -> Vector:
    """Gradients of the factor p, q, s -> gradients of sxx, sxy, syy."""
    p, slope, s = 1 / math.sqrt(2 * variance), sxy / syy, 1 / math.sqrt(2 * syy)
    g_variance = -(gp - gq * slope) * p * p * p
    g_slope = -gq * p
    g_sxy = -2 * slope * g_variance + g_slope / syy
    g_syy = slope * slope * g_variance - slope * g_slope / syy - s * s * s * gs
    return g_variance, g_sxy, g_syy


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes_backward(
    s: Array, g: Array, j: int, w: Row, w3: Row, slope: float, f: float, g0: float, g1: float, g2: float
) -> tuple[float, float]:
    """Add the gradient of a row of J W M to G_M if visible; returns the gradients of f and slope."""
    g_f, g_slope = 0.0, 0.0
    for i in range(3):
        a = g0 * s[M + 3 * i, j] + g1 * s[M + 3 * i + 1, j] + g2 * s[M + 3 * i + 2, j]
        n = w[i] - slope * w3[i]
        g_f += a * n
        g_slope -= a * f * w3[i]
        n = f * n if g[SHOWN, j] > 0 else 0.0
        g[G_M + 3 * i, j] += n * g0
        g[G_M + 3 * i + 1, j] += n * g1
        g[G_M + 3 * i + 2, j] += n * g2
    return g_f, g_slope


@kernel(fastmath=KEEPS_NAN, inline=True)
def _geometry_backward(s: Array, g: Array, W: Array, K: Array, width: float, height: float) -> None:
    """Backward pass of `_project_block`: adds the gradients of one view in g to its sums over views."""
    w1, w2, w3 = _row(W, 0), _row(W, 1), _row(W, 2)
    (left, right), (top, bottom) = _slope_limits(K, 0, width), _slope_limits(K, 1, height)
    focal_x, focal_y = K[0, 0], K[1, 1]
    for j in range(BLOCK):
        x, y, z, _ = _to_camera(s, j, w1, w2, w3)
        near = 1 / z
        fx, fy, slope_x, slope_y = focal_x * near, focal_y * near, x * near, y * near
        clamped_x, clamped_y = min(max(slope_x, left), right), min(max(slope_y, top), bottom)
        a0, a1, a2 = _screen_axes(s, j, w1, w3, clamped_x, fx)
        b0, b1, b2 = _screen_axes(s, j, w2, w3, clamped_y, fy)
        _, sxy, syy, variance = _covariance((a0, a1, a2), (b0, b1, b2))
        gxx, gxy, gyy = _factor_backward(
            sxy, syy, variance, g[G_FACTOR, j], g[G_FACTOR + 1, j], g[G_FACTOR + 2, j]
        )
        gxx, gyy = 2 * gxx, 2 * gyy
        g_fx, g_slope_x = _axes_backward(
            s, g, j, w1, w3, clamped_x, fx, gxx * a0 + gxy * b0, gxx * a1 + gxy * b1, gxx * a2 + gxy * b2
        )
        g_fy, g_slope_y = _axes_backward(
            s, g, j, w2, w3, clamped_y, fy, gyy * b0 + gxy * a0, gyy * b1 + gxy * a1, gyy * b2 + gxy * a2
        )
        g_slope_x = g_slope_x if (left <= slope_x) & (slope_x <= right) else 0.0
        g_slope_y = g_slope_y if (top <= slope_y) & (slope_y <= bottom) else 0.0
        gx, gy = fx * g[G_MEAN2D, j], fy * g[G_MEAN2D + 1, j]
        gz = (
            g[G_DEPTH, j]
            - (gx * x + gy * y + g_fx * fx + g_fy * fy + g_slope_x * slope_x + g_slope_y * slope_y) * near
        )
        gx, gy = gx + g_slope_x * near, gy + g_slope_y * near
        for c in range(3):
            total = w1[c] * gx + w2[c] * gy + w3[c] * gz
            g[G_MEAN + c, j] += total if g[SHOWN, j] > 0 else 0.0


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes_to_splat(s: Array, g: Array) -> None:
    """Sums G_M -> gradients of quaternions and scales, which overwrite the values in s."""
    for j in range(BLOCK):
        w, x, y, z = s[QUAT, j], s[QUAT + 1, j], s[QUAT + 2, j], s[QUAT + 3, j]
        inverse = 1 / math.sqrt(max(w * w + x * x + y * y + z * z, 1e-24))
        w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
        s0, s1, s2 = s[SCALE, j], s[SCALE + 1, j], s[SCALE + 2, j]
        a, b, c = g[G_M, j] * s0, g[G_M + 1, j] * s1, g[G_M + 2, j] * s2  # rows of the gradient of R
        d, e, f = g[G_M + 3, j] * s0, g[G_M + 4, j] * s1, g[G_M + 5, j] * s2
        h, k, m = g[G_M + 6, j] * s0, g[G_M + 7, j] * s1, g[G_M + 8, j] * s2
        gw = 2 * (x * (k - f) + y * (c - h) + z * (d - b))
        gx = 2 * (y * (b + d) + z * (c + h) + w * (k - f)) - 4 * x * (e + m)
        gy = 2 * (x * (b + d) + z * (f + k) + w * (c - h)) - 4 * y * (a + m)
        gz = 2 * (x * (c + h) + y * (f + k) + w * (d - b)) - 4 * z * (a + e)
        radial = gw * w + gx * x + gy * y + gz * z  # the length of the quaternion has no effect
        s[QUAT, j], s[QUAT + 1, j] = (gw - radial * w) * inverse, (gx - radial * x) * inverse
        s[QUAT + 2, j], s[QUAT + 3, j] = (gy - radial * y) * inverse, (gz - radial * z) * inverse
        for c in range(3):
            total = g[G_M + c, j] * s[R + c, j] + g[G_M + 3 + c, j] * s[R + 3 + c, j]
            s[SCALE + c, j] = total + g[G_M + 6 + c, j] * s[R + 6 + c, j]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _color_backward(
    i: int,
    means: Floats,
    W: Array,
    sh: Floats,
    bands: int,
    basis: Array,
    g_basis: Array,
    record: Floats,
    g_record: Floats,
    g_sh: Floats,
) -> Vector:
    """Add to g_sh (N, K, 3); returns the gradient of the mean (world) through the view direction."""
    x, y, z, distance = _view_direction(W, means, i, bands)
    _sh_basis(x, y, z, bands, basis)
    g_basis[:] = 0
    for c in range(3):
        if record[6 + c] > 0:  # else clamped
            for k in range(bands):
                g_basis[k] += g_record[6 + c] * sh[i, k, c]
                g_sh[i, k, c] += g_record[6 + c] * basis[k]
    if bands == 1:
        return 0.0, 0.0, 0.0
    gx, gy, gz = _sh_backward(x, y, z, bands, g_basis)
    radial = gx * x + gy * y + gz * z
    return (gx - radial * x) / distance, (gy - radial * y) / distance, (gz - radial * z) / distance


@kernel(fastmath=KEEPS_NAN, inline=True)
def _gather_gradients(
    b: int, i: int, j: int, radii: NDArray[np.int32], g_means2d: Floats, g_records: Floats, g: Array
) -> bool:
    """Copy the gradients of Gaussian i in view b to lane j of g; returns whether it is visible."""
    shown: bool = radii[b, i, 0] > 0
    g[SHOWN, j] = 1.0 if shown else 0.0
    for c in range(2):
        g[G_MEAN2D + c, j] = g_means2d[b, i, c] if shown else 0.0
    for c in range(3):
        g[G_FACTOR + c, j] = g_records[b, i, 2 + c] if shown else 0.0
    g[G_DEPTH, j] = g_records[b, i, 9] if shown else 0.0
    return shown


@kernel(fastmath=KEEPS_NAN, allocates=True)
def project_backward(
    first: int,
    end: int,
    means: Floats,
    quats: Floats,
    scales: Floats,
    sh: Floats,
    views: Array,
    Ks: Array,
    bands: int,
    width: int,
    height: int,
    radii: NDArray[np.int32],
    records: Floats,
    g_means2d: Floats,
    g_records: Floats,
    g_means: Floats,
    g_quats: Floats,
    g_scales: Floats,
    g_opacities: Floats,
    g_sh: Floats,
) -> None:
    """Backward pass of `project`; shapes as there. One thread sums all views of a Gaussian: no atomics."""
    s, g, basis, g_basis = np.zeros((ROWS, BLOCK)), np.zeros((ROWS_BACK, BLOCK)), np.empty(16), np.empty(16)
    g_sh[first:end], g_opacities[first:end] = 0, 0
    for begin in range(first, end, BLOCK):
        count = min(BLOCK, end - begin)
        _gather(begin, count, means, quats, scales, s)
        _axes(s)
        g[:] = 0
        for b in range(views.shape[0]):
            for j in range(count):
                i = begin + j
                if _gather_gradients(b, i, j, radii, g_means2d, g_records, g):
                    g_opacities[i] += g_records[b, i, 5]
                    cx, cy, cz = _color_backward(
                        i, means, views[b], sh, bands, basis, g_basis, records[b, i], g_records[b, i], g_sh
                    )
                    g[G_MEAN, j] = g[G_MEAN, j] + cx
                    g[G_MEAN + 1, j] = g[G_MEAN + 1, j] + cy
                    g[G_MEAN + 2, j] = g[G_MEAN + 2, j] + cz
            _geometry_backward(s, g, views[b], Ks[b], float(width), float(height))
        _axes_to_splat(s, g)
        for j in range(count):
            i = begin + j
            for c in range(3):
                g_means[i, c], g_scales[i, c] = g[G_MEAN + c, j], s[SCALE + c, j]
            for c in range(4):
                g_quats[i, c] = s[QUAT + c, j]
