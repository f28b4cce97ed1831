"""Files of points and splats in every dialect: right, or a ValueError that names the file; never a silent
wrong.

Files are written here byte by byte, by another code than reads them.
"""

import io
import math
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raising import raises

from lucid_core.errors import BadFile, BadSetting
from lucid_core.io import ply, point_files
from lucid_core.splats import SH_C0
from lucid_core.starts.points import Start

TYPES = {
    "char": "b",
    "uchar": "B",
    "short": "h",
    "ushort": "H",
    "int": "i",
    "uint": "I",
    "float": "f",
    "double": "d",
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "float32": "f",
    "float64": "d",
}
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
WORDS = st.sampled_from(
    ["made by me", "Füße und Bögen", "点群データ", "", "end of header", "element vertex 9"]
)
TRIPLES = st.sampled_from(point_files.PLY_COLORS)


def ply_bytes(form, columns, comments=(), newline="\n", faces=(), face_name="vertex_indices", spoil=None):
    """A .ply of `columns`, name -> (type, values), and `faces`, lists of indices. spoil: changes the header's
    lines.
    """
    n = len(next(iter(columns.values()))[1])
    header = ["ply", f"format {form} 1.0", *(f"comment {text}" for text in comments), f"element vertex {n}"]
    header += [f"property {kind} {name}" for name, (kind, _) in columns.items()]
    if faces:
        header += [f"element face {len(faces)}", f"property list uchar int {face_name}"]
    header = (spoil or (lambda lines: lines))([*header, "end_header"])
    body = io.BytesIO()
    rows = [[values[i] for _, values in columns.values()] for i in range(n)]
    if form == "ascii":
        text = lambda value: repr(int(value)) if isinstance(value, int | np.integer) else repr(float(value))
        lines = [" ".join(map(text, row)) for row in rows] + [
            " ".join(map(str, [len(face), *face])) for face in faces
        ]
        body.write("".join(line + newline for line in lines).encode())
    else:
        letters = "".join(TYPES[kind] for kind, _ in columns.values())
        for row in rows:
            body.write(struct.pack(FORMATS[form] + letters, *row))
        for face in faces:
            body.write(struct.pack(f"{FORMATS[form]}B{len(face)}i", len(face), *face))
    return newline.join([*header, ""]).encode() + body.getvalue()


def numbers(draw, kind, n, low=-100, high=100):
    whole = TYPES[kind] in "bBhHiI"
    low = max(low, 0) if TYPES[kind].isupper() else low
    width = 32 if TYPES[kind] == "f" else 64
    one = (
        st.integers(math.ceil(low), int(high))
        if whole
        else st.floats(low, high, width=width, allow_subnormal=False)
    )
    return draw(st.lists(one, min_size=n, max_size=n))


@st.composite
def files_of_points(draw):
    """Bytes, points (N, 3), colours (N, 3) in [0, 1]."""
    n = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["float", "double", "float32", "float64", "int", "short"]))
    columns = {axis: (kind, numbers(draw, kind, n)) for axis in "xyz"}
    points = np.array([columns[axis][1] for axis in "xyz"], np.float64).T
    colors = np.full((n, 3), 0.5)
    color_kind, top = draw(
        st.sampled_from(
            [
                (None, 0),
                ("uchar", 255),
                ("uint8", 255),
                ("ushort", 65535),
                ("uint16", 65535),
                ("short", 32767),
                ("int", 255),
                ("int", 65535),
                ("uint", 2**32 - 1),
                ("float", 1),
                ("double", 1),
            ]
        )
    )
    if color_kind:
        names = draw(TRIPLES)
        values = {name: numbers(draw, color_kind, n, 0, top) for name in names}
        if top > 255:
            values[names[0]][0] = top  # else they could be those of a narrower range
        columns |= {name: (color_kind, value) for name, value in values.items()}
        colors = np.array([values[name] for name in names], np.float64).T / top
    for extra in draw(
        st.lists(st.sampled_from(["nx", "quality", "alpha", "time", "rot_0"]), unique=True, max_size=2)
    ):
        extra_kind = draw(st.sampled_from(["uchar", "float", "double"]))
        columns[extra] = (extra_kind, numbers(draw, extra_kind, n, 0, 100))
    order = draw(st.permutations(list(columns)))
    content = ply_bytes(
        draw(st.sampled_from(list(FORMATS))),
        {name: columns[name] for name in order},
        draw(st.lists(WORDS, max_size=2)),
        draw(st.sampled_from(["\n", "\r\n"])),
    )
    return content, points, colors


