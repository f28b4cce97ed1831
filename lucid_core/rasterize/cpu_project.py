"""CPU kernels, 1 of 3: splats to screen Gaussians and back (EWA splatting, Zwicker et al. 2001).

Arithmetic is float64 inside, float32 outside: it costs little here, and needles and huge splats stay exact.
What overflows is culled. Kernels call only kernels of their own file, because numba's cache looks at no other.

A screen covariance [[sxx, sxy], [sxy, syy]] leaves as the row factor (p, q, r) of its inverse:
    1/2 d' Sigma^-1 d = (p dx + q dy)^2 + r dy^2,
    p = 1 / sqrt(2 v), q = -p sxy / syy, r = 1 / (2 syy), v = sxx - sxy^2 / syy.
A conic (a, b, c) says the same, but for a needle its three terms cancel, which float32 does not survive.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import kernel
from .limits import ALPHA_MIN, EXTENT, FAR, JACOBIAN_MARGIN, LOW_PASS, NEAR

KEEPS_NAN = {"arcp", "contract", "reassoc"}  # the part of fastmath that still sees what overflows
LARGEST = 1e9  # beyond it a pixel, a factor or a colour is not rendered; keeps squares finite in float32


@kernel(fastmath=KEEPS_NAN, inline=True)
def _rotation(quats, i, R):
    """wxyz -> R (3, 3); returns the quaternion's length."""
    w, x, y, z = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
    length = max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    w, x, y, z = w / length, x / length, y / length, z / length
    R[0, 0], R[0, 1], R[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    R[1, 0], R[1, 1], R[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    R[2, 0], R[2, 1], R[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return length


@kernel(fastmath=KEEPS_NAN, inline=True)
def _rotation_backward(quats, i, length, g, grads):
    """g (3, 3) for R -> grads (N, 4) for the unnormalised quaternion."""
    w, x, y, z = quats[i, 0] / length, quats[i, 1] / length, quats[i, 2] / length, quats[i, 3] / length
    gw = 2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    gx = 2 * (y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]))
    gx -= 4 * x * (g[1, 1] + g[2, 2])
    gy = 2 * (x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0]))
    gy -= 4 * y * (g[0, 0] + g[2, 2])
    gz = 2 * (x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1]))
    gz -= 4 * z * (g[0, 0] + g[1, 1])
    radial = gw * w + gx * x + gy * y + gz * z  # the length does not matter
    grads[i, 0], grads[i, 1] = (gw - radial * w) / length, (gx - radial * x) / length
    grads[i, 2], grads[i, 3] = (gy - radial * y) / length, (gz - radial * z) / length


@kernel(fastmath=KEEPS_NAN, inline=True)
def _sh_basis(x, y, z, bands, basis):
    """Real spherical harmonics of a unit direction, 3DGS's order and signs; `bands` = (degree + 1)**2."""
    basis[0] = 0.28209479177387814
    if bands > 1:
        basis[1], basis[2], basis[3] = -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x
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
def _sh_backward(x, y, z, bands, g):
    """g (bands,) for the basis -> its gradient along x, y, z (not yet on the sphere)."""
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
def _to_camera(W, means, i):
    """Splat i's mean, pose W (4, 4) -> x, y, z in the camera's frame."""
    X, Y, Z = means[i, 0], means[i, 1], means[i, 2]
    x = W[0, 0] * X + W[0, 1] * Y + W[0, 2] * Z + W[0, 3]
    y = W[1, 0] * X + W[1, 1] * Y + W[1, 2] * Z + W[1, 3]
    z = W[2, 0] * X + W[2, 1] * Y + W[2, 2] * Z + W[2, 3]
    return x, y, z


@kernel(fastmath=KEEPS_NAN, inline=True)
def _to_world(W, x, y, z):
    """A direction or gradient in the camera's frame -> world."""
    X = W[0, 0] * x + W[1, 0] * y + W[2, 0] * z
    Y = W[0, 1] * x + W[1, 1] * y + W[2, 1] * z
    Z = W[0, 2] * x + W[1, 2] * y + W[2, 2] * z
    return X, Y, Z


