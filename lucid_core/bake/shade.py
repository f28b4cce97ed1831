"""Pictures of a textured mesh, unlit, as a viewer shows it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from ..cameras import Cameras
from ..starts.mesh import Mesh
from .surface import barycentric, project

SAMPLES = 3  # per pixel and axis


def shade(mesh: Mesh, camera: Cameras, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The mesh before one camera: rgb (H, W, 3) sRGB on black, alpha (H, W, 1), both in [0, 1].

    The texture is sampled bilinearly and not lit; averaged over SAMPLES**2 points per pixel.
    """
    from .kernels import draw  # numba loads on first use

    assert mesh.uvs is not None and mesh.texture is not None
    fine = Cameras(camera.viewmats, camera.Ks * torch.tensor([SAMPLES, SAMPLES, 1.0])[:, None])
    corners = project(mesh.vertices, mesh.faces, fine)
    w, h = width * SAMPLES, height * SAMPLES
    face = torch.from_numpy(draw(corners.numpy(), w, h)[0]).flatten()
    index = (face >= 0).nonzero()[:, 0]
    triangles = face[index].long()
    centres = torch.stack([index % w + 0.5, index // w + 0.5], -1).double()
    inverse = barycentric(centres, corners[triangles, :, :2]) / corners[triangles, :, 2]
    weights = (inverse / inverse.sum(-1, keepdim=True)).float()  # perspective-correct
    uvs = torch.einsum("nk,nkc->nc", weights, mesh.uvs[mesh.faces[triangles]])
    picture = mesh.texture.movedim(-1, 0)[None]
    colors = grid_sample(picture, (uvs * 2 - 1)[None, None], padding_mode="border", align_corners=False)
    rgba = torch.zeros(4, h * w)
    rgba[:3, index], rgba[3, index] = colors[0, :, 0], 1.0
    small = avg_pool2d(rgba.reshape(1, 4, h, w), SAMPLES)[0].movedim(0, -1)
    return small[..., :3], small[..., 3:]
