"""CPU kernels, 1 of 3: splats to screen Gaussians and back (EWA splatting, Zwicker et al. 2001).

Arithmetic is float64 inside, float32 outside: it costs little here, and needles and huge splats stay exact.
No fastmath: what overflows must be seen, and culled. Kernels call only kernels of their own file, because
numba's cache looks at no other.

A screen covariance [[sxx, sxy], [sxy, syy]] leaves as the row factor (p, q, r) of its inverse:
    1/2 d' Sigma^-1 d = (p dx + q dy)^2 + r dy^2,
    p = 1 / sqrt(2 v), q = -p sxy / syy, r = 1 / (2 syy), v = sxx - sxy^2 / syy.
A conic (a, b, c) says the same, but for a needle its three terms cancel, which float32 does not survive.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .jit import kernel
from .limits import ALPHA_MIN, EXTENT, FAR, JACOBIAN_MARGIN, LOW_PASS, NEAR

CHUNK = 256  # splats that share one set of scratch arrays
LARGEST = 1e9  # beyond it a pixel, a factor or a colour is not rendered; keeps squares finite in float32


@kernel()
def _rotation(quat, R):
    """wxyz -> R (3, 3); returns the quaternion's length."""
    length = max(math.sqrt(quat[0] ** 2.0 + quat[1] ** 2.0 + quat[2] ** 2.0 + quat[3] ** 2.0), 1e-12)
    w, x, y, z = quat[0] / length, quat[1] / length, quat[2] / length, quat[3] / length
    R[0, 0], R[0, 1], R[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    R[1, 0], R[1, 1], R[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    R[2, 0], R[2, 1], R[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return length


@kernel()
def _rotation_backward(quat, length, g, grad):
    """g (3, 3) for R -> grad (4,) for the unnormalised quaternion."""
    w, x, y, z = quat[0] / length, quat[1] / length, quat[2] / length, quat[3] / length
    gw = 2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    gx = 2 * (y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]))
    gx -= 4 * x * (g[1, 1] + g[2, 2])
    gy = 2 * (x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0]))
    gy -= 4 * y * (g[0, 0] + g[2, 2])
    gz = 2 * (x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1]))
    gz -= 4 * z * (g[0, 0] + g[1, 1])
    radial = gw * w + gx * x + gy * y + gz * z  # the length does not matter
    grad[0], grad[1] = (gw - radial * w) / length, (gx - radial * x) / length
    grad[2], grad[3] = (gy - radial * y) / length, (gz - radial * z) / length


@kernel()
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


@kernel()
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


@kernel()
def _clamped_slope(offset, z, f, c, size):
    """offset / z, at most a little outside the image; and whether it was inside."""
    slope, margin = offset / z, JACOBIAN_MARGIN * 0.5 * size / f
    low, high = -c / f - margin, (size - c) / f + margin
    return min(max(slope, low), high), low <= slope <= high


@kernel()
def _screen_axes(W, M, fz, slope, row, out):
    """out (3,): row `row` of J W M, where J's row is fz * (unit vector of that axis - slope * z axis)."""
    for k in range(3):
        total = 0.0
        for i in range(3):
            total += fz * (W[row, i] - slope * W[2, i]) * M[i, k]
        out[k] = total


@kernel()
def _covariance(m1, m2):
    """Rows of J W M -> sxx, sxy, syy and v = sxx - sxy^2 / syy, the last without cancellation (Cauchy-Binet)."""
    s1 = m1[0] * m1[0] + m1[1] * m1[1] + m1[2] * m1[2]
    s2 = m2[0] * m2[0] + m2[1] * m2[1] + m2[2] * m2[2]
    sxy = m1[0] * m2[0] + m1[1] * m2[1] + m1[2] * m2[2]
    c0, c1, c2 = m1[1] * m2[2] - m1[2] * m2[1], m1[2] * m2[0] - m1[0] * m2[2], m1[0] * m2[1] - m1[1] * m2[0]
    det = c0 * c0 + c1 * c1 + c2 * c2 + LOW_PASS * (s1 + s2) + LOW_PASS * LOW_PASS
    return s1 + LOW_PASS, sxy, s2 + LOW_PASS, det / (s2 + LOW_PASS)


