"""The standard 3DGS .ply layout, by plyfile."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from .extras import load
from .gaussians import Splats, activate, parameters


def write(path: str | os.PathLike, splats: Splats) -> None:
    """Write the binary 3DGS layout: x y z, normals, f_dc, f_rest (channel-major), opacity (logit), scale (log), rot (wxyz).

    The file appears whole or not at all.
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
    path = Path(path)
    part = path.with_name(path.name + ".part")
    vertices = plyfile.PlyElement.describe(table, "vertex")
    plyfile.PlyData([vertices], byte_order="<").write(part)
    os.replace(part, path)


def read(path: str | os.PathLike) -> Splats:
    """Read a 3DGS .ply. Raises ValueError where the file is none."""
    plyfile = load("plyfile", "plyfile")
    try:
        table = plyfile.PlyData.read(path)["vertex"].data
        column = lambda name: torch.from_numpy(table[name].astype(np.float32))
        stack = lambda names: torch.stack([column(name) for name in names], -1)
        rest = sum(name.startswith("f_rest_") for name in table.dtype.names)
        n = len(table)
        shN = stack([f"f_rest_{i}" for i in range(rest)]).reshape(n, 3, -1).transpose(1, 2) if rest else torch.zeros(n, 0, 3)
        return activate({
            "means": stack("xyz"),
            "quats": stack([f"rot_{i}" for i in range(4)]),
            "scales": stack([f"scale_{i}" for i in range(3)]),
            "opacities": column("opacity"),
            "sh0": stack([f"f_dc_{i}" for i in range(3)])[:, None],
            "shN": shN,
        })  # fmt: skip
    except (plyfile.PlyParseError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a 3D Gaussian splat .ply: {error}") from error
