"""Read coloured points from .ply and .npz files."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BadFile
from ..settings import require
from ..starts.mesh import Mesh, sample_surface, to_linear
from . import ply

SUFFIXES = (".ply", ".npz")
PLY_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
NPZ_POINTS, NPZ_COLORS = ("points", "coords", "xyz"), ("colors", "rgb")
GREY = 0.5
DAMAGED = (  # raised by numpy and zipfile for a damaged file or one that is not .npz
    ValueError,
    OSError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    OverflowError,
    TypeError,
)


def read(path: str | os.PathLike[str], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (N, 3) in the file's axes and sRGB colours (N, 3) in [0, 1]; grey if the file has no colours.

    Points are float32 if the file's coordinates are, else float64, which keeps the precision of points far
    from the origin.

    .ply: vertex properties x y z and red green blue (or diffuse_red..., r g b); if it has faces, `count`
    points are sampled on the surface. .npz: `points` (or `coords`, `xyz`) (N, 3), and `colors` (or `rgb`, or
    R, G and B) (N, 3). Integer colours range from 0 to 255, or to the maximum of a wider type if they exceed
    255; others from 0 to 1. Duplicate points and points that are not finite are removed. Raises BadFile for
    anything else.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise BadFile(path, f"it must be a {' or '.join(SUFFIXES)} file")
    try:
        points, colors, faces = _read_npz(path) if path.suffix.lower() == ".npz" else _read_ply(path)
        require(len(points) > 0, "the number of points", 0, "at least 1")
        if faces is None:
            return _drop_duplicates(points, colors)
        surface = Mesh(points, faces, to_linear(colors))
        return sample_surface(surface, count, torch.Generator().manual_seed(seed))[:2]
    except BadFile:
        raise
    except ValueError as error:
        raise BadFile(path, str(error)) from error


def _read_ply(path: Path) -> tuple[Tensor, Tensor, Tensor | None]:
    tables = ply.elements(path)
    if "vertex" not in tables:
        raise BadFile(path, "it has no element vertex")
    vertices = tables["vertex"]
    names = vertices.dtype.names or ()
    if "f_dc_0" in names:
        raise BadFile(
            path, "it holds a Gaussian splat, not points; load it with Load 3D (Advanced) and Get Splat"
        )
    scalars = {name for name in names if not vertices.dtype[name].hasobject}
    if not set("xyz") <= scalars:
        raise BadFile(
            path, f"its vertices have the properties {', '.join(names) or 'none'}, but need x, y and z"
        )
    points = _points([vertices[axis] for axis in "xyz"])
    colors = next(
        (_srgb([vertices[name] for name in triple]) for triple in PLY_COLORS if set(triple) <= scalars), None
    )
    return (
        points,
        colors if colors is not None else torch.full(points.shape, GREY),
        _triangles(tables.get("face")),
    )


def _triangles(faces: NDArray[Any] | None) -> Tensor | None:
    """The face element of a .ply -> triangles (F, 3), polygons split into fans; None if there are none."""
    if faces is None or not len(faces):
        return None
    lists = [name for name in ("vertex_indices", "vertex_index") if name in (faces.dtype.names or ())]
    if not lists:
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
    known = (*NPZ_POINTS, *NPZ_COLORS, *"RGB")
    try:
        with zipfile.ZipFile(path):  # numpy would also open an .npy file with this suffix
            pass
        with np.load(path, allow_pickle=False) as data:
            names, arrays = data.files, {name: data[name] for name in known if name in data.files}
    except DAMAGED as error:
        raise BadFile(path, f"it is not a readable .npz file: {error}") from error
    for name, array in arrays.items():
        kind = getattr(array, "dtype", np.dtype("V"))  # numpy returns bytes for members that are not arrays
        require(kind.kind in "fiu", name, f"of type {kind}", "an array of numbers")
    points = next((arrays[name] for name in NPZ_POINTS if name in arrays), None)
    if points is None:
        raise BadFile(path, f"it has the arrays {', '.join(names) or 'none'}, but needs points (N, 3)")
    require(
        points.ndim == 2 and points.shape[1] == 3, "points", f"of shape {points.shape}", "of shape (N, 3)"
    )
    colors = next((arrays[name] for name in NPZ_COLORS if name in arrays), None)
    if colors is None and {"R", "G", "B"} <= arrays.keys():
        colors = np.stack([arrays[name] for name in "RGB"], -1)
    points = _points(list(points.T))
    if colors is None:
        return points, torch.full(points.shape, GREY), None
    require(
        colors.shape in ((len(points), 3), (len(points), 4)),
        "colors",
        f"of shape {colors.shape}",
        f"({len(points)}, 3)",
    )
    return points, _srgb(list(colors[:, :3].T)), None


def _points(columns: list[NDArray[Any]]) -> Tensor:
    """Three arrays (N,) -> (N, 3); float32 if that is exact for their types, else float64."""
    kind = np.float32 if all(np.can_cast(column.dtype, np.float32) for column in columns) else np.float64
    return torch.from_numpy(np.stack(columns, -1).astype(kind))


def _srgb(channels: list[Any]) -> Tensor:
    """Three channels (N,), all integers or all floats from 0 to 1 -> (N, 3) in [0, 1]; NaN becomes grey."""
    whole = [np.issubdtype(channel.dtype, np.integer) for channel in channels]
    require(
        len(set(whole)) == 1,
        "the type of the colours",
        "mixed (integer and float)",
        "the same for all channels",
    )
    values = np.stack(channels, -1).astype(np.float64)
    top = _white([channel.dtype for channel in channels], values) if all(whole) else 1.0
    low, high = float(np.fmin.reduce(values, None, initial=0)), float(np.fmax.reduce(values, None, initial=0))
    require(low >= (0 if all(whole) else -0.001), "the smallest colour", f"{low:g}", "at least 0")
    require(high <= 1.001 * top, "the largest colour", f"{high:g}", "at most 1 (255 for integers)")
    colors = torch.from_numpy(values / top).float()
    return torch.where(colors.isnan().any(-1, keepdim=True), GREY, colors).clamp(0, 1)


def _white(kinds: list[np.dtype[Any]], values: NDArray[Any]) -> float:
    """White level of integer colours: the first of 255, 65,535 and the type's maximum that none exceeds."""
    high = values.max(initial=0)
    widest = float(max(np.iinfo(kind).max for kind in kinds))
    return next(top for top in (255.0, min(2.0**16 - 1, widest), widest) if high <= top)


def _drop_duplicates(points: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Remove points that are not finite or duplicate an earlier one, whose Gaussians would have scale 0."""
    finite = torch.isfinite(points).all(dim=-1)
    require(bool(finite.any()), "the number of finite points", 0, "at least 1")
    points, colors = points[finite], colors[finite]
    _, first = np.unique(points.numpy(), axis=0, return_index=True)
    kept = torch.from_numpy(np.sort(first))
    return points[kept], colors[kept]
