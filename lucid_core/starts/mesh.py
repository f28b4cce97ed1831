"""Triangle meshes: points sampled uniformly on the surface, with colours and normals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..settings import require


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with colours as in glTF 2.0.

    vertices (V, 3) float32 or float64, all else float32; faces (F, 3) vertex indices; colors (V, 3) linear
    RGB in [0, 1]; uvs (V, 2), with (0, 0) the upper left corner; texture (H, W, 3) sRGB in [0, 1]. If there
    are both vertex colours and a texture, they are multiplied.
    """

    vertices: Tensor
    faces: Tensor
    colors: Tensor | None = None
    uvs: Tensor | None = None
    texture: Tensor | None = None

    def rotate(self, rotation: Tensor) -> Mesh:
        """The mesh with every vertex multiplied by `rotation` (3, 3)."""
        return replace(self, vertices=self.vertices @ rotation.to(self.vertices).T)

    def fill_color(self, linear: Tensor) -> Mesh:
        """The mesh with colour `linear` (3,) (linear RGB) at every vertex, if it has no colours."""
        has = self.colors is not None or (self.uvs is not None and self.texture is not None)
        return self if has else replace(self, colors=linear.expand(len(self.vertices), 3))


def validate(mesh: Mesh) -> None:
    """Raise BadSetting unless `mesh` is non-empty and finite, with valid indices, shapes and colours."""
    v = len(mesh.vertices)
    require(
        v > 0 and len(mesh.faces) > 0,
        "the mesh",
        f"empty ({v} vertices, {len(mesh.faces)} faces)",
        "non-empty",
    )
    for name, columns in (("vertices", 3), ("faces", 3), ("colors", 3), ("uvs", 2), ("texture", 3)):
        value = getattr(mesh, name)
        ok = value is None or (value.ndim == (3 if name == "texture" else 2) and value.shape[-1] == columns)
        require(
            ok, name, f"of shape {None if value is None else tuple(value.shape)}", f"of {columns} columns"
        )
        require(
            value is None or bool(torch.isfinite(value).all()),
            name,
            "not finite",
            "finite; repair the mesh first",
        )
    low, high = int(mesh.faces.min()), int(mesh.faces.max())
    require(low >= 0 and high < v, "the largest vertex of a face", high if low >= 0 else low, f"0 to {v - 1}")
    for name in ("colors", "uvs"):
        n = v if getattr(mesh, name) is None else len(getattr(mesh, name))
        require(n == v, f"the number of {name}", n, f"{v}, one per vertex")


def sample_surface(mesh: Mesh, count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sample N = `count` points uniformly by area -> points (N, 3), sRGB colours (N, 3), unit normals (N, 3).

    Points have the dtype of the vertices. Sampling is stratified: the number of points per triangle is
    proportional to its area, to within one. A mesh without colours is white. Raises BadSetting for an invalid
    mesh or one of zero area.
    """
    validate(mesh)
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = cross.double().norm(dim=-1) / 2
    require(float(areas.sum()) > 0, "the area of the mesh", 0, "positive; its faces are lines or points")

    share = (
        torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator, dtype=torch.float64)
    ) / count
    ends = areas.cumsum(0)
    face = torch.searchsorted(ends, share * ends[-1], right=True).clamp_max(len(areas) - 1)
    u, v = torch.rand(2, count, generator=generator)
    root = u.sqrt()  # uniform on the triangle (Osada et al. 2002, equation 1)
    weights = torch.stack([1 - root, root * (1 - v), root * v], -1)  # (N, 3) barycentric

    vertices = mesh.faces[face]
    points = _between(mesh.vertices, vertices, weights.to(mesh.vertices))
    normals = torch.nn.functional.normalize(cross[face], dim=-1).float()
    return points, to_srgb(_linear_colors(mesh, vertices, weights)), normals


def _between(values: Tensor, vertices: Tensor, weights: Tensor) -> Tensor:
    """Interpolate vertex values (V, C) -> (N, C), by barycentric `weights` (N, 3) of `vertices` (N, 3)."""
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
    """sRGB in [0, 1] -> linear RGB, any shape (IEC 61966-2-1)."""
    x = srgb.clamp(0, 1)
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """The inverse of `to_linear`."""
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)