def first_of_each(points):
    """Indices of the points that do not repeat an earlier one."""
    _, first = np.unique(points + 0.0, axis=0, return_index=True)  # -0 is 0
    return np.sort(first)


read_often = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@read_often
@given(files_of_points())
def test_points_of_every_dialect_of_ply(tmp_path, file):
    content, points, colors = file
    (tmp_path / "a.ply").write_bytes(content)
    found, srgb = point_files.read(tmp_path / "a.ply", 10, 0)
    kept = first_of_each(points)
    np.testing.assert_array_equal(found.double().numpy(), points[kept])
    np.testing.assert_allclose(srgb.numpy(), colors[kept], atol=1e-6)


@read_often
@given(files_of_points(), st.data())
def test_a_ply_that_is_damaged_is_refused_or_still_right(tmp_path, file, data):
    """A file cut off, or one byte of it changed: what is read has finite points, as many as there were, or it
    is refused.
    """
    content, *_ = file
    if data.draw(st.booleans()):
        spoilt = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, content.index(b"end_header") + 9))
        spoilt = content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    (tmp_path / "a.ply").write_bytes(spoilt)
    try:
        found, srgb = point_files.read(tmp_path / "a.ply", 10, 0)
    except BadFile as error:
        assert error.path == tmp_path / "a.ply"
        return
    assert 1 <= len(found) == len(srgb) and found.isfinite().all()
    assert ((srgb >= 0) & (srgb <= 1)).all()


@read_often
@given(st.sampled_from(list(FORMATS)), st.lists(st.integers(0, 3), unique=True), st.booleans())
def test_values_that_are_not_finite_leave_their_points_out(tmp_path, form, spoilt, nan):
    points = np.arange(12.0).reshape(4, 3)
    points[spoilt, 1] = math.nan if nan else math.inf
    (tmp_path / "a.ply").write_bytes(
        ply_bytes(form, {axis: ("double", list(points[:, i])) for i, axis in enumerate("xyz")})
    )
    if len(spoilt) == 4:
        with raises(BadFile, path=tmp_path / "a.ply"):
            point_files.read(tmp_path / "a.ply", 10, 0)
        return
    found, _ = point_files.read(tmp_path / "a.ply", 10, 0)
    np.testing.assert_array_equal(found.numpy(), np.delete(points, spoilt, 0))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("face_name", ["vertex_indices", "vertex_index"])
def test_faces_of_every_dialect_are_sampled(tmp_path, form, face_name):
    corners = np.array([[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]])
    columns = {axis: ("float", list(corners[:, i])) for i, axis in enumerate("xyz")}
    (tmp_path / "a.ply").write_bytes(
        ply_bytes(form, columns, faces=[[0, 1, 2], [0, 2, 3]], face_name=face_name)
    )
    found, _ = point_files.read(tmp_path / "a.ply", 400, 0)
    assert found.shape == (400, 3) and (found.mean(0) - torch.tensor([1.0, 1.0, 0.0])).abs().max() < 0.1


XYZ = {axis: ("float", [0.0, 1.0]) for axis in "xyz"}


def test_a_binary_ply_with_carriage_returns_alone_is_read_as_it_is(tmp_path):
    points = np.array([[0.1, -1.7, 3.3], [-5.9, 7.123, -200.5]], np.float32)
    columns = {axis: ("float", list(points[:, i])) for i, axis in enumerate("xyz")}
    (tmp_path / "a.ply").write_bytes(ply_bytes("binary_little_endian", columns, newline="\r"))
    np.testing.assert_array_equal(point_file(tmp_path / "a.ply")[0].numpy(), points)


def point_file(path):
    return point_files.read(path, 10, 0)


HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(117)
    + b"\n"
)


@pytest.mark.parametrize(
    "name, content",
    [
        ("npy.npz", lambda: _saved(np.save, np.zeros((4, 3)))),
        ("text.npz", lambda: _zipped("points", b"hello")),
        ("huge.npz", lambda: _zipped("points.npy", HUGE)),
    ],
)
def test_what_is_an_npz_by_its_name_alone_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content())
    with raises(BadFile, path=tmp_path / name):
        point_file(tmp_path / name)


