"""Packs ComfyUI, and the wheels that it and this pack need, for a machine without access to a package
registry.

The other machine must have torch with torchvision and torchaudio, numpy, scipy, numba, opencv, transformers,
aiohttp, pytest and hypothesis. Not included: ComfyUI's web page, its nodes for canny and morphology (kornia),
and Warp's CPU part.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from devtools.fetch import find_host
from devtools.tree import Tree

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = {  # file name -> wheels, including their dependencies except those that need torch
    "host": [
        "comfy-aimdo",
        "comfy-kitchen",
        "av",
        "torchsde",
        "trampoline",
        "SQLAlchemy",
        "alembic",
        "Mako",
        "greenlet",
        "blake3",
        "simpleeval",
        "pydantic",
        "pydantic-core",
        "pydantic-settings",
        "typing-inspection",
        "annotated-types",
        "python-dotenv",
        "spandrel",
        "plyfile",
        "gsplat",
    ],
    "gswarp": ["gswarp", "warp-lang"],
}
PURE = ("comfy-kitchen",)  # its pure Python wheel is sufficient, and 300 times smaller
LEFT_OUT = ("warp/bin/warp-clang.so", "warp/examples/", "warp/tests/")
NOT_OF_COMFYUI = (".git/", "tests/", "tests-unit/", ".github/")
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def pack(version: str, to: Path) -> None:
    """Write host.tar.xz and gswarp.tar.xz to the folder `to`, for CPython `version` on Linux, x86-64."""
    host = find_host(Tree(ROOT), os.environ.get("COMFYUI_PATH"))
    if host is None:
        raise SystemExit("no ComfyUI is set up; run `python dev.py test`")
    to.mkdir(parents=True, exist_ok=True)
    pins = pinned(host)
    for name, wheels in BUNDLES.items():
        with tempfile.TemporaryDirectory() as folder, tarfile.open(to / f"{name}.tar.xz", "w:xz") as bundle:
            download([pins.get(wheel.lower(), wheel) for wheel in wheels], version, Path(folder))
            for wheel in sorted(Path(folder).glob("*.whl")):
                add_wheel(bundle, wheel)
            if name == "host":
                bundle.add(host, "ComfyUI", filter=lambda info: None if is_left_out(info.name) else info)
        print(f"{to / name}.tar.xz: {(to / f'{name}.tar.xz').stat().st_size / 2**20:.1f} MiB")


def pinned(host: Path) -> dict[str, str]:
    """ComfyUI's requirements: name -> line."""
    lines = [line.split("#")[0].strip() for line in (host / "requirements.txt").read_text().splitlines()]
    name = lambda line: next(
        (line.split(sign)[0] for sign in ("==", ">=", "~=") if sign in line), line
    ).lower()
    return {name(line): line for line in lines if line}


def download(wheels: list[str], version: str, to: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary=:all:",
        "--no-deps",
        "--dest",
        str(to),
    ]
    pip += ["--python-version", version, "--implementation", "cp"]
    pure = [wheel for wheel in wheels if wheel.startswith(PURE)]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    for some, on in (
        (pure, ["--platform", "any"]),
        ([wheel for wheel in wheels if wheel not in pure], platforms),
    ):
        if some:
            subprocess.run([*pip, *on, *some], check=True)


def add_wheel(bundle: tarfile.TarFile, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith("/") and not name.startswith(LEFT_OUT):
                info = tarfile.TarInfo(f"site/{name}")
                data = archive.read(name)
                info.size, info.mode = len(data), 0o755
                bundle.addfile(info, io.BytesIO(data))


def is_left_out(name: str) -> bool:
    inner = name.removeprefix("ComfyUI/") + "/"
    return inner.startswith(NOT_OF_COMFYUI) or "/__pycache__/" in f"/{inner}"


def unpack(bundles: Path, to: Path) -> None:
    """Unpack all *.tar.xz in the folder `bundles`. `to`/venv then has their packages, followed by those
    of this Python.
    """
    for file in sorted(bundles.glob("*.tar.xz")):
        with tarfile.open(file) as bundle:
            bundle.extractall(to, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", to / "venv"], check=True)
    (site,) = (to / "venv").glob("lib/python*/site-packages")
    lines = [str(to / "site"), *(f"import site; site.addsitedir({path!r})" for path in own_packages())]
    (site / "bundle.pth").write_text("\n".join(lines) + "\n")


def own_packages() -> Iterator[str]:
    yield from dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.device.bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--version", required=True, help="Python version of the other machine, such as 3.12")
    packing.add_argument("--to", type=Path, required=True, help="folder for the bundles")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("bundles", type=Path)
    unpacking.add_argument("to", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.version, options.to)
    else:
        unpack(options.bundles, options.to)


if __name__ == "__main__":
    main()
