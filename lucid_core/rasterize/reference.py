"""Reference renderer: every Gaussian at every pixel in plain torch with autograd. Slow; meant for float64.

Source: EWA splatting (Zwicker et al. 2001) as in 3DGS (Kerbl et al. 2023), with gsplat's limits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..cameras import Cameras
from ..splats import Splats
from .contract import Outputs
from .limits import ALPHA_MAX, ALPHA_MIN, EXTENT, FAR, JACOBIAN_MARGIN, LOW_PASS, NEAR, TRANSMITTANCE_MIN


def render(
    splats: Splats, cameras: Cameras, width: int, height: int, sh_degree: int, background: Tensor
) -> Outputs:
    """See contract.py."""
    means_cam = _to_camera(splats.means, cameras.viewmats)  # (B, N, 3)
    in_range = (means_cam[..., 2] > NEAR) & (means_cam[..., 2] < FAR)
    # a valid position for culled Gaussians keeps gradients finite
    means_cam = torch.where(in_range[..., None], means_cam, means_cam.new_tensor([0.0, 0.0, 1.0]))
    means2d = project_means(means_cam, cameras.Ks)
    covars2d = project_covariances(splats, means_cam, cameras, width, height)
    radii = _radii(means2d, covars2d, splats.opacities, in_range, width, height)
    colors = _colors(splats, cameras.viewmats, sh_degree)
    views = [
        composite(*view, splats.opacities, width, height)
        for view in zip(means2d, covars2d, means_cam[..., 2], colors, radii, strict=True)
    ]
    features, transmittance = (torch.stack(x) for x in zip(*views, strict=True))
    rgb = features[..., :3] + transmittance * background[:, None, None]
    return rgb, 1 - transmittance, features[..., 3:], means2d, radii


def _to_camera(means: Tensor, viewmats: Tensor) -> Tensor:
    """means (N, 3) world -> (B, N, 3) camera frame."""
    return torch.einsum("bij,nj->bni", viewmats[:, :3, :3], means) + viewmats[:, None, :3, 3]


def project_means(means_cam: Tensor, Ks: Tensor) -> Tensor:
    """means (B, N, 3) in the camera frame -> (B, N, 2) pixels."""
    focal = torch.stack([Ks[:, 0, 0], Ks[:, 1, 1]], -1)[:, None]
    return focal * means_cam[..., :2] / means_cam[..., 2:] + Ks[:, None, :2, 2]


def project_covariances(
    splats: Splats, means_cam: Tensor, cameras: Cameras, width: int, height: int
) -> Tensor:
    """Screen covariances (B, N, 2, 2) in px^2: J W Sigma W' J' (EWA, eq. 31), low-pass filtered."""
    M = rotations(splats.quats) * splats.scales[:, None]  # (N, 3, 3), Sigma = M M'
    J = _jacobians(means_cam, cameras.Ks, width, height)
    T = J @ cameras.viewmats[:, None, :3, :3] @ M  # (B, N, 2, 3)
    return T @ T.mT + LOW_PASS * torch.eye(2, dtype=T.dtype, device=T.device)


def rotations(quats: Tensor) -> Tensor:
    """Quaternions (N, 4) wxyz of any length -> rotation matrices (N, 3, 3)."""
    w, x, y, z = normalize(quats, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _jacobians(means_cam: Tensor, Ks: Tensor, width: int, height: int) -> Tensor:
    """Jacobians (B, N, 2, 3) of the perspective projection; x/z and y/z are clamped near the image edges."""
    z = means_cam[..., 2]
    zero = torch.zeros_like(z)
    rows = []
    for axis, size in enumerate((width, height)):
        f, c = Ks[:, axis, axis, None], Ks[:, axis, 2, None]
        margin = JACOBIAN_MARGIN * 0.5 * size / f
        slope = (means_cam[..., axis] / z).clamp(-c / f - margin, (size - c) / f + margin)
        row = [zero, zero, -f * slope / z]
        row[axis] = f / z
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


@torch.no_grad()
def _radii(
    means2d: Tensor, covars2d: Tensor, opacities: Tensor, in_range: Tensor, width: int, height: int
) -> Tensor:
    """Half sizes (B, N, 2) int32 in pixels of the boxes outside which alpha < 1/255; 0 = invisible."""
    extent = (2 * (opacities / ALPHA_MIN).clamp_min(1).log()).sqrt().clamp_max(EXTENT)
    radii = (extent[:, None] * covars2d.diagonal(dim1=-2, dim2=-1).sqrt()).ceil()
    size = means2d.new_tensor([width, height])
    shown = in_range & ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    return (radii * shown[..., None]).clamp_max(1e9).int()


def _colors(splats: Splats, viewmats: Tensor, sh_degree: int) -> Tensor:
    """Colours (B, N, 3) as seen from each camera."""
    positions = -torch.einsum("bji,bj->bi", viewmats[:, :3, :3], viewmats[:, :3, 3])  # (B, 3) world
    directions = normalize(splats.means - positions[:, None], dim=-1)
    basis = sh_basis(directions, sh_degree)
    return (torch.einsum("bnk,nkc->bnc", basis, splats.sh[:, : basis.shape[-1]]) + 0.5).clamp_min(0)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Unit vectors (..., 3) -> (..., (degree + 1)**2) real spherical harmonics, 3DGS order and signs."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    bands = [
        [torch.full_like(x, 0.28209479177387814)],
        [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x],
        [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ],
        [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
    ]
    return torch.stack([value for band in bands[: degree + 1] for value in band], -1)


def composite(
    means2d: Tensor,
    covars2d: Tensor,
    depths: Tensor,
    colors: Tensor,
    radii: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Blend one view front to back -> sum of weight * (r, g, b, z) (H, W, 4), transmittance (H, W, 1).

    means2d (N, 2), covars2d (N, 2, 2), depths (N,), colors (N, 3), radii (N, 2), opacities (N,).
    """
    shown = (radii > 0).all(-1).nonzero()[:, 0]
    order = shown[depths[shown].argsort(stable=True)]
    alphas = _alphas(means2d[order], covars2d[order], opacities[order], width, height)  # (H, W, M)
    after = (1 - alphas).cumprod(-1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)[..., : alphas.shape[-1]]
    weights = torch.where(after > TRANSMITTANCE_MIN, alphas * before, 0.0)
    features = torch.cat([colors[order], depths[order, None]], -1)
    return weights @ features, 1 - weights.sum(-1, keepdim=True)


def _alphas(means2d: Tensor, covars2d: Tensor, opacities: Tensor, width: int, height: int) -> Tensor:
    """Alpha (H, W, M) of each Gaussian at each pixel centre."""
    ys = torch.arange(height, dtype=means2d.dtype, device=means2d.device) + 0.5
    xs = torch.arange(width, dtype=means2d.dtype, device=means2d.device) + 0.5
    offsets = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)[:, :, None] - means2d  # (H, W, M, 2)
    power = -0.5 * torch.einsum("hwni,nij,hwnj->hwn", offsets, torch.linalg.inv(covars2d), offsets)
    alphas = (opacities * power.exp()).clamp_max(ALPHA_MAX)
    return torch.where(alphas >= ALPHA_MIN, alphas, 0.0)
