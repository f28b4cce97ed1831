"""CPU kernels, 1 of 3: splats to screen Gaussians and back (EWA splatting, Zwicker et al. 2001).

Arithmetic is float64 inside, float32 outside: it costs little here, and needles and huge splats stay exact.
What overflows is culled. Kernels call only kernels of their own file, because numba's cache looks at no other.

Splats go in blocks of BLOCK: their numbers are put into rows of scratch, the geometry of all is a loop over lanes without
branches, which LLVM turns into vector code, and the results are put where they belong. Colour is no part of that.

A screen covariance [[sxx, sxy], [sxy, syy]] leaves as the rows (p, q) and (0, s) of a factor of its inverse:
    1/2 d' Sigma^-1 d = (p dx + q dy)^2 + (s dy)^2,
    p = 1 / sqrt(2 v), q = -p sxy / syy, s = 1 / sqrt(2 syy), v = sxx - sxy^2 / syy.
A conic (a, b, c) says the same, but for a needle its three terms cancel, which float32 does not survive.
"""

from __future__ import annotations

import math

import numpy as np

from .cpu_bins import TILE
from .jit import kernel
from .limits import ALPHA_MIN, EXTENT, FAR, JACOBIAN_MARGIN, LOW_PASS, NEAR

KEEPS_NAN = {"arcp", "contract", "reassoc"}  # the part of fastmath that still sees what overflows
LARGEST = 1e9  # beyond it a pixel, a factor or a colour is not rendered; keeps squares finite in float32
SLACK = 1e-3  # pixels; rounding must not lose one, and blending looks at each anyway
BLOCK = 16
# rows of the scratch of a block of splats: its numbers, and 3x3 matrices row by row
MEAN, QUAT, SCALE, STRENGTH, R, M, ROWS = 0, 3, 7, 10, 11, 20, 29
# of the same in one view, forward: does it show, radii x y, mean x y, factor p q s, z, box x0 x1 y0 y1
SHOWN, RADII, MEAN2D, FACTOR, DEPTH, BOX, ROWS_OUT = 0, 1, 3, 5, 8, 9, 13
# backward: does it show, gradients of mean x y, factor p q s and z in a view, sums over the views
G_MEAN2D, G_FACTOR, G_DEPTH, G_MEAN, G_M, ROWS_BACK = 1, 3, 6, 7, 10, 19


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
def _slope_limits(K, axis, size):
    """Low and high x/z (axis 0) or y/z (1), to which the Jacobian's direction is clamped."""
    f, c = K[axis, axis], K[axis, 2]
    margin = JACOBIAN_MARGIN * 0.5 * size / f
    return -c / f - margin, (size - c) / f + margin


@kernel(fastmath=KEEPS_NAN, inline=True)
def _gather(first, count, means, quats, scales, s):
    """`count` splats from `first` -> the rows of s."""
    for j in range(count):
        i = first + j
        for c in range(3):
            s[MEAN + c, j], s[SCALE + c, j] = means[i, c], scales[i, c]
        for c in range(4):
            s[QUAT + c, j] = quats[i, c]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes(s):
    """Fills R and M = R diag(scale), whose columns are the splat's half axes."""
    for j in range(BLOCK):
        w, x, y, z = s[QUAT, j], s[QUAT + 1, j], s[QUAT + 2, j], s[QUAT + 3, j]
        f = 2 / max(w * w + x * x + y * y + z * z, 1e-24)  # a quaternion of any length
        s[R, j], s[R + 1, j], s[R + 2, j] = 1 - f * (y * y + z * z), f * (x * y - w * z), f * (x * z + w * y)
        s[R + 3, j], s[R + 4, j], s[R + 5, j] = f * (x * y + w * z), 1 - f * (x * x + z * z), f * (y * z - w * x)
        s[R + 6, j], s[R + 7, j], s[R + 8, j] = f * (x * z - w * y), f * (y * z + w * x), 1 - f * (x * x + y * y)
        for row in range(3):
            for k in range(3):
                s[M + 3 * row + k, j] = s[R + 3 * row + k, j] * s[SCALE + k, j]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _row(W, i):
    return W[i, 0], W[i, 1], W[i, 2], W[i, 3]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _to_camera(s, j, w1, w2, w3):
    """The mean in the camera's frame, whose pose's rows are w1, w2, w3; and whether it is in range, else z is 1."""
    X, Y, Z = s[MEAN, j], s[MEAN + 1, j], s[MEAN + 2, j]
    x = w1[0] * X + w1[1] * Y + w1[2] * Z + w1[3]
    y = w2[0] * X + w2[1] * Y + w2[2] * Z + w2[3]
    z = w3[0] * X + w3[1] * Y + w3[2] * Z + w3[3]
    inside = (z > NEAR) & (z < FAR)
    return x, y, z if inside else 1.0, inside


