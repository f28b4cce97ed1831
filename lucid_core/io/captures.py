"""Read pictures with known cameras: transforms.json (NeRF synthetic layout) and COLMAP models.

transforms.json: camera-to-world matrices in OpenGL's axes (x right, y up, z back), world z up. COLMAP:
world-to-camera in OpenCV's axes, the world as it is. Both put the centre of the first pixel at 0.5.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, SizedCameras
from ..errors import BadFile
from ..optional import load
from ..starts.points import AXES

SPLITS = ("train", "test", "val")
TRANSFORMS = ("transforms.json", *(f"transforms_{split}.json" for split in SPLITS))
SUFFIXES = ("", ".png", ".jpg", ".jpeg")  # tried for a file_path without one
COLMAP_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "")
IMAGE_FOLDERS = ("images", "")
MODELS = (  # of COLMAP by number: name and number of parameters
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
)
DISTORTIONS = ("k1", "k2", "k3", "k4", "p1", "p2")
UNDISTORT = (
    "only pinhole cameras are read. Undistort the pictures first, e.g.: colmap image_undistorter "
    "--image_path images --input_path sparse/0 --output_path undistorted"
)
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's camera axes -> OpenGL's
ROUNDING = 1e-3  # largest deviation of a rotation matrix in a file from an orthonormal one


@dataclass(frozen=True)
class Capture:
    """V picture files with their cameras, and the coloured points of the scene, if there are some.

    cameras: world-to-camera in the splat frame, Ks in pixels of pictures of `sizes` (V, 2), (width, height).
    points (N, 3) and sRGB colors (N, 3) in [0, 1]; None = the file has none.
    """

    paths: tuple[Path, ...]
    cameras: Cameras
    sizes: Tensor
    points: Tensor | None = None
    colors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def thin(self, limit: int) -> Capture:
        """At most `limit` of the pictures, spread evenly; 0 = all."""
        if not 0 < limit < len(self):
            return self
        rows = torch.arange(limit) * len(self) // limit
        paths = tuple(self.paths[i] for i in rows.tolist())
        return replace(self, paths=paths, cameras=self.cameras.map(lambda x: x[rows]), sizes=self.sizes[rows])


def is_capture(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds a file that `read` can start from."""
    folder = Path(folder)
    return any((folder / name).is_file() for name in TRANSFORMS) or _colmap_of(folder) is not None


def read(folder: str | os.PathLike[str], split: str = "train") -> Capture:
    """The pictures and cameras of a folder.

    In this order: transforms.json; transforms_`split`.json; a COLMAP model (cameras, images, points3D as .bin
    or .txt) in sparse/0, sparse or the folder itself, with the pictures in images/. Raises BadFile if a file
    is missing, damaged, or of cameras that are not pinhole.
    """
    folder = Path(folder)
    if (folder / TRANSFORMS[0]).is_file():
        return _read_transforms(folder / TRANSFORMS[0])
    if any((folder / name).is_file() for name in TRANSFORMS):
        path = folder / f"transforms_{split}.json"
        if not path.is_file():
            found = ", ".join(name for name in TRANSFORMS if (folder / name).is_file())
            raise BadFile(folder, f"it has no {path.name}, but {found}; choose another split")
        return _read_transforms(path)
    model = _colmap_of(folder)
    if model is None:
        raise BadFile(folder, "it holds neither transforms.json nor a COLMAP model (sparse/0/cameras.bin)")
    return _read_colmap(folder, model)


def load_images(capture: Capture, longest: int, background: Tensor) -> tuple[Tensor, Tensor, SizedCameras]:
    """(images (V, H, W, 3) sRGB in [0, 1], masks (V, H, W) with 1 = opaque, their cameras).

    All pictures are resized to the size of the first, whose longer side is at most `longest` pixels (0 = no
    limit). Transparent ones are put on `background` (3,). Raises BadFile for a picture that cannot be read.
    """
    width, height = _size_of(capture.paths[0])
    shrink = min(longest / max(width, height), 1.0) if longest else 1.0
    size = max(round(width * shrink), 1), max(round(height * shrink), 1)
    images, masks = [], []
    for path in capture.paths:
        rgba = _pixels(path, size)
        images.append(rgba[..., :3] + (1 - rgba[..., 3:]) * background)
        masks.append(rgba[..., 3])
    factors = torch.ones(len(capture), 3)
    factors[:, :2] = torch.tensor(size) / capture.sizes
    cameras = replace(capture.cameras, Ks=capture.cameras.Ks * factors[:, :, None])
    return torch.stack(images), torch.stack(masks), SizedCameras(cameras, *size)