@kernel(fastmath=KEEPS_NAN, inline=True)
def _view_direction(W, means, i, bands):
    """Unit vector from the camera's position to the mean, world; and the distance. Degree 0 needs neither."""
    if bands == 1:
        return 0.0, 0.0, 1.0, 1.0
    X, Y, Z = _to_world(W, W[0, 3], W[1, 3], W[2, 3])  # minus the position
    X, Y, Z = means[i, 0] + X, means[i, 1] + Y, means[i, 2] + Z
    distance = max(math.sqrt(X * X + Y * Y + Z * Z), 1e-12)
    return X / distance, Y / distance, Z / distance, distance


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes(quats, scales, i, R, M):
    """R (3, 3) and M = R diag(scale), whose columns are the splat's half axes; returns the quaternion's length."""
    length = _rotation(quats, i, R)
    for j in range(3):
        for k in range(3):
            M[j, k] = R[j, k] * scales[i, k]
    return length


def slope_limits(Ks, width, height):
    """(B, 3, 3) -> (B, 4) low and high x/z, low and high y/z: the directions to which the Jacobian is clamped."""
    focal, center = Ks[:, (0, 1), (0, 1)], Ks[:, :2, 2]
    size = np.array([width, height])
    margin = JACOBIAN_MARGIN * 0.5 * size / focal
    low, high = -center / focal - margin, (size - center) / focal + margin
    return np.ascontiguousarray(np.stack([low, high], -1).reshape(-1, 4))


@kernel(fastmath=KEEPS_NAN, inline=True)
def _screen_axes(W, M, fz, slope, row, out):
    """out (3,): row `row` of J W M, where J's row is fz * (unit vector of that axis - slope * z axis)."""
    for k in range(3):
        total = 0.0
        for i in range(3):
            total += fz * (W[row, i] - slope * W[2, i]) * M[i, k]
        out[k] = total


@kernel(fastmath=KEEPS_NAN, inline=True)
def _covariance(m1, m2):
    """Rows of J W M -> sxx, sxy, syy and v = sxx - sxy^2 / syy, the last without cancellation (Cauchy-Binet)."""
    s1 = m1[0] * m1[0] + m1[1] * m1[1] + m1[2] * m1[2]
    s2 = m2[0] * m2[0] + m2[1] * m2[1] + m2[2] * m2[2]
    sxy = m1[0] * m2[0] + m1[1] * m2[1] + m1[2] * m2[2]
    c0, c1, c2 = m1[1] * m2[2] - m1[2] * m2[1], m1[2] * m2[0] - m1[0] * m2[2], m1[0] * m2[1] - m1[1] * m2[0]
    det = c0 * c0 + c1 * c1 + c2 * c2 + LOW_PASS * (s1 + s2) + LOW_PASS * LOW_PASS
    return s1 + LOW_PASS, sxy, s2 + LOW_PASS, det / (s2 + LOW_PASS)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _project_view(
    i, b, means, M, extent, sh, W, K, limits, width, height, bands, m1, m2, basis, means2d, factors, features, radii
):
    """Splat i in view b, where the outputs are zero already; they stay so if it does not show. m1, m2, basis: scratch."""
    x, y, z = _to_camera(W, means, i)
    if not NEAR < z < FAR:
        return
    u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    _screen_axes(W, M, K[0, 0] / z, min(max(x / z, limits[0]), limits[1]), 0, m1)
    _screen_axes(W, M, K[1, 1] / z, min(max(y / z, limits[2]), limits[3]), 1, m2)
    sxx, sxy, syy, variance = _covariance(m1, m2)
    rx, ry = math.ceil(extent * math.sqrt(sxx)), math.ceil(extent * math.sqrt(syy))
    if not (u + rx > 0 and u - rx < width and v + ry > 0 and v - ry < height):
        return
    p = 1 / math.sqrt(2 * variance)
    q = -p * sxy / syy

    dx, dy, dz, _ = _view_direction(W, means, i, bands)
    _sh_basis(dx, dy, dz, bands, basis)
    largest = max(abs(u), abs(v), abs(q))
    for c in range(3):
        color = 0.5
        for k in range(bands):
            color += basis[k] * sh[i, k, c]
        m1[c] = max(color, 0.0)
        largest = max(largest, color)
    if not largest < LARGEST:  # nor NaN
        return
    means2d[b, i, 0], means2d[b, i, 1] = u, v
    factors[b, i, 0], factors[b, i, 1], factors[b, i, 2] = p, q, 1 / (2 * syy)
    features[b, i, 0], features[b, i, 1], features[b, i, 2], features[b, i, 3] = m1[0], m1[1], m1[2], z
    radii[b, i, 0], radii[b, i, 1] = min(rx, LARGEST), min(ry, LARGEST)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _project_splat(
    i, means, quats, scales, opacity, sh, views, Ks, limits, bands, width, height, R, M, m1, m2, basis,
    means2d, factors, features, radii,
):  # fmt: skip
    """Splat i in every view; R, M, m1, m2, basis are scratch."""
    shows = opacity >= ALPHA_MIN
    if shows:
        extent = min(EXTENT, math.sqrt(2 * math.log(opacity / ALPHA_MIN)))
        _axes(quats, scales, i, R, M)
    for b in range(views.shape[0]):
        for c in range(2):
            means2d[b, i, c], radii[b, i, c] = 0, 0
        for c in range(3):
            factors[b, i, c] = 0
        for c in range(4):
            features[b, i, c] = 0
        if shows:
            _project_view(
                i, b, means, M, extent, sh, views[b], Ks[b], limits[b], width, height, bands, m1, m2, basis,
                means2d, factors, features, radii,
            )  # fmt: skip