@kernel(fastmath=KEEPS_NAN, inline=True)
def _screen_axes(s, j, w, w3, slope, f):
    """A row of J W M, where J's row is f * (unit vector of the axis that w belongs to - slope * z axis)."""
    a, b, c = f * (w[0] - slope * w3[0]), f * (w[1] - slope * w3[1]), f * (w[2] - slope * w3[2])
    m0 = a * s[M, j] + b * s[M + 3, j] + c * s[M + 6, j]
    m1 = a * s[M + 1, j] + b * s[M + 4, j] + c * s[M + 7, j]
    m2 = a * s[M + 2, j] + b * s[M + 5, j] + c * s[M + 8, j]
    return m0, m1, m2


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
def _project_block(s, out, W, K, width, height):
    """The rows of s in one view -> those of out."""
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
        out[SHOWN, j], out[RADII, j], out[RADII + 1, j] = 1.0 if shown else 0.0, min(rx, LARGEST), min(ry, LARGEST)
        out[MEAN2D, j], out[MEAN2D + 1, j], out[DEPTH, j] = u, v, z
        out[FACTOR, j], out[FACTOR + 1, j], out[FACTOR + 2, j] = p, q, 1 / math.sqrt(2 * syy)
        # the box outside which alpha < 1/255: pixels whose centre is within; clamped as floats, which do not overflow
        half_x, half_y = half_x + SLACK, half_y + SLACK
        out[BOX, j] = min(max(u - half_x + 0.5, 0.0), width)
        out[BOX + 1, j] = min(max(u + half_x + 0.5, 0.0), width)
        out[BOX + 2, j] = min(max(v - half_y + 0.5, 0.0), height)
        out[BOX + 3, j] = min(max(v + half_y + 0.5, 0.0), height)


@kernel(fastmath=KEEPS_NAN, inline=True)
def _color(i, means, sh, W, bands, basis, record):
    """As seen in one view -> record; returns whether it is small enough."""
    dx, dy, dz, _ = _view_direction(W, means, i, bands)
    _sh_basis(dx, dy, dz, bands, basis)
    fits = True
    for c in range(3):
        color = 0.5
        for k in range(bands):
            color += basis[k] * sh[i, k, c]
        record[6 + c] = max(color, 0.0)
        fits &= color < LARGEST  # nor NaN
    return fits


@kernel(fastmath=KEEPS_NAN, inline=True)
def _place(out, j, opacity, strength, record, rect):
    """A splat that shows -> its record and rectangle of tiles x0 x1 y0 y1; returns how many."""
    x0, x1, y0, y1 = int(out[BOX, j]), int(out[BOX + 1, j]), int(out[BOX + 2, j]), int(out[BOX + 3, j])
    record[0], record[1] = out[MEAN2D, j], out[MEAN2D + 1, j]
    record[2], record[3], record[4], record[5] = out[FACTOR, j], out[FACTOR + 1, j], out[FACTOR + 2, j], opacity
    record[9], record[10] = out[DEPTH, j], strength
    record[11], record[12], record[13], record[14] = x0, x1, y0, y1
    if x0 >= x1 or y0 >= y1:
        return 0
    rect[0], rect[1] = x0 // TILE, (x1 - 1) // TILE + 1
    rect[2], rect[3] = y0 // TILE, (y1 - 1) // TILE + 1
    return (rect[1] - rect[0]) * (rect[3] - rect[2])


