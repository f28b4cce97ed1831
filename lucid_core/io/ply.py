"""Read and write the standard 3DGS .ply layout with plyfile."""

from __future__ import annotations

import io
import os
import struct
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import BadFile, BadSplats
from ..optional import load
from ..splats import Splats, activate, parameters, validate
from .atomic import atomic_path

HEADER_END = b"end_header"


def write(path: str | os.PathLike[str], splats: Splats) -> None:
    """Write a binary 3DGS .ply, atomically.

    Columns: x y z, normals (0), f_dc, f_rest (channel-major), opacity (logit), scale (log), rot (wxyz).
    """
    plyfile = load("plyfile", "plyfile")
    p = {name: value.detach().cpu().numpy() for name, value in parameters(splats).items()}
    n = len(splats)
    columns = {
        **dict(zip("xyz", p["means"].T)),
        **{name: np.zeros(n, np.float32) for name in ("nx", "ny", "nz")},
        **{f"f_dc_{i}": c for i, c in enumerate(p["sh0"][:, 0].T)},
        **{f"f_rest_{i}": c for i, c in enumerate(p["shN"].transpose(0, 2, 1).reshape(n, -1).T)},
        "opacity": p["opacities"],
        **{f"scale_{i}": c for i, c in enumerate(p["scales"].T)},
        **{f"rot_{i}": c for i, c in enumerate(p["quats"].T)},
    }
    table = np.empty(n, dtype=[(name, "<f4") for name in columns])
    for name, column in columns.items():
        table[name] = column
    vertices = plyfile.PlyElement.describe(table, "vertex")
    with atomic_path(path) as part:
        plyfile.PlyData([vertices], byte_order="<").write(part)


def read(path: str | os.PathLike[str]) -> Splats:
    """Read a 3DGS .ply.

    Raises BadFile if it is not a .ply, lacks a column, or holds no valid splat.
    """
    table = elements(path).get("vertex")
    if table is None:
        raise BadFile(path, "it is not a 3D Gaussian splat: it has no element vertex")
    names = table.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    if rest not in (0, 9, 24, 45):
        raise BadFile(path, f"it has {rest} columns f_rest_...; a splat has 0, 9, 24 or 45")

    def stack(columns: list[str]) -> torch.Tensor:
        """Vertex columns -> (N, len(columns)) float32."""
        missing = [column for column in columns if column not in names or table.dtype[column].hasobject]
        if missing:
            raise BadFile(path, f"it is not a 3D Gaussian splat: it lacks the column {missing[0]}")
        return torch.stack([torch.from_numpy(table[column].astype(np.float32)) for column in columns], -1)

    def columns(stem: str, count: int) -> torch.Tensor:
        return stack([f"{stem}_{i}" for i in range(count)])

    splats = activate(
        {
            "means": stack(list("xyz")),
            "quats": columns("rot", 4),
            "scales": columns("scale", 3),
            "opacities": stack(["opacity"])[:, 0],
            "sh0": columns("f_dc", 3)[:, None],
            "shN": columns("f_rest", rest).reshape(-1, 3, rest // 3).mT
            if rest
            else torch.zeros(len(table), 0, 3),
        }
    )
    try:
        validate(splats)
    except BadSplats as error:
        raise BadFile(path, str(error)) from error
    return splats


def elements(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The elements of a .ply as numpy structured arrays, by name.

    Raises BadFile if the file is not a .ply or is damaged.
    """
    plyfile = load("plyfile", "plyfile")
    try:
        with open(path, "rb") as file:
            data = plyfile.PlyData.read(_in_ascii(file))
            return {element.name: element.data for element in data.elements}
    except (
        plyfile.PlyParseError,
        ValueError,
        EOFError,
        MemoryError,
        OverflowError,
        struct.error,
        IsADirectoryError,
    ) as error:
        raise BadFile(path, f"it is not a readable .ply file: {error}") from error


def _in_ascii(file: io.BufferedReader) -> io.BufferedIOBase:
    """The file, or a copy in memory with a pure ASCII header.

    plyfile only reads ASCII headers, but some programs write comments in other encodings.
    """
    content = file.read(1)
    while HEADER_END not in content and (more := file.read(1 << 16)):
        content += more
    header, end, body = content.partition(HEADER_END)
    if header.isascii() or not end:
        file.seek(0)
        return file
    return io.BytesIO(bytes(byte if byte < 128 else ord("?") for byte in header) + end + body + file.read())