def _inside(picture: Path, folder: Path, source: Path) -> Path:
    """`picture`, if it lies in `folder`: a file from elsewhere may name no other file of this machine."""
    if not Path(os.path.abspath(picture)).is_relative_to(os.path.abspath(folder)):
        raise BadFile(source, f"it names a picture outside of its folder, {picture}; move that into {folder}")
    return picture


def _open(path: Path) -> Any:
    pil = load("PIL.Image", "pillow")
    try:
        return pil.open(path)
    except FileNotFoundError as error:
        raise BadFile(path, "the picture is missing; put it where the file of the cameras says") from error
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        raise BadFile(path, f"it is no readable picture: {error}") from error


def _size_of(path: Path) -> tuple[int, int]:
    with _open(path) as picture:
        size: tuple[int, int] = picture.size
        return size


def _pixels(path: Path, size: tuple[int, int]) -> Tensor:
    """The picture (H, W, 4) in [0, 1], with the colours multiplied by alpha, resized to `size`."""
    with _open(path) as picture:
        try:
            rgba = picture.convert("RGBA")
            if rgba.size != size:  # pillow weights colours by alpha in RGBa alone
                rgba = rgba.convert("RGBa").resize(size, load("PIL.Image", "pillow").Resampling.BOX)
                rgba = rgba.convert("RGBA")
        except (OSError, ValueError, SyntaxError) as error:
            raise BadFile(path, f"it is damaged: {error}") from error
    values = torch.from_numpy(np.array(rgba, np.float32)) / 255
    return torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], -1)


# ---- transforms.json


