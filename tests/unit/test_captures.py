"""Folders of pictures with cameras: read right, or refused with the file's name.

Files are written here byte by byte, by another code than reads them.
"""

import contextlib
import json
import math
import struct

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raising import raises

from lucid_core.cameras import SizedCameras, orbit, turntable
from lucid_core.errors import BadFile, BadInput
from lucid_core.io import captures
from lucid_core.starts.views import start_of_views, subject_of

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHITE = torch.ones(3)
SIZE = st.integers(2, 4000)
FOCAL = st.floats(0.5, 1e4)


@st.composite
def scenes(draw):
    """(cameras by number: width, height, fx, fy, cx, cy; pictures; points) as `write_binary` takes them."""
    sized = st.tuples(SIZE, SIZE, FOCAL, FOCAL, FOCAL, FOCAL)
    cameras = draw(st.dictionaries(st.integers(1, 9), sized, min_size=1, max_size=3))
    number = st.floats(-10, 10, allow_subnormal=False)
    quats = st.tuples(number, number, number, number).filter(lambda q: np.linalg.norm(q) > 0.1)
    names = st.sampled_from(["a.png", "deep/b.jpg", "bild ü.png", "点.png"])
    pictures = draw(
        st.lists(
            st.tuples(names, st.sampled_from(sorted(cameras)), quats, st.tuples(number, number, number)),
            min_size=1,
            max_size=4,
            unique_by=lambda picture: picture[0],
        )
    )
    color = st.integers(0, 255)
    points = draw(st.lists(st.tuples(number, number, number, color, color, color), max_size=4))
    return cameras, pictures, points


def write_binary(folder, cameras, pictures, points, observations=2):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [struct.pack("<iiQQ4d", n, 1, w, h, *params) for n, (w, h, *params) in cameras.items()]
    (folder / "cameras.bin").write_bytes(struct.pack("<Q", len(rows)) + b"".join(rows))
    rows = [
        struct.pack("<i7di", i, *quat, *shift, camera)
        + name.encode()
        + b"\0"
        + struct.pack("<Q", observations)
        + struct.pack("<ddq", 1.0, 2.0, -1) * observations
        for i, (name, camera, quat, shift) in enumerate(pictures)
    ]
    (folder / "images.bin").write_bytes(struct.pack("<Q", len(rows)) + b"".join(rows))
    rows = [
        struct.pack("<Q3d3BdQ", i, *point, 0.5, 2) + struct.pack("<iiii", 1, 2, 3, 4)
        for i, point in enumerate(points)
    ]
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", len(rows)) + b"".join(rows))


