"""Coloured points from .ply and .npz files."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ply
from .checks import require
from .mesh import Mesh, sample_surface, to_linear

SUFFIXES = (".ply", ".npz")
PLY_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
NPZ_POINTS, NPZ_COLORS = ("points", "coords", "xyz"), ("colors", "rgb")
GREY = 0.5
DAMAGED = (  # what numpy and zipfile raise for a file that is no .npz, or a damaged one
    ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, MemoryError,
    OverflowError, TypeError,
)  # fmt: skip


def read(path: str | os.PathLike, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (N, 3) in the file's axes and their sRGB colours (N, 3) in [0, 1]; grey where the file has none.

    Points are float32 where the file's coordinates are, else float64, so that those far from the origin keep their shape.

    .ply: x y z and red green blue (or diffuse_red..., r g b) of the vertices; where it has faces, `count` points are drawn
    over their area. .npz: `points` (N, 3), also `coords` or `xyz`, and `colors` (N, 3), also `rgb` or R, G and B. Integer
    colours go from 0 to 255, or to the largest value of a wider range where they exceed that; others from 0 to 1. Points that
    are not finite, or there twice, are left out. Raises ValueError, naming the file, where it is none of these.
    """
    path = Path(path)
    require(path.suffix.lower() in SUFFIXES, "file", path.name, f"a {' or '.join(SUFFIXES)} file")
    try:
        points, colors, faces = _read_npz(path) if path.suffix.lower() == ".npz" else _read_ply(path)
        require(len(points) > 0, "the number of points", 0, "at least 1")
        if faces is None:
            return _distinct(points, colors)
        surface = Mesh(points, faces, to_linear(colors))
        return sample_surface(surface, count, torch.Generator().manual_seed(seed))[:2]
    except ValueError as error:
        raise ValueError(str(error) if path.name in str(error) else f"{path.name}: {error}") from error


def _read_ply(path: Path) -> tuple[Tensor, Tensor, Tensor | None]:
    tables = ply.elements(path)
    require("vertex" in tables, path.name, "without vertices", "a .ply with an element vertex")
    vertices = tables["vertex"]
    names = vertices.dtype.names or ()
    if "f_dc_0" in names:
        raise ValueError(f"{path.name} holds a Gaussian splat, not points; load it with Load 3D and Get Splat")
    scalars = {name for name in names if not vertices.dtype[name].hasobject}
    require(set("xyz") <= scalars, path.name, f"with the properties {', '.join(names) or 'none'}", "one with x, y and z")
    points = _points([vertices[axis] for axis in "xyz"])
    colors = next((_srgb([vertices[name] for name in triple]) for triple in PLY_COLORS if set(triple) <= scalars), None)
    return points, colors if colors is not None else torch.full(points.shape, GREY), _triangles(tables.get("face"))


def _triangles(faces: np.ndarray | None) -> Tensor | None:
    """The element face of a .ply -> (F, 3), polygons as fans; None where there are none."""
    lists = [name for name in ("vertex_indices", "vertex_index") if faces is not None and name in faces.dtype.names]
    if not lists or not len(faces):
        return None
    require(faces.dtype[lists[0]].hasobject, lists[0], "one number", "a list of vertices for each face")
    polygons = faces[lists[0]]
    sides = np.array([len(polygon) for polygon in polygons])
    fans = []
    for n in np.unique(sides[sides > 2]):
        corners = np.stack(list(polygons[sides == n])).astype(np.int64)
        fans += [corners[:, [0, i, i + 1]] for i in range(1, n - 1)]
    return torch.from_numpy(np.concatenate(fans)) if fans else None


def _read_npz(path: Path) -> tuple[Tensor, Tensor, None]:
    wanted = (*NPZ_POINTS, *NPZ_COLORS, *"RGB")
    try:
        with zipfile.ZipFile(path):  # numpy also opens an .npy of this name
            pass
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] if name in wanted else None for name in data.files}
    except DAMAGED as error:
        raise ValueError(f"{path.name} is not a .npz file that can be read: {error}") from error
    for name in (name for name in wanted if arrays.get(name) is not None):
        kind = getattr(arrays[name], "dtype", np.dtype("V"))  # numpy gives the bytes of a member that is no array
        require(kind.kind in "fiu", name, f"of type {kind}", "an array of numbers")
    points = next((arrays[name] for name in NPZ_POINTS if name in arrays), None)
    require(points is not None, path.name, f"with the arrays {', '.join(arrays) or 'none'}", "one with points (N, 3)")
    require(points.ndim == 2 and points.shape[1] == 3, "points", f"of shape {points.shape}", "of shape (N, 3)")
    colors = next((arrays[name] for name in NPZ_COLORS if name in arrays), None)
    if colors is None and {"R", "G", "B"} <= arrays.keys():
        colors = np.stack([arrays[name] for name in "RGB"], -1)
    points = _points(list(points.T))
    if colors is None:
        return points, torch.full(points.shape, GREY), None
    require(colors.shape in ((len(points), 3), (len(points), 4)), "colors", f"of shape {colors.shape}", f"({len(points)}, 3)")
    return points, _srgb(list(colors[:, :3].T)), None


def _points(columns: list[np.ndarray]) -> Tensor:
    """Three arrays (N,) -> (N, 3), float32 where that holds all that they do."""
    kind = np.float32 if all(np.can_cast(column.dtype, np.float32) for column in columns) else np.float64
    return torch.from_numpy(np.stack(columns, -1).astype(kind))


def _srgb(channels: list[Any]) -> Tensor:
    """Three arrays (N,) of one kind, integers or numbers from 0 to 1 -> (N, 3) in [0, 1]; grey where one is NaN."""
    whole = [np.issubdtype(channel.dtype, np.integer) for channel in channels]
    require(len(set(whole)) == 1, "the colours", "of integers and of fractions", "all of one kind")
    values = np.stack(channels, -1).astype(np.float64)
    top = _white([channel.dtype for channel in channels], values) if all(whole) else 1.0
    low, high = float(np.fmin.reduce(values, None, initial=0)), float(np.fmax.reduce(values, None, initial=0))
    require(low >= (0 if all(whole) else -0.001), "the smallest colour", f"{low:g}", "at least 0")
    require(high <= 1.001 * top, "the largest colour", f"{high:g}", "at most 1 (255 for integers)")
    colors = torch.from_numpy(values / top).float()
    return torch.where(colors.isnan().any(-1, keepdim=True), GREY, colors).clamp(0, 1)


def _white(kinds: list[np.dtype], values: np.ndarray) -> float:
    """What is 1 in integer colours: the first of 255, 65,535 and the largest of the type that none exceeds."""
    high = values.max(initial=0)
    widest = float(max(np.iinfo(kind).max for kind in kinds))
    return next(top for top in (255.0, min(2.0**16 - 1, widest), widest) if high <= top)


def _distinct(points: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Without points that are not finite or equal an earlier one: Gaussians on one spot would have no size."""
    finite = torch.isfinite(points).all(dim=-1)
    require(bool(finite.any()), "the points", "not finite, all of them", "numbers")
    points, colors = points[finite], colors[finite]
    _, first = np.unique(points.numpy(), axis=0, return_index=True)
    kept = torch.from_numpy(np.sort(first))
    return points[kept], colors[kept]