def _saved(save, array):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


def _zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind, value",
    [
        (np.uint64, 2**64 - 1),
        (np.int32, 2**31 - 1),
        (np.uint16, 65535),
        (np.int16, 2**15 - 1),
        (np.uint16, 255),
    ],
)
def test_white_of_every_width_is_white(tmp_path, kind, value):
    np.savez(tmp_path / "a.npz", points=np.random.rand(5, 3), colors=np.full((5, 3), value, kind))
    assert point_file(tmp_path / "a.npz")[1].unique().tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("colors", [[[255.0, 10, 0], [math.nan] * 3], [[-3, 2**40, 0], [1, 1, 1]]])
def test_colours_out_of_their_range_are_refused_whatever_the_others_are(tmp_path, colors):
    np.savez(tmp_path / "a.npz", points=np.random.rand(2, 3), colors=np.array(colors))
    with raises(BadFile, path=tmp_path / "a.npz") as error:
        point_file(tmp_path / "a.npz")
    assert error.value.__cause__.name in ("the smallest colour", "the largest colour")


HEAD = b"ply\nformat ascii 1.0\n"
FLOATS = b"property float x\nproperty float y\nproperty float z\n"
BAD = {
    "faces are numbers": HEAD
    + b"element vertex 3\n"
    + FLOATS
    + b"element face 1\nproperty int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n0\n",
    "no vertices": ply_bytes("ascii", {axis: ("float", []) for axis in "xyz"}),
    "no vertices but faces": ply_bytes("ascii", {axis: ("float", []) for axis in "xyz"}, faces=[[0, 1, 2]]),
    "a face of a vertex that is not there": ply_bytes("ascii", XYZ, faces=[[0, 1, 7]]),
    "no z": ply_bytes("ascii", {axis: ("float", [0.0]) for axis in "xy"}),
    "x is a list": HEAD
    + b"element vertex 1\nproperty list uchar float x\nproperty float y\nproperty float z\nend_header\n"
    + b"1 0.0 0.0 0.0\n",
    "no element": b"ply\nformat ascii 1.0\nend_header\n",
    "another element": b"ply\nformat ascii 1.0\nelement cell 1\nproperty float x\nend_header\n1\n",
    "colours below 0": ply_bytes("ascii", XYZ | {name: ("int", [-1, 0]) for name in "rgb"}),
    "colours above 1": ply_bytes("ascii", XYZ | {name: ("float", [7.0, 0.0]) for name in "rgb"}),
    "colours of two kinds": ply_bytes(
        "ascii", XYZ | {"r": ("uchar", [9, 9]), "g": ("float", [0.1, 0.1]), "b": ("uchar", [9, 9])}
    ),
    "a splat without rotations": ply_bytes(
        "ascii",
        {name: ("float", [0.0]) for name in (*"xyz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0")},
    ),
    "all of it not finite": ply_bytes("ascii", {axis: ("float", [math.nan]) for axis in "xyz"}),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_holds_no_points_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "a.ply").write_bytes(content)
    with raises(BadFile, path=tmp_path / "a.ply"):
        point_files.read(tmp_path / "a.ply", 10, 0)


