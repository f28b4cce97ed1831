"""The gsplat backend: the fastest, on CUDA, where its extension is built or can be.

gsplat's PyPI package holds no binaries: its first use compiles for minutes and needs nvcc. Nothing here runs at import.
What we rely on of it, and where it says so: docs/renderers.md.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..cameras import Cameras
from ..extras import load
from ..gaussians import Splats
from .limits import FAR, LOW_PASS, NEAR

log = logging.getLogger(__name__)


def prepare() -> None:
    """Build or load the extension. Raises ImportError or RuntimeError with the reason why it cannot be used."""
    load("gsplat", "gsplat")
    if torch.version.cuda is None:
        raise RuntimeError("it renders on NVIDIA GPUs only")
    log.info("loading gsplat's CUDA extension; where it must be compiled first that takes minutes, once")
    if load("gsplat.cuda._backend", "gsplat")._C is None:
        raise RuntimeError("its CUDA extension is not built, and there is no nvcc to build it")


def render(splats: Splats, cameras: Cameras, width: int, height: int, sh_degree: int, background: Tensor):
    """-> rgb (B, H, W, 3), alpha (B, H, W, 1), depth (B, H, W, 1), means2d (B, N, 2), radii (B, N, 2) int32."""
    sh = splats.sh[:, : (sh_degree + 1) ** 2]  # it copies them, and makes a gradient of them, for every view
    images, alpha, info = load("gsplat", "gsplat").rasterization(
        splats.means, splats.quats, splats.scales, splats.opacities, sh, cameras.viewmats, cameras.Ks, width, height,
        near_plane=NEAR, far_plane=FAR, eps2d=LOW_PASS, sh_degree=sh_degree, packed=False, render_mode="RGB+D",
        rasterize_mode="classic", absgrad=False,
    )  # fmt: skip
    rgb = images[..., :3] + (1 - alpha) * background[:, None, None]
    return rgb, alpha, images[..., 3:], info["means2d"], info["radii"]
