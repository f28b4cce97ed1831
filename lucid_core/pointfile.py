"""Coloured points from .ply and .npz files."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import require
from .extras import load
from .mesh import Mesh, sample_surface, to_linear

SUFFIXES = (".ply", ".npz")
PLY_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
NPZ_POINTS, NPZ_COLORS = ("points", "coords", "xyz"), ("colors", "rgb")
GREY = 0.5


def read(path: str | os.PathLike, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (N, 3) in the file's axes and their sRGB colours (N, 3) in [0, 1]; grey where the file has none.

    .ply: x y z and red green blue (or diffuse_red..., r g b) of the vertices; where it has faces, `count` points are drawn
    over their area. .npz: `points` (N, 3), also `coords` or `xyz`, and `colors` (N, 3), also `rgb` or R, G and B. Colours of
    integer types go from 0 to 255, others from 0 to 1. Points that are not finite, or there twice, are left out.
    Raises ValueError where the file is none of these.
    """
    path = Path(path)
    require(path.suffix.lower() in SUFFIXES, "file", path.name, f"a {' or '.join(SUFFIXES)} file")
    if path.suffix.lower() == ".npz":
        return _distinct(*_read_npz(path))
    points, colors, faces = _read_ply(path)
    if faces is None:
        return _distinct(points, colors)
    surface = Mesh(points, faces, to_linear(colors))
    return sample_surface(surface, count, torch.Generator().manual_seed(seed))[:2]


def _read_ply(path: Path) -> tuple[Tensor, Tensor, Tensor | None]:
    plyfile = load("plyfile", "plyfile")
    try:
        data = plyfile.PlyData.read(str(path))
    except (plyfile.PlyParseError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not a .ply file that can be read: {error}") from error
    elements = {element.name: element.data for element in data.elements}
    require("vertex" in elements, path.name, "without vertices", "a .ply with an element vertex")
    vertices = elements["vertex"]
    names = vertices.dtype.names
    if "f_dc_0" in names and "rot_0" in names:
        raise ValueError(f"{path.name} holds a Gaussian splat, not points; load it with Load 3D and Get Splat")
    require(set("xyz") <= set(names), path.name, f"with the properties {', '.join(names)}", "one with x, y and z")
    points = torch.from_numpy(np.stack([vertices[axis] for axis in "xyz"], -1).astype(np.float32))
    colors = next((_srgb([vertices[name] for name in triple]) for triple in PLY_COLORS if set(triple) <= set(names)), None)
    return points, colors if colors is not None else torch.full_like(points, GREY), _triangles(elements.get("face"))


def _triangles(faces: np.ndarray | None) -> Tensor | None:
    """The element face of a .ply -> (F, 3), polygons as fans; None where there are none."""
    lists = [name for name in ("vertex_indices", "vertex_index") if faces is not None and name in faces.dtype.names]
    if not lists or not len(faces):
        return None
    polygons = faces[lists[0]]
    sides = np.array([len(polygon) for polygon in polygons])
    fans = []
    for n in np.unique(sides[sides > 2]):
        corners = np.stack(list(polygons[sides == n])).astype(np.int64)
        fans += [corners[:, [0, i, i + 1]] for i in range(1, n - 1)]
    return torch.from_numpy(np.concatenate(fans)) if fans else None


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is not a .npz file that can be read: {error}") from error
    points = next((arrays[name] for name in NPZ_POINTS if name in arrays), None)
    require(points is not None, path.name, f"with the arrays {', '.join(arrays) or 'none'}", "one with points (N, 3)")
    require(points.ndim == 2 and points.shape[1] == 3, "points", f"of shape {points.shape}", "of shape (N, 3)")
    colors = next((arrays[name] for name in NPZ_COLORS if name in arrays), None)
    if colors is None and {"R", "G", "B"} <= arrays.keys():
        colors = np.stack([arrays[name] for name in "RGB"], -1)
    points = torch.from_numpy(points.astype(np.float32))
    if colors is None:
        return points, torch.full_like(points, GREY)
    require(colors.shape in ((len(points), 3), (len(points), 4)), "colors", f"of shape {colors.shape}", f"({len(points)}, 3)")
    return points, _srgb(list(colors[:, :3].T))


def _srgb(channels: list[Any]) -> Tensor:
    """Three arrays (N,), integers from 0 to 255 or others from 0 to 1 -> (N, 3) in [0, 1]."""
    whole = all(np.issubdtype(channel.dtype, np.integer) for channel in channels)
    colors = torch.from_numpy(np.stack(channels, -1).astype(np.float32)) / (255 if whole else 1)
    require(bool((colors.nan_to_num() <= 1.001).all()), "the largest colour", f"{float(colors.max()):g}",
            "at most 1 (255 for integers)")  # fmt: skip
    return colors.nan_to_num(GREY).clamp(0, 1)


def _distinct(points: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Without points that are not finite or equal an earlier one: Gaussians on one spot would have no size."""
    finite = torch.isfinite(points).all(dim=-1)
    points, colors = points[finite], colors[finite]
    _, first = np.unique(points.numpy(), axis=0, return_index=True)
    kept = torch.from_numpy(np.sort(first))
    return points[kept], colors[kept]