@read_often
@given(
    st.sampled_from([np.float16, np.float32, np.float64, np.int16, np.int32, np.int64, np.uint8]),
    st.integers(1, 9),
    st.sampled_from([None, np.uint8, np.uint16, np.int64, np.float32]),
    st.booleans(),
)
def test_points_of_every_kind_of_npz(tmp_path, kind, n, color_kind, fortran):
    numbers = np.random.default_rng(n)
    points = np.asarray(numbers.integers(0, 100, (n, 3)), kind, order="F" if fortran else "C")
    arrays, expected = {"points": points}, np.full((n, 3), 0.5)
    if color_kind is not None:
        top = {np.uint8: 255, np.uint16: 65535, np.int64: 255, np.float32: 1}[color_kind]
        arrays["colors"] = (numbers.random((n, 3)) * top).astype(color_kind)
        arrays["colors"][0, 0] = top
        expected = arrays["colors"] / top
    np.savez(tmp_path / "a.npz", **arrays)
    found, srgb = point_files.read(tmp_path / "a.npz", 10, 0)
    kept = first_of_each(points.astype(np.float64))
    np.testing.assert_array_equal(found.double().numpy(), points[kept].astype(np.float64))
    np.testing.assert_allclose(srgb.numpy(), expected[kept], atol=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"points": np.zeros((0, 3))},
        {"points": np.zeros(3)},
        {"points": np.array([["a", "b", "c"]])},
        {"points": np.zeros((4, 3), complex)},
        {"points": np.array([[None] * 3], object)},
        {"points": np.random.rand(4, 3), "colors": np.array([["r", "g", "b"]] * 4)},
        {"points": np.random.rand(4, 3), "colors": np.zeros(4)},
        {"points": np.random.rand(4, 3), "R": np.zeros(4), "G": np.zeros(4), "B": np.zeros(3)},
        {"points": np.random.rand(4, 3), "colors": np.full((4, 3), -1)},
    ],
)
def test_an_npz_of_other_things_is_refused_by_its_name(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with raises(BadFile, path=tmp_path / "a.npz"):
        point_files.read(tmp_path / "a.npz", 10, 0)


def splat_columns(n=3, rest=9, kind="float"):
    numbers = np.random.default_rng(0)
    names = [
        "x",
        "y",
        "z",
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(rest)),
        "opacity",
    ]
    names += [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]
    return {name: (kind, list(numbers.normal(size=n).astype(np.float32))) for name in names}