@kernel(fastmath=KEEPS_NAN, allocates=True)
def project(
    first, end, means, quats, scales, opacities, sh, views, Ks, limits, bands, width, height,
    means2d, factors, features, radii,
):  # fmt: skip
    """-> means2d (B, N, 2), factors (B, N, 3) p q r, features (B, N, 4) r g b z, radii (B, N, 2); zeros where culled.

    views (B, 4, 4), Ks (B, 3, 3), limits (B, 4) are float64, the rest float32. A job is a splat.
    """
    R, M, m1, m2, basis = np.empty((3, 3)), np.empty((3, 3)), np.empty(3), np.empty(3), np.empty(16)
    for i in range(first, end):
        _project_splat(
            i, means, quats, scales, opacities[i], sh, views, Ks, limits, bands, width, height, R, M, m1, m2, basis,
            means2d, factors, features, radii,
        )  # fmt: skip


@kernel(fastmath=KEEPS_NAN, inline=True)
def _factor_backward(sxy, syy, variance, gp, gq, gr):
    """Gradients of the row factor -> those of sxx, sxy, syy."""
    p, slope, r = 1 / math.sqrt(2 * variance), sxy / syy, 1 / (2 * syy)
    g_variance = -(gp - gq * slope) * p * p * p
    g_slope = -gq * p
    g_sxy = -2 * slope * g_variance + g_slope / syy
    g_syy = slope * slope * g_variance - slope * g_slope / syy - 2 * r * r * gr
    return g_variance, g_sxy, g_syy


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axis_backward(W, M, fz, slope, row, g, gM):
    """g (3,) for a row of J W M -> adds to gM; returns the gradients of fz and of slope."""
    g_fz, g_slope = 0.0, 0.0
    for i in range(3):
        a = 0.0
        for k in range(3):
            a += g[k] * M[i, k]
            gM[i, k] += fz * (W[row, i] - slope * W[2, i]) * g[k]
        g_fz += a * (W[row, i] - slope * W[2, i])
        g_slope -= a * fz * W[2, i]
    return g_fz, g_slope


