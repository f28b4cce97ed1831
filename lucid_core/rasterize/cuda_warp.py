"""The gswarp backend: CUDA without a compiler; NVIDIA Warp compiles its kernels at first use.

gswarp has the interface of 3DGS (Kerbl et al. 2023): one view per call, transposed matrices for row vectors,
gradients of the 2D means in normalised device coordinates. It also renders as 3DGS: unlike limits.py, the
near plane is at 0.2, alpha is at most 0.99, and Gaussians end at three standard deviations. The gswarp
behaviour that we rely on is listed, with sources, in docs/renderers.md.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..cameras import Cameras
from ..optional import load
from ..splats import Splats
from .contract import Outputs

log = logging.getLogger(__name__)


def prepare() -> None:
    """Load Warp. Raises MissingPackage or RuntimeError with the reason if it cannot be used."""
    load("warp", "warp-lang")
    gswarp = load("gswarp", "gswarp")
    if torch.version.cuda is None:
        raise RuntimeError("it renders on NVIDIA GPUs only")
    log.info("preparing gswarp; the first compilation of its kernels takes about a minute")
    gswarp.set_compute_depth(True)


def render(
    splats: Splats, cameras: Cameras, width: int, height: int, sh_degree: int, background: Tensor
) -> Outputs:
    """See contract.py."""
    size = splats.means.new_tensor([width, height])
    means2d = _project(splats.means, cameras).requires_grad_(torch.is_grad_enabled())  # (B, N, 2)
    # gswarp uses its means2D argument only to return a gradient, in device coordinates (half the image size
    # in pixels = 1)
    devices2d = pad(means2d * (2 / size), (0, 1))  # (B, N, 3)
    splats = Splats(splats.means, normalize(splats.quats, dim=-1), splats.scales, splats.opacities, splats.sh)
    views = [
        _view(splats, viewmat, K, device2d, width, height, sh_degree)
        for viewmat, K, device2d in zip(cameras.viewmats, cameras.Ks, devices2d, strict=True)
    ]
    rgb, alpha, depth, radii = (torch.stack(x) for x in zip(*views, strict=True))
    return (
        rgb + (1 - alpha) * background[:, None, None],
        alpha,
        depth,
        means2d,
        radii[..., None].expand(-1, -1, 2),
    )


@torch.no_grad()
def _project(means: Tensor, cameras: Cameras) -> Tensor:
    """(N, 3) world -> (B, N, 2) pixels."""
    at = torch.einsum("bij,nj->bni", cameras.viewmats[:, :3, :3], means) + cameras.viewmats[:, None, :3, 3]
    pixels = torch.einsum("bij,bnj->bni", cameras.Ks, at)
    return pixels[..., :2] / pixels[..., 2:].clamp_min(1e-6)


def _view(
    splats: Splats, viewmat: Tensor, K: Tensor, device2d: Tensor, width: int, height: int, sh_degree: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Render one view -> rgb on black (H, W, 3), alpha and depth (H, W, 1), radii (N,) int32."""
    gswarp = load("gswarp", "gswarp")
    settings = gswarp.GaussianRasterizationSettings(
        image_height=height,
        image_width=width,
        tanfovx=width / (2 * K[0, 0].item()),
        tanfovy=height / (2 * K[1, 1].item()),
        bg=torch.zeros_like(viewmat[0, :3]),
        scale_modifier=1.0,
        viewmatrix=viewmat.T.contiguous(),
        projmatrix=(_to_device(K, width, height) @ viewmat).T.contiguous(),
        sh_degree=sh_degree,
        campos=-viewmat[:3, :3].T @ viewmat[:3, 3],
        prefiltered=False,
        auto_tune_verbose=False,
    )
    rgb, radii, extra = gswarp.GaussianRasterizer(settings)(
        means3D=splats.means,
        means2D=device2d,
        opacities=splats.opacities[:, None],
        shs=splats.sh[:, : (sh_degree + 1) ** 2].contiguous(),
        scales=splats.scales,
        rotations=splats.quats,
    )
    return rgb.movedim(0, -1), extra.alpha.movedim(0, -1), extra.depth.movedim(0, -1), radii


def _to_device(K: Tensor, width: int, height: int) -> Tensor:
    """Intrinsics (3, 3) -> (4, 4) projection to homogeneous device coordinates, [-1, 1] across the image."""
    P = K.new_zeros(4, 4)
    P[0, 0], P[0, 2] = 2 * K[0, 0] / width, 2 * K[0, 2] / width - 1
    P[1, 1], P[1, 2] = 2 * K[1, 1] / height, 2 * K[1, 2] / height - 1
    P[2, 2] = P[3, 2] = 1
    return P