@read_often
@given(
    st.sampled_from(list(FORMATS)),
    st.sampled_from(["float", "double"]),
    st.sampled_from([0, 9, 24, 45]),
    st.data(),
)
def test_splats_of_every_dialect_of_ply(tmp_path, form, kind, rest, data):
    columns = splat_columns(rest=rest, kind=kind)
    order = data.draw(st.permutations(list(columns)))
    (tmp_path / "a.ply").write_bytes(ply_bytes(form, {name: columns[name] for name in order}, ["Füße"]))
    found = ply.read(tmp_path / "a.ply")
    of = lambda name: torch.tensor(columns[name][1])
    torch.testing.assert_close(found.means[:, 2], of("z"))
    torch.testing.assert_close(found.scales[:, 1], of("scale_1").exp())
    torch.testing.assert_close(found.opacities, of("opacity").sigmoid())
    torch.testing.assert_close(found.sh[:, 0, 2], of("f_dc_2"))
    for i in range(rest):  # channel by channel
        torch.testing.assert_close(found.sh[:, 1 + i % (rest // 3), i // (rest // 3)], of(f"f_rest_{i}"))


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: {name: columns[name] for name in columns if not name.startswith("rot")},
        lambda columns: {name: columns[name] for name in columns if name != "opacity"},
        lambda columns: columns | {"f_rest_9": ("float", [0.0] * 3)},
        lambda columns: {name: ("float", []) for name in columns},
        lambda columns: columns | {"scale_0": ("float", [math.nan] * 3)},
        lambda columns: columns | {"scale_0": ("float", [1000.0] * 3)},
        lambda columns: columns | {f"rot_{i}": ("float", [0.0] * 3) for i in range(4)},
        lambda columns: {
            ("f_rest_77" if name == "f_rest_8" else name): value for name, value in columns.items()
        },
    ],
)
def test_a_ply_that_is_no_whole_splat_is_refused_by_its_name(tmp_path, change):
    (tmp_path / "a.ply").write_bytes(ply_bytes("binary_little_endian", change(splat_columns())))
    with raises(BadFile, path=tmp_path / "a.ply"):
        ply.read(tmp_path / "a.ply")


def sphere(n=2000, centre=(450123.4, 4601234.7, 120.0)):
    """Points of a sphere of diameter 1 about `centre`, in float64, and where they lie about its middle."""
    about = np.random.default_rng(0).normal(size=(n, 3))
    about = about / np.linalg.norm(about, axis=1, keepdims=True) / 2
    return np.array(centre) + about, about


@pytest.mark.parametrize("kind", ["ply", "ply of faces", "npz"])
def test_a_shape_at_large_coordinates_is_kept(tmp_path, kind):
    """Those of a survey, which float32 holds in steps of half a metre."""
    points, _ = sphere()
    path = tmp_path / ("a.npz" if kind == "npz" else "a.ply")
    columns = {axis: ("double", list(points[:, i])) for i, axis in enumerate("xyz")}
    if kind == "npz":
        np.savez(path, points=points)
    else:
        path.write_bytes(
            ply_bytes("binary_little_endian", columns, faces=[[0, 1, 2], [3, 4, 5]] if kind != "ply" else ())
        )
    found, colors = point_files.read(path, 300, 0)
    splats = Start(size=1.0).splats(found, colors, 0)
    assert min(len(splats.means[:, i].unique()) for i in range(3)) > 0.95 * len(splats)
    if kind != "ply of faces":
        np.testing.assert_allclose(splats.means.norm(dim=1).numpy(), 0.5, atol=0.01)
    with raises(BadSetting, name="the distance of the points from the origin"):
        Start(size=0).splats(found, colors, 0)


def test_a_shape_that_the_file_itself_has_lost_is_refused(tmp_path):
    points, _ = sphere()
    np.savez(tmp_path / "a.npz", points=points.astype(np.float32))
    found, colors = point_files.read(tmp_path / "a.npz", 10, 0)
    with raises(BadSetting, name="the distance of the points from the origin"):
        Start().splats(found, colors, 0)


@pytest.mark.parametrize("n, strays", [(10, 1), (2000, 1), (2000, 90)])
def test_strays_do_not_shrink_the_rest(n, strays):
    points, _ = sphere(n, (0.0, 0.0, 0.0))
    far = np.random.default_rng(1).normal(size=(strays, 3)) * 1e6
    start = Start(size=1.0)
    together = torch.from_numpy(np.concatenate([points, far]))
    assert start.strays(together).tolist() == [False] * n + [True] * strays
    splats = start.splats(together, torch.rand(n + strays, 3), 0)
    assert len(splats) == n
    extent = splats.means.amax(0) - splats.means.amin(0)
    assert float(extent.max()) == pytest.approx(1.0, rel=1e-5)
    assert not Start(size=0).strays(together).any()


@pytest.mark.parametrize("shape", ["ball", "line", "two clusters", "plane"])
def test_no_part_of_an_ordinary_shape_is_a_stray(shape):
    numbers = torch.Generator().manual_seed(0)
    points = torch.rand(400, 3, generator=numbers) * 2 - 1
    points = points * torch.tensor(
        {"line": [1.0, 1e-3, 1e-3], "plane": [1.0, 1.0, 0.0]}.get(shape, [1.0, 1.0, 1.0])
    )
    if shape == "two clusters":
        points[:200] += 100
    assert not Start().strays(points).any()


def test_copies_are_scattered_about_their_points():
    """LucidDreamer's start from Point-E: 20 within 0.05 of each of 4,096 points."""
    points, _ = sphere(4096, (0.0, 0.0, 0.0))
    colors = torch.rand(4096, 3)
    splats = Start(count=100_000, size=1.0, copies=20).splats(torch.from_numpy(points), colors, 0)
    assert len(splats) == 81_920
    centre, factor = Start().placement(torch.from_numpy(points))
    off = (
        splats.means - ((torch.from_numpy(points) - centre) * factor).float().repeat_interleave(20, 0)
    ).norm(dim=1)
    assert off.max() <= 0.05 + 1e-6 and off.mean() == pytest.approx(0.025, rel=0.02)
    torch.testing.assert_close(
        splats.sh[:, 0] * SH_C0 + 0.5, colors.repeat_interleave(20, 0), atol=1e-5, rtol=0
    )
    assert len(Start(count=2000, copies=20).splats(torch.from_numpy(points), colors, 0)) == 2000
    with raises(BadSetting, name="copies", value=20):
        Start(count=79, copies=20)
    with raises(BadSetting, name="scatter", value=0):
        Start(copies=4, scatter=0.0)


@pytest.mark.parametrize("size", [1e-200, 1e200, 1e308])
def test_an_extent_that_no_splat_can_have_is_refused(size):
    with raises(BadSetting, name="the points' extent"):
        Start().splats((torch.rand(50, 3).double() * 2 - 1) * size, torch.rand(50, 3), 0)
