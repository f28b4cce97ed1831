"""Triangle meshes: points spread evenly over their surface, with the colours there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .checks import require


@dataclass(frozen=True)
class Mesh:
    """V vertices (V, 3) and F triangles (F, 3), coloured as in glTF 2.0.

    Vertices are float32 or float64, all else is float32. `colors` (V, 3) are linear RGB in [0, 1]; `uvs` (V, 2) point into
    `texture` (H, W, 3) of sRGB in [0, 1], (0, 0) its upper left corner. Where there are both they are multiplied.
    """

    vertices: Tensor
    faces: Tensor
    colors: Tensor | None = None
    uvs: Tensor | None = None
    texture: Tensor | None = None

    def turned(self, rotation: Tensor) -> Mesh:
        """Its vertices multiplied by `rotation` (3, 3)."""
        return replace(self, vertices=self.vertices @ rotation.to(self.vertices).T)

    def coloured(self, linear: Tensor) -> Mesh:
        """With linear RGB (3,) at every vertex if it has no colours of its own."""
        has = self.colors is not None or (self.uvs is not None and self.texture is not None)
        return self if has else replace(self, colors=linear.expand(len(self.vertices), 3))


def validate(mesh: Mesh) -> None:
    """Raise ValueError unless `mesh` has a surface of finite vertices and consistent indices and colours."""
    v = len(mesh.vertices)
    require(v > 0 and len(mesh.faces) > 0, "the mesh", f"empty ({v} vertices, {len(mesh.faces)} faces)", "one that has some")
    for name, columns in (("vertices", 3), ("faces", 3), ("colors", 3), ("uvs", 2), ("texture", 3)):
        value = getattr(mesh, name)
        ok = value is None or (value.ndim == (3 if name == "texture" else 2) and value.shape[-1] == columns)
        require(ok, name, f"of shape {None if value is None else tuple(value.shape)}", f"of {columns} columns")
        require(value is None or bool(torch.isfinite(value).all()), name, "not finite", "finite; repair the mesh first")
    low, high = int(mesh.faces.min()), int(mesh.faces.max())
    require(low >= 0 and high < v, "the largest vertex of a face", high if low >= 0 else low, f"0 to {v - 1}")
    for name in ("colors", "uvs"):
        n = v if getattr(mesh, name) is None else len(getattr(mesh, name))
        require(n == v, f"the number of {name}", n, f"{v}, one a vertex")


def sample_surface(mesh: Mesh, count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`count` points (N, 3) even over the area of the surface, their sRGB colours (N, 3) and its unit normals (N, 3).

    Points have the vertices' dtype.

    Draws are stratified: each triangle gets its share of `count` to within one. A mesh without colours is white.
    Raises ValueError for a mesh without area.
    """
    validate(mesh)
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = cross.double().norm(dim=-1) / 2
    require(float(areas.sum()) > 0, "the area of the mesh", 0, "positive; its faces are lines or points")

    share = (torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    ends = areas.cumsum(0)
    face = torch.searchsorted(ends, share * ends[-1], right=True).clamp_max(len(areas) - 1)
    u, v = torch.rand(2, count, generator=generator)
    root = u.sqrt()  # even over the triangle (Osada et al. 2002, equation 1)
    weights = torch.stack([1 - root, root * (1 - v), root * v], -1)  # (N, 3) barycentric

    vertices = mesh.faces[face]
    points = _between(mesh.vertices, vertices, weights.to(mesh.vertices))
    normals = torch.nn.functional.normalize(cross[face], dim=-1).float()
    return points, to_srgb(_linear_colors(mesh, vertices, weights)), normals


def _between(values: Tensor, vertices: Tensor, weights: Tensor) -> Tensor:
    """Values (V, C) at the vertices -> (N, C) at points in triangles of `vertices` (N, 3), by barycentric `weights` (N, 3)."""
    return torch.einsum("nk,nkc->nc", weights, values[vertices])


def _linear_colors(mesh: Mesh, vertices: Tensor, weights: Tensor) -> Tensor:
    colors = torch.ones(len(weights), 3)
    if mesh.texture is not None and mesh.uvs is not None:
        grid = (_between(mesh.uvs, vertices, weights) * 2 - 1)[None, None]
        picture = to_linear(mesh.texture).movedim(-1, 0)[None]
        found = torch.nn.functional.grid_sample(picture, grid, padding_mode="border", align_corners=False)
        colors = colors * found[0, :, 0].T
    return colors if mesh.colors is None else colors * _between(mesh.colors, vertices, weights)


def to_linear(srgb: Tensor) -> Tensor:
    """sRGB in [0, 1] -> linear RGB (IEC 61966-2-1)."""
    x = srgb.clamp(0, 1)
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """The inverse of `to_linear`."""
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)
