"""Meshes for the bake: checks, simplification, UVs, and the texels of a texture on the surface."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import BadInput
from ..optional import load
from ..starts.mesh import Mesh

MANY_FACES = 200_000  # xatlas takes minutes above
UV_SLACK = 1e-4  # rounding of UVs outside [0, 1]
PADDING = 4  # texels between charts


@dataclass(frozen=True)
class Texels:
    """The T texels whose centres lie in the UVs of a mesh.

    index (T,) into the flattened (size, size) texture; points (T, 3) and unit normals (T, 3) in the frame of
    the mesh, float32.
    """

    size: int
    index: Tensor
    points: Tensor
    normals: Tensor


def prepare(mesh: Mesh, faces: int, size: int) -> Mesh:
    """The mesh with UVs: its own, or those of an unwrap after a simplification to `faces` (0 = none).

    size: of the texture in texels, by which the charts are spaced. Colours and texture of the mesh are left
    out. Raises BadInput for a mesh that cannot be textured, MissingPackage without xatlas or
    fast-simplification.
    """
    mesh = replace(mesh, vertices=mesh.vertices.float(), colors=None, texture=None)
    if mesh.uvs is not None:
        return replace(mesh, uvs=require_uvs(mesh.uvs))
    if faces and len(mesh.faces) > faces:
        mesh = simplify(mesh, faces)
    if len(mesh.faces) > MANY_FACES:
        problem = f"has {len(mesh.faces)} faces, too many to unwrap; set faces to {MANY_FACES} or less"
        raise BadInput("the mesh", problem)
    return unwrap(mesh, size)


def require_uvs(uvs: Tensor) -> Tensor:
    """UVs (V, 2) without their rounding beyond [0, 1]. Raises BadInput if they lie outside."""
    low, high = float(uvs.min()), float(uvs.max())
    if low < -UV_SLACK or high > 1 + UV_SLACK:
        problem = f"span {low:.3g} to {high:.3g}; scale them into 0 to 1, or remove them to unwrap anew"
        raise BadInput("the mesh's uvs", problem)
    return uvs.clamp(0, 1)


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with about `faces` faces, by quadric edge collapse (Garland and Heckbert 1997)."""
    collapse = load("fast_simplification", "fast-simplification").simplify
    vertices, kept = collapse(mesh.vertices.numpy(), mesh.faces.numpy(), target_count=faces)
    return Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(kept.astype(np.int64)))


def unwrap(mesh: Mesh, size: int) -> Mesh:
    """The mesh with UVs by xatlas, for a texture of `size` texels; vertices on seams are doubled."""
    xatlas = load("xatlas", "xatlas")
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.numpy(), mesh.faces.numpy().astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.generate(xatlas.ChartOptions(), packing)
    source, faces, uvs = atlas[0]
    if not len(faces):
        raise BadInput("the mesh", "has no face of positive area; repair it first")
    source, faces = torch.from_numpy(source.astype(np.int64)), torch.from_numpy(faces.astype(np.int64))
    return Mesh(mesh.vertices[source], faces, uvs=torch.from_numpy(uvs.astype(np.float32)).clamp(0, 1))


def vertex_normals(mesh: Mesh) -> Tensor:
    """Unit normals (V, 3): the mean of the faces around a vertex by area, across UV seams; 0 where there is
    none.
    """
    corners = mesh.vertices[mesh.faces].double()
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    places, place = torch.unique(mesh.vertices, dim=0, return_inverse=True)
    sums = torch.zeros(len(places), 3, dtype=torch.float64)
    sums.index_add_(0, place[mesh.faces].flatten(), cross.repeat_interleave(3, 0))
    return torch.nn.functional.normalize(sums, dim=-1)[place].float()


def texels_of(mesh: Mesh, size: int) -> Texels:
    """The texels of a (size, size) texture on the surface of a mesh with UVs, (0, 0) the upper left corner.

    Raises BadInput if no texel lies in a face.
    """
    index, vertices, weights = _texels_in_faces(mesh, size, size)
    points = _mix(weights, mesh.vertices[vertices])
    normals = _mix(weights, vertex_normals(mesh)[vertices])
    return Texels(size, index, points, torch.nn.functional.normalize(normals, dim=-1).contiguous())


def points_in_texels(mesh: Mesh, width: int, height: int) -> tuple[Tensor, Tensor]:
    """`index` (T,) and `points` (T, 3) as of `texels_of`, of a (height, width) texture."""
    index, vertices, weights = _texels_in_faces(mesh, width, height)
    return index, _mix(weights, mesh.vertices[vertices])


def _texels_in_faces(mesh: Mesh, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index (T,) of the texels, the vertices (T, 3) of their faces, and barycentric weights (T, 3)."""
    from .kernels import draw  # numba loads on first use

    assert mesh.uvs is not None
    size = torch.tensor([width, height])
    uvs = mesh.uvs.double() * size
    corners = torch.cat([uvs, torch.ones_like(uvs[:, :1])], -1)[mesh.faces]
    face = torch.from_numpy(draw(corners.numpy(), width, height)[0]).flatten()
    index = (face >= 0).nonzero()[:, 0]
    if not len(index):
        raise BadInput("the mesh's uvs", f"cover no texel of {width} x {height}; unwrap the mesh anew")
    vertices = mesh.faces[face[index].long()]
    centres = torch.stack([index % width + 0.5, index // width + 0.5], -1)
    return index, vertices, barycentric(centres.double(), uvs[vertices]).float()


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (T, 3) and values at the corners (T, 3, 3) -> (T, 3)."""
    return torch.einsum("tk,tkc->tc", weights, values).contiguous()


def barycentric(points: Tensor, corners: Tensor) -> Tensor:
    """Points (T, 2) in triangles (T, 3, 2) -> weights (T, 3) of the corners."""
    ab, ac, ap = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], points - corners[:, 0]
    area = _cross(ab, ac)
    b, c = _cross(ap, ac) / area, _cross(ab, ap) / area
    return torch.stack([1 - b - c, b, c], -1)


def _cross(p: Tensor, q: Tensor) -> Tensor:
    """The cross product of vectors (T, 2) in the plane -> (T,)."""
    return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]


def overlap_of(mesh: Mesh, texels: Texels) -> float:
    """The fraction of the UVs' area that lies over other faces, such as mirrored halves; 0 = none."""
    assert mesh.uvs is not None
    a, b, c = mesh.uvs[mesh.faces].double().unbind(1)
    area = _cross(b - a, c - a).abs().sum() / 2
    return max(0.0, 1 - len(texels.index) / max(float(area) * texels.size**2, 1.0))


def project(vertices: Tensor, faces: Tensor, camera: Cameras) -> Tensor:
    """Triangles as one camera sees them: (F, 3, 3) float64, x and y in pixels, z the depth."""
    pose, K = camera.viewmats[0].double(), camera.Ks[0].double()
    seen = vertices.double() @ pose[:3, :3].T + pose[:3, 3]
    z = seen[:, 2:]
    return torch.cat([seen[:, :2] / z * K.diagonal()[:2] + K[:2, 2], z], -1)[faces]