def _read_transforms(path: Path) -> Capture:
    content = _json_of(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise BadFile(path, "it has no list of frames; export it again")
    paths, poses, Ks, sizes = [], [], [], []
    for number, frame in enumerate(frames):
        where = f"frame {number}"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise BadFile(path, f"{where} has no file_path; export it again")
        picture = _inside(_picture_of(path.parent, frame["file_path"]), path.parent, path)
        poses.append(_pose(frame.get("transform_matrix"), path, where))
        K, size = _intrinsics({**content, **frame}, picture, path, where)
        paths.append(picture)
        Ks.append(K)
        sizes.append(size)
    cameras = Cameras(torch.tensor(np.stack(poses)).float(), torch.tensor(Ks).float())
    return Capture(tuple(paths), cameras, torch.tensor(sizes).float())


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadFile(path, f"it is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadFile(path, "it has no list of frames; export it again")
    return content


def _picture_of(folder: Path, name: str) -> Path:
    """The file of a file_path, which may lack its suffix."""
    base = folder / name.replace("\\", "/")
    candidates = [base.with_name(base.name + suffix) for suffix in SUFFIXES] if base.name else []
    return next((path for path in candidates if path.is_file()), base)


def _pose(matrix: Any, path: Path, where: str) -> np.ndarray[Any, Any]:
    """Camera-to-world in OpenGL's axes, z up -> world-to-camera (4, 4) in the splat frame, float64."""
    try:
        pose = np.array(matrix, np.float64)
    except (TypeError, ValueError) as error:
        raise BadFile(path, f"the transform_matrix of {where} is not 4 x 4 numbers") from error
    if pose.shape not in ((4, 4), (3, 4)) or not np.isfinite(pose).all():
        raise BadFile(path, f"the transform_matrix of {where} is not 4 x 4 finite numbers")
    world = np.eye(4)
    world[:3, :3] = AXES["z up"].numpy()
    to_world = world @ np.vstack([pose[:3], [0, 0, 0, 1]]) @ OPENGL
    return _inverse(_orthonormal(to_world, path, where))


def _orthonormal(pose: np.ndarray[Any, Any], path: Path, where: str) -> np.ndarray[Any, Any]:
    """`pose` (4, 4), whose rotation is checked, with its rounding in the file removed."""
    rotation = pose[:3, :3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not off < ROUNDING or np.linalg.det(rotation) < 0:
        raise BadFile(path, f"the pose of {where} is no rotation (off by {off:.2g}); export it again")
    u, _, v = np.linalg.svd(rotation)
    fixed = pose.copy()
    fixed[:3, :3] = u @ v
    return fixed


def _inverse(pose: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def _intrinsics(
    values: dict[str, Any], picture: Path, path: Path, where: str
) -> tuple[list[list[float]], list[float]]:
    """(K (3, 3), [width, height] in pixels) from the entries of a frame and of the whole file."""
    model = str(values.get("camera_model", "PINHOLE")).upper()
    bent = {name: values[name] for name in DISTORTIONS if values.get(name)}
    if bent or values.get("is_fisheye") or "FISHEYE" in model:
        what = ", ".join(f"{name} = {value}" for name, value in bent.items()) or model
        raise BadFile(path, f"the camera of {where} is distorted ({what}); {UNDISTORT}")

    def number(name: str) -> float:
        return _number(values, name, path, where)

    width, height = (number("w"), number("h")) if "w" in values else _size_of(picture)
    if "fl_x" in values:
        fx = number("fl_x")
    elif "camera_angle_x" in values:
        fx = width / 2 / math.tan(min(max(number("camera_angle_x"), 1e-6), math.pi - 1e-6) / 2)
    else:
        raise BadFile(path, f"{where} has no focal length; it needs camera_angle_x or fl_x")
    fy = number("fl_y") if "fl_y" in values else fx
    cx = number("cx") if "cx" in values else width / 2
    cy = number("cy") if "cy" in values else height / 2
    if not min(fx, fy, width, height) > 0:
        raise BadFile(path, f"the focal length or the size of {where} is not positive; export it again")
    return [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], [float(width), float(height)]


def _number(values: dict[str, Any], name: str, path: Path, where: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadFile(path, f"{name} of {where} is {value!r}; it must be a finite number")
    return float(value)


# ---- COLMAP


@dataclass(frozen=True)
class _Camera:
    model: str
    width: float
    height: float
    params: tuple[float, ...]


@dataclass(frozen=True)
class _Image:
    quat: tuple[float, ...]  # wxyz, world to camera
    shift: tuple[float, ...]
    camera: int
    name: str


def _colmap_of(folder: Path) -> Path | None:
    """The folder of the COLMAP model below `folder`."""
    places = (folder / name for name in COLMAP_FOLDERS)
    return next((p for p in places if any((p / f"cameras{end}").is_file() for end in (".bin", ".txt"))), None)


def _read_colmap(folder: Path, model: Path) -> Capture:
    cameras = _table(model, "cameras", _binary_cameras, _text_cameras)
    images = sorted(_table(model, "images", _binary_images, _text_images), key=lambda image: image.name)
    if not images:
        raise BadFile(model, "it has no pictures; run COLMAP's mapper again")
    has_points = any((model / f"points3D{end}").is_file() for end in (".bin", ".txt"))
    cloud = _table(model, "points3D", _binary_points, _text_points) if has_points else np.empty((0, 6))
    by_number, paths, poses, Ks, sizes = dict(cameras), [], [], [], []
    for image in images:
        if image.camera not in by_number:
            raise BadFile(model, f"picture {image.name!r} has the unknown camera {image.camera}")
        camera = by_number[image.camera]
        places = [folder / name / image.name for name in IMAGE_FOLDERS]
        found = next((path for path in places if path.is_file()), places[0])
        paths.append(_inside(found, folder, model))
        poses.append(_rigid(image, model))
        Ks.append(_pinhole(image.camera, camera, model))
        sizes.append([camera.width, camera.height])
    finite = np.isfinite(cloud).all(1)
    cloud = torch.from_numpy(cloud[finite]).float()
    cameras = Cameras(torch.tensor(np.stack(poses)).float(), torch.tensor(Ks).float())
    points, colors = (cloud[:, :3], cloud[:, 3:].clamp(0, 255) / 255) if len(cloud) else (None, None)
    return Capture(tuple(paths), cameras, torch.tensor(sizes).float(), points, colors)


def _table(model: Path, name: str, binary: Callable[[_Bytes], Any], text: Callable[[list[str]], Any]) -> Any:
    """The content of `name`.bin or else `name`.txt. Raises BadFile, with its path, for any damage."""
    path = model / f"{name}.bin"
    if not path.is_file():
        path = model / f"{name}.txt"
    try:
        if path.suffix == ".bin":
            return binary(_Bytes(path.read_bytes()))
        return text(path.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError as error:
        raise BadFile(path, "it is missing; a COLMAP model has cameras, images and points3D") from error
    except (struct.error, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise BadFile(path, f"it is damaged: {error}; export the model again") from error


def _pinhole(number: int, camera: _Camera, model: Path) -> list[list[float]]:
    if camera.model not in ("PINHOLE", "SIMPLE_PINHOLE"):
        raise BadFile(model, f"camera {number} has the model {camera.model}; {UNDISTORT}")
    wanted = 4 if camera.model == "PINHOLE" else 3
    fx, fy, cx, cy = camera.params if wanted == 4 else (camera.params[0], *camera.params)
    values = (fx, fy, camera.width, camera.height)
    if not (min(values) > 0 and all(map(math.isfinite, (*values, cx, cy)))):
        raise BadFile(model, f"camera {number} has a focal length or size that is not positive and finite")
    return [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]


def _rigid(image: _Image, model: Path) -> np.ndarray[Any, Any]:
    """World-to-camera (4, 4), float64."""
    q = np.array(image.quat)
    length = np.linalg.norm(q)
    if not (np.isfinite([*q, *image.shift]).all() and length > 1e-9):
        raise BadFile(model, f"the pose of picture {image.name!r} is not finite or has no rotation")
    w, x, y, z = q / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = image.shift
    return pose


class _Bytes:
    """A binary file of COLMAP: little-endian, without padding."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values of the struct format `form`. Raises struct.error at the end of the file."""
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("it ends too early")

    def name(self) -> str:
        """The next string, which a zero byte ends."""
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text

    def rows(self, least: int) -> range:
        """As many rows as the next number says. Raises ValueError if rows of `least` bytes do not fit."""
        (count,) = self.take("Q")
        if count * least > len(self.data) - self.at:
            raise ValueError(f"it ends before its {count} rows")
        return range(count)


def _binary_cameras(data: _Bytes) -> list[tuple[int, _Camera]]:
    found = []
    for _ in data.rows(48):
        number, kind, width, height = data.take("iiQQ")
        if not 0 <= kind < len(MODELS):
            raise ValueError(f"camera {number} has the unknown model {kind}")
        name, count = MODELS[kind]
        found.append((number, _Camera(name, width, height, data.take(f"{count}d"))))
    return found


def _binary_images(data: _Bytes) -> list[_Image]:
    found = []
    for _ in data.rows(73):
        _, *pose, camera = data.take("i7di")
        name = data.name()
        (points,) = data.take("Q")
        data.skip(24 * points)
        found.append(_Image(tuple(pose[:4]), tuple(pose[4:]), camera, name))
    return found


def _binary_points(data: _Bytes) -> np.ndarray[Any, Any]:
    found = []
    for _ in data.rows(51):
        _, *values, _, track = data.take("Q3d3BdQ")
        data.skip(8 * track)
        found.append(values)
    return np.array(found, np.float64).reshape(-1, 6)


def _lines(lines: list[str]) -> Iterator[list[str]]:
    """The words of each line that is neither a comment nor empty."""
    yield from (line.split() for line in lines if line.strip() and not line.startswith("#"))


def _text_cameras(lines: list[str]) -> list[tuple[int, _Camera]]:
    found, counts = [], dict(MODELS)
    for number, name, width, height, *params in _lines(lines):
        if len(params) != counts.get(name, len(params)):
            raise ValueError(f"camera {number} has {len(params)} parameters; {name} has {counts[name]}")
        found.append((int(number), _Camera(name, int(width), int(height), tuple(map(float, params)))))
    return found


def _text_images(lines: list[str]) -> list[_Image]:
    """Two lines per picture; the second, of its points, may be empty."""
    content = [line for line in lines if not line.startswith("#")]
    found = []
    for line in content[::2]:
        if not line.strip():
            continue
        _, *pose, camera, name = line.split(maxsplit=9)
        if len(pose) != 7:
            raise ValueError(f"the line {line[:40]!r} has {len(pose)} numbers of a pose instead of 7")
        values = tuple(map(float, pose))
        found.append(_Image(values[:4], values[4:], int(camera), name.strip()))
    return found


def _text_points(lines: list[str]) -> np.ndarray[Any, Any]:
    rows = [[float(word) for word in words[1:7]] for words in _lines(lines)]
    return np.array(rows, np.float64).reshape(-1, 6)