@kernel()
def _camera_position(view, position):
    for i in range(3):
        position[i] = -(view[0, i] * view[0, 3] + view[1, i] * view[1, 3] + view[2, i] * view[2, 3])


@kernel(parallel=True)
def project(means, quats, scales, opacities, sh, views, Ks, width, height, bands, means2d, factors, features, radii):
    """-> means2d (B, N, 2), factors (B, N, 3) p q r, features (B, N, 4) r g b z, radii (B, N, 2); zeros where culled.

    views (B, 4, 4) and Ks (B, 3, 3) float64, the rest float32; outputs come zeroed.
    """
    n = means.shape[0]
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        R, M, m1, m2 = np.empty((3, 3)), np.empty((3, 3)), np.empty(3), np.empty(3)
        basis, position = np.empty(16), np.empty(3)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if opacities[i] < ALPHA_MIN:
                continue
            extent = min(EXTENT, math.sqrt(2 * math.log(opacities[i] / ALPHA_MIN)))
            _rotation(quats[i], R)
            for k in range(3):
                for j in range(3):
                    M[j, k] = R[j, k] * scales[i, k]
            for b in range(views.shape[0]):
                W, K = views[b], Ks[b]
                X, Y, Z = means[i, 0], means[i, 1], means[i, 2]
                z = W[2, 0] * X + W[2, 1] * Y + W[2, 2] * Z + W[2, 3]
                if not NEAR < z < FAR:
                    continue
                x = W[0, 0] * X + W[0, 1] * Y + W[0, 2] * Z + W[0, 3]
                y = W[1, 0] * X + W[1, 1] * Y + W[1, 2] * Z + W[1, 3]
                u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
                slope_x, _ = _clamped_slope(x, z, K[0, 0], K[0, 2], width)
                slope_y, _ = _clamped_slope(y, z, K[1, 1], K[1, 2], height)
                _screen_axes(W, M, K[0, 0] / z, slope_x, 0, m1)
                _screen_axes(W, M, K[1, 1] / z, slope_y, 1, m2)
                sxx, sxy, syy, variance = _covariance(m1, m2)
                rx, ry = math.ceil(extent * math.sqrt(sxx)), math.ceil(extent * math.sqrt(syy))
                if not (u + rx > 0 and u - rx < width and v + ry > 0 and v - ry < height):
                    continue
                p = 1 / math.sqrt(2 * variance)
                q = -p * sxy / syy
                _camera_position(W, position)
                dx, dy, dz = X - position[0], Y - position[1], Z - position[2]
                far = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
                _sh_basis(dx / far, dy / far, dz / far, bands, basis)
                largest = max(abs(u), abs(v), abs(q))
                for c in range(3):
                    color = 0.5
                    for k in range(bands):
                        color += basis[k] * sh[i, k, c]
                    features[b, i, c] = max(color, 0.0)
                    largest = max(largest, color)
                if not largest < LARGEST:  # also NaN
                    features[b, i, :] = 0
                    continue
                means2d[b, i, 0], means2d[b, i, 1], features[b, i, 3] = u, v, z
                factors[b, i, 0], factors[b, i, 1], factors[b, i, 2] = p, q, 1 / (2 * syy)
                radii[b, i, 0], radii[b, i, 1] = min(rx, LARGEST), min(ry, LARGEST)


@kernel()
def _factor_backward(sxy, syy, variance, gp, gq, gr):
    """Gradients of the row factor -> those of sxx, sxy, syy."""
    p, slope, r = 1 / math.sqrt(2 * variance), sxy / syy, 1 / (2 * syy)
    g_variance = -(gp - gq * slope) * p * p * p
    g_slope = -gq * p
    g_sxy = -2 * slope * g_variance + g_slope / syy
    g_syy = slope * slope * g_variance - slope * g_slope / syy - 2 * r * r * gr
    return g_variance, g_sxy, g_syy


@kernel()
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