def write_text(folder, cameras, pictures, points):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Camera list"] + [
        f"{n} PINHOLE {w} {h} {' '.join(map(repr, params))}" for n, (w, h, *params) in cameras.items()
    ]
    (folder / "cameras.txt").write_text("\n".join(lines), encoding="utf-8")
    lines = ["# Image list"]
    for i, (name, camera, quat, shift) in enumerate(pictures):
        lines += [f"{i} {' '.join(map(repr, (*quat, *shift)))} {camera} {name}", "1.0 2.0 -1" if i else ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [f"{i} {' '.join(map(repr, point))} 0.5 1 2" for i, point in enumerate(points)]
    (folder / "points3D.txt").write_text("\n".join(lines), encoding="utf-8")


def seen_at(point, quat, shift, camera):
    """Pixel of a world point (3,), by the rotation q p q* of quaternions."""
    w, *v = np.array(quat) / np.linalg.norm(quat)
    v, point = np.array(v), np.array(point)
    turned = point + 2 * w * np.cross(v, point) + 2 * np.cross(v, np.cross(v, point))
    x, y, z = turned + shift
    _, _, fx, fy, cx, cy = camera
    return np.array([fx * x + cx * z, fy * y + cy * z, z])


@FEW
@given(scenes(), st.booleans())
def test_colmap_cameras_see_a_point_where_colmap_says(tmp_path, scene, binary):
    cameras, pictures, points = scene
    model = tmp_path / "sparse" / "0"
    for old in model.glob("*"):
        old.unlink()
    (write_binary if binary else write_text)(model, cameras, pictures, points)
    capture = captures.read(tmp_path)
    pictures = sorted(pictures)
    assert [path.name for path in capture.paths] == [name.split("/")[-1] for name, *_ in pictures]
    point = torch.tensor([0.3, -0.7, 2.0])
    for i, (_, camera, quat, shift) in enumerate(pictures):
        at = capture.cameras.viewmats[i, :3, :3] @ point + capture.cameras.viewmats[i, :3, 3]
        expected = torch.tensor(seen_at(point.tolist(), quat, shift, cameras[camera])).float()
        assert torch.allclose(capture.cameras.Ks[i] @ at, expected, rtol=1e-4, atol=0.05)
        assert capture.sizes[i].tolist() == list(cameras[camera][:2])
    if points:
        assert torch.allclose(capture.points, torch.tensor([point[:3] for point in points]).float())
        assert torch.allclose(255 * capture.colors, torch.tensor([point[3:] for point in points]).float())
    else:
        assert capture.points is None


ONE = (
    {1: (64, 48, 50.0, 50.0, 32.0, 24.0)},
    [("a.png", 1, (1, 0, 0, 0), (0, 0, 4.0))],
    [(0.0, 0, 0, 1, 2, 3)],
)


@FEW
@given(st.sampled_from(["cameras", "images", "points3D"]), st.data())
def test_a_truncated_colmap_file_is_refused(tmp_path, name, data):
    write_binary(tmp_path, *ONE)
    path = tmp_path / f"{name}.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with raises(BadFile, path=path):
        captures.read(tmp_path)


@FEW
@given(st.sampled_from(["cameras", "images", "points3D"]), st.binary(max_size=200), st.booleans())
def test_noise_is_read_or_refused(tmp_path, name, noise, binary):
    (write_binary if binary else write_text)(tmp_path / str(binary), *ONE)
    (tmp_path / str(binary) / f"{name}.{'bin' if binary else 'txt'}").write_bytes(noise)
    with contextlib.suppress(BadFile):
        captures.read(tmp_path / str(binary))


@pytest.mark.parametrize("kind, name", list(enumerate(name for name, _ in captures.MODELS)))
def test_distorted_cameras_of_colmap_are_refused_by_name(tmp_path, kind, name):
    write_binary(tmp_path, *ONE)
    params = [50.0] * captures.MODELS[kind][1]
    row = struct.pack(f"<QiiQQ{len(params)}d", 1, 1, kind, 64, 48, *params)
    (tmp_path / "cameras.bin").write_bytes(row)
    if name in ("PINHOLE", "SIMPLE_PINHOLE"):
        assert captures.read(tmp_path).cameras.Ks[0].tolist() == [[50, 0, 50], [0, 50, 50], [0, 0, 1]]
        return
    with raises(BadFile, path=tmp_path) as caught:
        captures.read(tmp_path)
    assert name in caught.value.reason and "image_undistorter" in caught.value.reason


# ---- transforms.json

BLENDER = {  # x right, y up, z back; z is up in the world, the camera 4 in front of the object (-y)
    "transform_matrix": [[1, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0], [0, 0, 0, 1]],
    "file_path": "./train/r_0",
}


def write_nerf(folder, name="transforms.json", size=(20, 12), **changes):
    (folder / "train").mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[:, : size[0] // 2] = (0, 0, 255, 255)  # BGRA: the left half is red, the right one transparent
    (folder / "train" / "r_0.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    content = {"camera_angle_x": math.radians(40), "frames": [BLENDER]} | changes
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_a_camera_of_blender_is_the_camera_of_our_orbit(tmp_path):
    write_nerf(tmp_path)
    images, masks, cameras = captures.load_images(captures.read(tmp_path), 0, WHITE)
    one = torch.ones(1)
    narrow = 2 * math.atan(math.tan(math.radians(20)) * 12 / 20)  # the field of view of the shorter side
    expected = orbit(0 * one, 0 * one, 4 * one, narrow * one, 20, 12)
    assert torch.allclose(cameras.cameras.viewmats, expected.viewmats, atol=1e-6)
    assert torch.allclose(cameras.cameras.Ks, expected.Ks)
    assert images.shape == (1, 12, 20, 3) and (cameras.width, cameras.height) == (20, 12)
    assert torch.equal(images[0, :, :10], torch.tensor([1.0, 0, 0]).expand(12, 10, 3))
    assert torch.equal(images[0, :, 10:], torch.ones(12, 10, 3))
    assert torch.equal(masks[0, 3], torch.tensor([1.0] * 10 + [0.0] * 10))


@FEW
@given(st.floats(-180, 180), st.floats(-89, 89), st.floats(0.5, 50))
def test_poses_of_blender_are_those_of_our_orbit(tmp_path, azimuth, elevation, radius):
    """Blender's own way: rotate the camera about x, then about z, and step back along its z."""
    a, e = math.radians(azimuth), math.radians(90 + elevation - 2 * elevation)  # 90 = level
    about_x = np.array([[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]])
    about_z = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_x
    pose[:3, 3] = radius * pose[:3, 2]
    write_nerf(tmp_path, frames=[BLENDER | {"transform_matrix": pose.tolist()}])
    found = captures.read(tmp_path).cameras.viewmats
    angles = torch.tensor([azimuth]).deg2rad(), torch.tensor([elevation]).deg2rad()
    expected = orbit(*angles, torch.tensor([radius]), torch.tensor([1.0]), 8, 8).viewmats
    assert torch.allclose(found, expected, atol=1e-4 * (1 + radius))


def test_pictures_are_reduced_with_their_intrinsics_and_splits_are_chosen(tmp_path):
    write_nerf(tmp_path, "transforms_test.json", w=40, h=24, fl_x=100.0, fl_y=90.0, cx=18.0, cy=13.0)
    with raises(BadFile, path=tmp_path):
        captures.read(tmp_path, "train")
    images, _, cameras = captures.load_images(captures.read(tmp_path, "test"), 10, WHITE)
    assert images.shape == (1, 6, 10, 3)  # of a picture of 20 x 12, declared as 40 x 24
    expected = [[25.0, 0, 4.5], [0, 22.5, 3.25], [0, 0, 1]]
    assert torch.allclose(cameras.cameras.Ks[0], torch.tensor(expected))
    with raises(BadInput, name="cameras"):
        cameras.for_size(10, 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": []},
        {"frames": [{"file_path": "a"}]},
        {"frames": [BLENDER | {"transform_matrix": np.zeros((4, 4)).tolist()}]},
        {"frames": [BLENDER | {"transform_matrix": "none"}]},
        {"frames": [BLENDER | {"file_path": "../r_0"}]},
        {"frames": [BLENDER | {"file_path": "/etc/hostname"}]},
        {"camera_angle_x": None},
        {"camera_angle_x": "wide"},
        {"k1": 0.1},
        {"camera_model": "OPENCV_FISHEYE"},
        {"fl_x": -5.0},
    ],
)
def test_bad_transforms_are_refused(tmp_path, changes):
    write_nerf(tmp_path, **changes)
    with raises(BadFile, path=tmp_path / "transforms.json"):
        captures.read(tmp_path)


def test_damaged_json_and_missing_pictures_are_refused(tmp_path):
    write_nerf(tmp_path, w=20, h=12)
    (tmp_path / "train" / "r_0.png").write_bytes(b"no picture")
    with raises(BadFile, path=tmp_path / "train" / "r_0.png"):
        captures.load_images(captures.read(tmp_path), 0, WHITE)
    (tmp_path / "train" / "r_0.png").unlink()
    with raises(BadFile, path=tmp_path / "train" / "r_0"):
        captures.load_images(captures.read(tmp_path), 0, WHITE)
    (tmp_path / "transforms.json").write_text("{")
    with raises(BadFile, path=tmp_path / "transforms.json"):
        captures.read(tmp_path)
    with raises(BadFile, path=tmp_path / "train"):
        captures.read(tmp_path / "train")


# ---- the start


def test_without_points_the_start_fills_the_views_where_they_look():
    shift = torch.tensor([3.0, -1.0, 2.0])
    cameras = turntable(7, 20.0, 4.0, 40.0, 30, 20)
    cameras.viewmats[:, :3, 3] -= cameras.viewmats[:, :3, :3] @ shift
    centre, radius = subject_of(SizedCameras(cameras, 30, 20))
    assert torch.allclose(centre, shift, atol=1e-4)
    assert math.isclose(radius, 0.9 * 4 * math.tan(math.radians(20)), rel_tol=1e-4)
    start = start_of_views(SizedCameras(cameras, 30, 20), None, None, 50, 0)
    assert len(start) == 50 and (start.means - shift).norm(dim=-1).max() <= radius


def test_points_of_the_scene_are_the_start():
    points, colors = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    start = start_of_views(SizedCameras(turntable(3, 0.0, 4.0, 40.0, 8, 8), 8, 8), points, colors, 50, 0)
    assert torch.equal(start.means, points) and torch.allclose(
        0.5 + 0.28209479 * start.sh[:, 0], colors, atol=1e-6
    )