@kernel(fastmath=KEEPS_NAN, allocates=True)
def project(
    first, end, means, quats, scales, opacities, sh, views, Ks, bands, width, height,
    means2d, records, radii, rects, depths, touched,
):  # fmt: skip
    """-> means2d (B, N, 2) and radii (B, N, 2), zeros where culled; records (B, N, RECORD) of what shows;
    rects (B, N, 4) tiles x0 x1 y0 y1, touched (B, N), how many, and depths (B, N) z, 0 where no tile is touched.

    views (B, 4, 4) and Ks (B, 3, 3) are float64, the rest float32. A job is a splat.
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
def _factor_backward(sxy, syy, variance, gp, gq, gs):
    """Gradients of the row factor -> those of sxx, sxy, syy."""
    p, slope, s = 1 / math.sqrt(2 * variance), sxy / syy, 1 / math.sqrt(2 * syy)
    g_variance = -(gp - gq * slope) * p * p * p
    g_slope = -gq * p
    g_sxy = -2 * slope * g_variance + g_slope / syy
    g_syy = slope * slope * g_variance - slope * g_slope / syy - s * s * s * gs
    return g_variance, g_sxy, g_syy


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes_backward(s, g, j, w, w3, slope, f, g0, g1, g2):
    """Gradients of a row of J W M -> added to G_M where the splat shows; returns the gradients of f and of slope."""
    g_f, g_slope = 0.0, 0.0
    for i in range(3):
        a, n = g0 * s[M + 3 * i, j] + g1 * s[M + 3 * i + 1, j] + g2 * s[M + 3 * i + 2, j], w[i] - slope * w3[i]
        g_f += a * n
        g_slope -= a * f * w3[i]
        n = f * n if g[SHOWN, j] > 0 else 0.0
        g[G_M + 3 * i, j] += n * g0
        g[G_M + 3 * i + 1, j] += n * g1
        g[G_M + 3 * i + 2, j] += n * g2
    return g_f, g_slope


@kernel(fastmath=KEEPS_NAN, inline=True)
def _geometry_backward(s, g, W, K, width, height):
    """The transpose of `_project_block`: from the gradients of one view in g, adds to its sums."""
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
        gxx, gxy, gyy = _factor_backward(sxy, syy, variance, g[G_FACTOR, j], g[G_FACTOR + 1, j], g[G_FACTOR + 2, j])
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
        gz = g[G_DEPTH, j] - (gx * x + gy * y + g_fx * fx + g_fy * fy + g_slope_x * slope_x + g_slope_y * slope_y) * near
        gx, gy = gx + g_slope_x * near, gy + g_slope_y * near
        for c in range(3):
            total = w1[c] * gx + w2[c] * gy + w3[c] * gz
            g[G_MEAN + c, j] += total if g[SHOWN, j] > 0 else 0.0


@kernel(fastmath=KEEPS_NAN, inline=True)
def _axes_to_splat(s, g):
    """The sums G_M -> gradients of quaternions and scales, in the rows of s where those were."""
    for j in range(BLOCK):
        w, x, y, z = s[QUAT, j], s[QUAT + 1, j], s[QUAT + 2, j], s[QUAT + 3, j]
        inverse = 1 / math.sqrt(max(w * w + x * x + y * y + z * z, 1e-24))
        w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
        s0, s1, s2 = s[SCALE, j], s[SCALE + 1, j], s[SCALE + 2, j]
        a, b, c = g[G_M, j] * s0, g[G_M + 1, j] * s1, g[G_M + 2, j] * s2  # rows of R's gradient
        d, e, f = g[G_M + 3, j] * s0, g[G_M + 4, j] * s1, g[G_M + 5, j] * s2
        h, k, m = g[G_M + 6, j] * s0, g[G_M + 7, j] * s1, g[G_M + 8, j] * s2
        gw = 2 * (x * (k - f) + y * (c - h) + z * (d - b))
        gx = 2 * (y * (b + d) + z * (c + h) + w * (k - f)) - 4 * x * (e + m)
        gy = 2 * (x * (b + d) + z * (f + k) + w * (c - h)) - 4 * y * (a + m)
        gz = 2 * (x * (c + h) + y * (f + k) + w * (d - b)) - 4 * z * (a + e)
        radial = gw * w + gx * x + gy * y + gz * z  # the length does not matter
        s[QUAT, j], s[QUAT + 1, j] = (gw - radial * w) * inverse, (gx - radial * x) * inverse
        s[QUAT + 2, j], s[QUAT + 3, j] = (gy - radial * y) * inverse, (gz - radial * z) * inverse
        for c in range(3):
            total = g[G_M + c, j] * s[R + c, j] + g[G_M + 3 + c, j] * s[R + 3 + c, j]
            s[SCALE + c, j] = total + g[G_M + 6 + c, j] * s[R + 6 + c, j]


@kernel(fastmath=KEEPS_NAN, inline=True)
def _color_backward(i, means, W, sh, bands, basis, g_basis, record, g_record, g_sh):
    """Adds to g_sh (N, K, 3), returns the gradient of the mean, world: the colour changes with the view's direction."""
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
def _gather_gradients(b, i, j, radii, g_means2d, g_records, g):
    """Of splat i in view b -> lane j of g; returns whether it shows."""
    shown = radii[b, i, 0] > 0
    g[SHOWN, j] = 1.0 if shown else 0.0
    for c in range(2):
        g[G_MEAN2D + c, j] = g_means2d[b, i, c] if shown else 0.0
    for c in range(3):
        g[G_FACTOR + c, j] = g_records[b, i, 2 + c] if shown else 0.0
    g[G_DEPTH, j] = g_records[b, i, 9] if shown else 0.0
    return shown


@kernel(fastmath=KEEPS_NAN, allocates=True)
def project_backward(
    first, end, means, quats, scales, sh, views, Ks, bands, width, height, radii, records,
    g_means2d, g_records, g_means, g_quats, g_scales, g_opacities, g_sh,
):  # fmt: skip
    """The transpose of `project`. A splat's views are added up by one thread, so no atomics."""
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
                    g[G_MEAN, j], g[G_MEAN + 1, j], g[G_MEAN + 2, j] = (
                        g[G_MEAN, j] + cx, g[G_MEAN + 1, j] + cy, g[G_MEAN + 2, j] + cz,
                    )  # fmt: skip
            _geometry_backward(s, g, views[b], Ks[b], float(width), float(height))
        _axes_to_splat(s, g)
        for j in range(count):
            i = begin + j
            for c in range(3):
                g_means[i, c], g_scales[i, c] = g[G_MEAN + c, j], s[SCALE + c, j]
            for c in range(4):
                g_quats[i, c] = s[QUAT + c, j]