@kernel(parallel=True)
def project_backward(
    means, quats, scales, sh, views, Ks, width, height, bands, radii, features,
    g_means2d, g_factors, g_features, g_means, g_quats, g_scales, g_sh,
):  # fmt: skip
    """The transpose of `project`; one thread owns a splat in all views, so sums need no atomics. Outputs come zeroed."""
    n = means.shape[0]
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        R, M, m1, m2 = np.empty((3, 3)), np.empty((3, 3)), np.empty(3), np.empty(3)
        gR, gM, g1, g2 = np.empty((3, 3)), np.empty((3, 3)), np.empty(3), np.empty(3)
        basis, g_basis, position, g_color = np.empty(16), np.empty(16), np.empty(3), np.empty(3)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            length = _rotation(quats[i], R)
            for k in range(3):
                for j in range(3):
                    M[j, k] = R[j, k] * scales[i, k]
                    gM[j, k] = 0
            X, Y, Z = means[i, 0], means[i, 1], means[i, 2]
            gX, gY, gZ = 0.0, 0.0, 0.0
            for b in range(views.shape[0]):
                if radii[b, i, 0] == 0:
                    continue
                W, K = views[b], Ks[b]
                x = W[0, 0] * X + W[0, 1] * Y + W[0, 2] * Z + W[0, 3]
                y = W[1, 0] * X + W[1, 1] * Y + W[1, 2] * Z + W[1, 3]
                z = W[2, 0] * X + W[2, 1] * Y + W[2, 2] * Z + W[2, 3]
                fx, fy = K[0, 0] / z, K[1, 1] / z
                slope_x, inside_x = _clamped_slope(x, z, K[0, 0], K[0, 2], width)
                slope_y, inside_y = _clamped_slope(y, z, K[1, 1], K[1, 2], height)
                _screen_axes(W, M, fx, slope_x, 0, m1)
                _screen_axes(W, M, fy, slope_y, 1, m2)
                _, sxy, syy, variance = _covariance(m1, m2)
                g_sxx, g_sxy, g_syy = _factor_backward(
                    sxy, syy, variance, g_factors[b, i, 0], g_factors[b, i, 1], g_factors[b, i, 2]
                )
                for k in range(3):
                    g1[k] = 2 * g_sxx * m1[k] + g_sxy * m2[k]
                    g2[k] = 2 * g_syy * m2[k] + g_sxy * m1[k]
                g_fx, g_slope_x = _axis_backward(W, M, fx, slope_x, 0, g1, gM)
                g_fy, g_slope_y = _axis_backward(W, M, fy, slope_y, 1, g2, gM)
                gx, gy = fx * g_means2d[b, i, 0], fy * g_means2d[b, i, 1]  # camera frame from here
                gz = g_features[b, i, 3] - (gx * x + gy * y + g_fx * fx + g_fy * fy) / z
                if inside_x:
                    gx += g_slope_x / z
                    gz -= g_slope_x * x / (z * z)
                if inside_y:
                    gy += g_slope_y / z
                    gz -= g_slope_y * y / (z * z)
                gX += W[0, 0] * gx + W[1, 0] * gy + W[2, 0] * gz
                gY += W[0, 1] * gx + W[1, 1] * gy + W[2, 1] * gz
                gZ += W[0, 2] * gx + W[1, 2] * gy + W[2, 2] * gz

                _camera_position(W, position)
                dx, dy, dz = X - position[0], Y - position[1], Z - position[2]
                far = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
                dx, dy, dz = dx / far, dy / far, dz / far
                _sh_basis(dx, dy, dz, bands, basis)
                for c in range(3):
                    g_color[c] = g_features[b, i, c] if features[b, i, c] > 0 else 0.0
                for k in range(bands):
                    g_basis[k] = 0
                    for c in range(3):
                        g_basis[k] += g_color[c] * sh[i, k, c]
                        g_sh[i, k, c] += basis[k] * g_color[c]
                gdx, gdy, gdz = _sh_backward(dx, dy, dz, bands, g_basis)
                radial = gdx * dx + gdy * dy + gdz * dz
                gX += (gdx - radial * dx) / far
                gY += (gdy - radial * dy) / far
                gZ += (gdz - radial * dz) / far
            g_means[i, 0], g_means[i, 1], g_means[i, 2] = gX, gY, gZ
            for k in range(3):
                total = 0.0
                for j in range(3):
                    total += gM[j, k] * R[j, k]
                    gR[j, k] = gM[j, k] * scales[i, k]
                g_scales[i, k] = total
            _rotation_backward(quats[i], length, gR, g_quats[i])
