"""Pictures of a textured mesh, unlit, as a viewer shows it. They are linear in the texels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from ..cameras import Cameras
from ..starts.mesh import Mesh
from .surface import barycentric, project

SAMPLES = 3  # per pixel and axis


@dataclass(frozen=True)
class Footprint:
    """Where the pixels of one view lie in the texture, with SAMPLES**2 points per pixel.

    index (N,): the points on the mesh, in the flattened image of all points; grid (N, 2): their UVs, from -1
    to 1; alpha and depth (H, W, 1): share of a pixel that the mesh covers, and depth times alpha.
    """

    index: Tensor
    grid: Tensor
    alpha: Tensor
    depth: Tensor

    def to(self, device: torch.device) -> Footprint:
        """The same on `device`."""
        return Footprint(*(x.to(device) for x in (self.index, self.grid, self.alpha, self.depth)))

    def look_up(self, texture: Tensor) -> Tensor:
        """The view's colours (H, W, 3) on black, from texture (h, w, 3); differentiable."""
        height, width = self.alpha.shape[:2]
        picture = texture.movedim(-1, 0)[None]
        colors = grid_sample(picture, self.grid[None, None], padding_mode="border", align_corners=False)
        blank = torch.zeros(3, height * width * SAMPLES**2, device=texture.device)
        samples = blank.index_copy(1, self.index, colors[0, :, 0])
        return _average(samples.reshape(3, height * SAMPLES, width * SAMPLES))


def footprint(mesh: Mesh, camera: Cameras, width: int, height: int) -> Footprint:
    """Where one camera of `width` x `height` pixels sees the texture of a mesh with UVs."""
    from .kernels import draw  # numba loads on first use

    assert mesh.uvs is not None
    fine = Cameras(camera.viewmats, camera.Ks * torch.tensor([SAMPLES, SAMPLES, 1.0])[:, None])
    corners = project(mesh.vertices, mesh.faces, fine)
    w, h = width * SAMPLES, height * SAMPLES
    face, depth = (torch.from_numpy(x) for x in draw(corners.numpy(), w, h))
    index = (face.flatten() >= 0).nonzero()[:, 0]
    triangles = face.flatten()[index].long()
    centres = torch.stack([index % w + 0.5, index // w + 0.5], -1).double()
    inverse = barycentric(centres, corners[triangles, :, :2]) / corners[triangles, :, 2]
    weights = (inverse / inverse.sum(-1, keepdim=True)).float()  # perspective-correct
    uvs = torch.einsum("nk,nkc->nc", weights, mesh.uvs[mesh.faces[triangles]])
    covered = face >= 0
    maps = _average(torch.stack([covered.float(), torch.where(covered, depth, 0)]))
    return Footprint(index, uvs * 2 - 1, maps[..., :1], maps[..., 1:])


def shade(mesh: Mesh, camera: Cameras, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The mesh before one camera: rgb (H, W, 3) sRGB on black, alpha (H, W, 1), both in [0, 1].

    The texture is sampled bilinearly and not lit; averaged over SAMPLES**2 points per pixel.
    """
    assert mesh.texture is not None
    seen = footprint(mesh, camera, width, height)
    return seen.look_up(mesh.texture), seen.alpha


def _average(samples: Tensor) -> Tensor:
    """Channels (C, H * SAMPLES, W * SAMPLES) -> the mean of each pixel (H, W, C)."""
    return avg_pool2d(samples[None], SAMPLES)[0].movedim(0, -1)