@kernel(fastmath=KEEPS_NAN, inline=True)
def _geometry_backward(i, b, means, M, W, K, limits, m1, m2, g1, g2, g_means2d, g_factors, g_z, gM):
    """The transpose of `_project_view` less colour: adds to gM, returns the gradient of the mean, world."""
    x, y, z = _to_camera(W, means, i)
    fx, fy = K[0, 0] / z, K[1, 1] / z
    slope_x, slope_y = min(max(x / z, limits[0]), limits[1]), min(max(y / z, limits[2]), limits[3])
    _screen_axes(W, M, fx, slope_x, 0, m1)
    _screen_axes(W, M, fy, slope_y, 1, m2)
    _, sxy, syy, variance = _covariance(m1, m2)
    g_sxx, g_sxy, g_syy = _factor_backward(sxy, syy, variance, g_factors[b, i, 0], g_factors[b, i, 1], g_factors[b, i, 2])
    for k in range(3):
        g1[k] = 2 * g_sxx * m1[k] + g_sxy * m2[k]
        g2[k] = 2 * g_syy * m2[k] + g_sxy * m1[k]
    g_fx, g_slope_x = _axis_backward(W, M, fx, slope_x, 0, g1, gM)
    g_fy, g_slope_y = _axis_backward(W, M, fy, slope_y, 1, g2, gM)
    gx, gy = fx * g_means2d[b, i, 0], fy * g_means2d[b, i, 1]
    gz = g_z - (gx * x + gy * y + g_fx * fx + g_fy * fy) / z
    if limits[0] <= x / z <= limits[1]:
        gx += g_slope_x / z
        gz -= g_slope_x * x / (z * z)
    if limits[2] <= y / z <= limits[3]:
        gy += g_slope_y / z
        gz -= g_slope_y * y / (z * z)
    return _to_world(W, gx, gy, gz)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _color_backward(i, b, means, W, sh, bands, basis, g_basis, features, g_features, g_sh):
    """Adds to g_sh (N, K, 3), returns the gradient of the mean, world: the colour changes with the view's direction."""
    x, y, z, distance = _view_direction(W, means, i, bands)
    _sh_basis(x, y, z, bands, basis)
    g_basis[:] = 0
    for c in range(3):
        if features[b, i, c] > 0:  # else clamped
            for k in range(bands):
                g_basis[k] += g_features[b, i, c] * sh[i, k, c]
                g_sh[i, k, c] += g_features[b, i, c] * basis[k]
    gx, gy, gz = _sh_backward(x, y, z, bands, g_basis)
    radial = gx * x + gy * y + gz * z
    return (gx - radial * x) / distance, (gy - radial * y) / distance, (gz - radial * z) / distance


@kernel(fastmath=KEEPS_NAN, inline=True)
def _views_backward(
    i, means, sh, views, Ks, limits, bands, radii, features, g_means2d, g_factors, g_features,
    M, gM, m1, m2, g1, g2, basis, g_basis, g_sh,
):  # fmt: skip
    """Splat i, all views: adds to gM and g_sh, returns the gradient of the mean, world."""
    x, y, z = 0.0, 0.0, 0.0
    for b in range(views.shape[0]):
        if radii[b, i, 0] == 0:
            continue
        gx, gy, gz = _geometry_backward(
            i, b, means, M, views[b], Ks[b], limits[b], m1, m2, g1, g2,
            g_means2d, g_factors, g_features[b, i, 3], gM,
        )  # fmt: skip
        cx, cy, cz = _color_backward(i, b, means, views[b], sh, bands, basis, g_basis, features, g_features, g_sh)
        x, y, z = x + gx + cx, y + gy + cy, z + gz + cz
    return x, y, z


@kernel(fastmath=KEEPS_NAN, allocates=True)
def project_backward(
    first, end, means, quats, scales, sh, views, Ks, limits, bands, radii, features,
    g_means2d, g_factors, g_features, g_means, g_quats, g_scales, g_sh,
):  # fmt: skip
    """The transpose of `project`. A splat's views are added up by one thread, so no atomics."""
    R, M, gR, gM = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    m1, m2, g1, g2 = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    basis, g_basis = np.empty(16), np.empty(16)
    g_sh[first:end] = 0
    for i in range(first, end):
        length = _axes(quats, scales, i, R, M)
        gM[:] = 0
        g_means[i, 0], g_means[i, 1], g_means[i, 2] = _views_backward(
            i, means, sh, views, Ks, limits, bands, radii, features, g_means2d, g_factors, g_features,
            M, gM, m1, m2, g1, g2, basis, g_basis, g_sh,
        )  # fmt: skip
        for k in range(3):
            g_scales[i, k] = gM[0, k] * R[0, k] + gM[1, k] * R[1, k] + gM[2, k] * R[2, k]
            for j in range(3):
                gR[j, k] = gM[j, k] * scales[i, k]
        _rotation_backward(quats, i, length, gR, g_quats)
