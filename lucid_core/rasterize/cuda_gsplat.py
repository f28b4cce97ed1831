"""The gsplat backend: the fastest one; needs CUDA and gsplat's compiled extension.

gsplat's PyPI package has no binaries: the first use compiles for minutes and needs nvcc. Nothing here runs at
import. The gsplat behaviour that we rely on is listed, with sources, in docs/renderers.md.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..cameras import Cameras
from ..optional import load
from ..splats import Splats
from .contract import Outputs
from .limits import FAR, LOW_PASS, NEAR

log = logging.getLogger(__name__)


def prepare() -> None:
    """Build or load the extension. Raises MissingPackage or RuntimeError with the reason on failure."""
    load("gsplat", "gsplat")
    if torch.version.cuda is None:
        raise RuntimeError("it renders on NVIDIA GPUs only")
    log.info("loading gsplat's CUDA extension; compiling it on first use takes minutes")
    if load("gsplat.cuda._backend", "gsplat")._C is None:
        raise RuntimeError("its CUDA extension is not built, and there is no nvcc to build it")


def render(
    splats: Splats, cameras: Cameras, width: int, height: int, sh_degree: int, background: Tensor
) -> Outputs:
    """See contract.py."""
    sh = splats.sh[:, : (sh_degree + 1) ** 2]  # gsplat copies them for every view
    images, alpha, info = load("gsplat", "gsplat").rasterization(
        splats.means,
        splats.quats,
        splats.scales,
        splats.opacities,
        sh,
        cameras.viewmats,
        cameras.Ks,
        width,
        height,
        near_plane=NEAR,
        far_plane=FAR,
        eps2d=LOW_PASS,
        sh_degree=sh_degree,
        packed=False,
        render_mode="RGB+D",
        rasterize_mode="classic",
        absgrad=False,
    )
    rgb = images[..., :3] + (1 - alpha) * background[:, None, None]
    return rgb, alpha, images[..., 3:], info["means2d"], info["radii"]
