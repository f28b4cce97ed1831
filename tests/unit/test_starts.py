"""Points to start from: meshes, images with depth, files."""

import numpy as np
import pytest
import torch
from raising import raises

from lucid_core import rasterize
from lucid_core.errors import BadFile, BadSetting
from lucid_core.io import ply, point_files
from lucid_core.splats import SH_C0, Splats
from lucid_core.starts.depth import Relief
from lucid_core.starts.mesh import Mesh, sample_surface, to_linear, to_srgb
from lucid_core.starts.points import AXES, Start

generator = lambda seed=0: torch.Generator().manual_seed(seed)


def colors_of(splats):
    return splats.sh[:, 0] * SH_C0 + 0.5


def cube():
    """Two triangles a side, four vertices of its own each: -x, +x, -y, ... outwards, without colours."""
    vertices, faces = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = torch.eye(3)[(axis + 1) % 3], torch.eye(3)[(axis + 2) % 3]
            corners = [
                sign * torch.eye(3)[axis] + a * u + b * v for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            n = len(vertices)
            faces += [[n, n + 1, n + 2], [n, n + 2, n + 3]]
            vertices += corners if sign > 0 else [corners[i] for i in (0, 3, 2, 1)]
    return Mesh(torch.stack(vertices), torch.tensor(faces))


def test_points_are_even_over_the_area():
    """Triangles of very different sizes: counts by area, and within one triangle by its four equal
    quarters.
    """
    g = generator(1)
    vertices = torch.rand(60, 3, generator=g, dtype=torch.float64).float() * torch.tensor([1.0, 4.0, 0.2])
    mesh = Mesh(vertices, torch.arange(60).reshape(20, 3))
    corners = vertices[mesh.faces].double()
    n = 20_000
    points, _, normals = sample_surface(mesh, n, g)
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    face = (normals.double() @ torch.nn.functional.normalize(cross, dim=-1).T).argmax(
        -1
    )  # no two have one normal
    areas = cross.norm(dim=-1)
    expected = areas / areas.sum() * n
    assert (torch.bincount(face, minlength=20) - expected).abs().max() < 2.5
    largest = int(areas.argmax())
    inside = points[face == largest].double()
    weights = torch.linalg.lstsq(corners[largest].T, inside.T).solution.T  # (N, 3)
    assert (weights > -1e-4).all()
    torch.testing.assert_close(
        weights.sum(-1), torch.ones(len(weights), dtype=torch.float64), atol=1e-4, rtol=0
    )
    quarters = torch.bincount(torch.where((weights > 0.5).any(-1), weights.argmax(-1), 3), minlength=4)
    chi2 = ((quarters - len(inside) / 4) ** 2 / (len(inside) / 4)).sum()
    assert chi2 < 16.3  # 3 degrees of freedom, p = 0.001


def test_each_side_of_a_cube_keeps_its_colour_and_its_normal():
    mesh = cube()
    palette = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) * 0.7
    by_vertex = Mesh(mesh.vertices, mesh.faces, colors=to_linear(palette.repeat_interleave(4, 0)))
    texture = (
        palette[None].repeat(8, 1, 1).repeat_interleave(4, 1)
    )  # (8, 24, 3): a column of 4 texels for each side
    u = ((torch.arange(6) + 0.5) / 6).repeat_interleave(4)
    by_texture = Mesh(
        mesh.vertices, mesh.faces, uvs=torch.stack([u, torch.full_like(u, 0.5)], -1), texture=texture
    )
    for coloured in (by_vertex, by_texture):
        points, colors, normals = sample_surface(coloured, 3000, generator())
        axis = points.abs().argmax(-1)
        side = 2 * axis + (points.gather(1, axis[:, None])[:, 0] > 0)
        torch.testing.assert_close(colors, palette[side], atol=1e-4, rtol=0)
        torch.testing.assert_close(
            normals, torch.eye(3)[axis] * (2.0 * (side % 2) - 1)[:, None], atol=1e-5, rtol=0
        )
        assert (torch.bincount(side, minlength=6) - 500).abs().max() <= 1


def test_a_texture_is_read_from_its_upper_left_and_multiplied_with_the_vertices():
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    texture = torch.zeros(64, 64, 3)
    texture[:, :, 0], texture[:, :, 1] = (
        ((torch.arange(64) + 0.5) / 64)[None],
        ((torch.arange(64) + 0.5) / 64)[:, None],
    )
    points, colors, _ = sample_surface(
        Mesh(square, faces, uvs=square[:, :2], texture=texture), 500, generator()
    )
    inner = ((points[:, :2] > 0.02) & (points[:, :2] < 0.98)).all(-1)
    torch.testing.assert_close(
        colors[inner, :2], points[inner, :2], atol=3e-3, rtol=0
    )  # filtered in linear light
    half = Mesh(square, faces, torch.full((4, 3), 0.5), square[:, :2], texture)
    halved = sample_surface(half, 500, generator())[1]
    torch.testing.assert_close(to_linear(halved), to_linear(colors) / 2, atol=1e-5, rtol=1e-4)


def test_srgb_inverts_linear():
    x = torch.linspace(0, 1, 101)
    torch.testing.assert_close(to_linear(to_srgb(x)), x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "change, name, value",
    [
        ({"vertices": torch.zeros(0, 3)}, "the mesh", "empty (0 vertices, 12 faces)"),
        ({"faces": torch.tensor([[0, 1, 24]])}, "the largest vertex of a face", 24),
        ({"faces": torch.tensor([[0, 0, 1]])}, "the area of the mesh", 0),
        ({"colors": torch.zeros(3, 3)}, "the number of colors", 3),
        ({"vertices": torch.full((24, 3), float("nan"))}, "vertices", "not finite"),
        ({"colors": torch.full((24, 3), float("nan"))}, "colors", "not finite"),
        ({"colors": torch.zeros(24, 4)}, "colors", "of shape (24, 4)"),
        ({"faces": torch.zeros(2, 4, dtype=torch.long)}, "faces", "of shape (2, 4)"),
    ],
)
def test_bad_meshes_are_refused(change, name, value):
    mesh = cube()
    with raises(BadSetting, name=name, value=value):
        sample_surface(Mesh(**{"vertices": mesh.vertices, "faces": mesh.faces, **change}), 100, generator())


def test_points_are_moved_to_the_origin_and_to_their_size():
    points = torch.rand(500, 3, generator=generator()) * torch.tensor([2.0, 8.0, 4.0]) + 30
    splats = Start(size=1.5).splats(points, torch.rand(500, 3), 0)
    low, high = splats.means.amin(dim=0), splats.means.amax(dim=0)
    torch.testing.assert_close((low + high) / 2, torch.zeros(3), atol=1e-5, rtol=0)
    assert float((high - low).max()) == pytest.approx(1.5, rel=1e-5)
    unmoved = Start(size=0).splats(points, torch.rand(500, 3), 0)
    assert torch.equal(unmoved.means, points)


def test_a_part_is_drawn_by_seed():
    points, colors = torch.rand(1000, 3), torch.rand(1000, 3)
    a, b, c = (Start(count=100, size=0).splats(points, colors, seed) for seed in (1, 1, 2))
    assert len(a) == 100 and torch.equal(a.means, b.means) and not torch.equal(a.means, c.means)
    index = (points[:, None] == a.means[None]).all(-1).nonzero()[:, 0]
    torch.testing.assert_close(colors_of(a), colors[index])


def test_flat_gaussians_lie_in_the_surface():
    normals = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator()), dim=-1)
    normals[0], normals[1] = torch.tensor([0.0, 0, -1]), torch.tensor([0.0, 0, 1])
    splats = Start(size=0, thickness=0.1).splats(torch.rand(200, 3), torch.rand(200, 3), 0, normals)
    w, x, y, z = splats.quats.unbind(-1)
    third = torch.stack(
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], -1
    )  # column of the rotation
    torch.testing.assert_close(third, normals, atol=1e-5, rtol=0)
    torch.testing.assert_close(splats.scales[:, 2], 0.1 * splats.scales[:, 0])


@pytest.mark.parametrize(
    "points, name, value",
    [
        (torch.rand(3, 3), "the number of points", 3),
        (torch.ones(10, 3), "the points' extent", 0),
        (torch.full((10, 3), float("inf")), "the points' extent", "not finite"),
    ],
)
def test_points_that_make_no_splat_are_refused(points, name, value):
    with raises(BadSetting, name=name, value=value):
        Start().splats(points, torch.rand(len(points), 3), 0)


def test_every_axes_convention_is_a_rotation():
    for rotation in AXES.values():
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
        assert torch.linalg.det(rotation) == pytest.approx(1.0)
    up = {"y up": [0.0, 1, 0], "z up": [0.0, 0, 1], "y down": [0.0, -1, 0]}
    assert all((AXES[name] @ torch.tensor(vector)).tolist() == [0, -1, 0] for name, vector in up.items())


def scene(size=96, fov_deg=30.0):
    """A bumpy coloured surface seen by a camera at the origin: its image, z and mask, by formula."""
    focal = size / 2 / np.tan(np.radians(fov_deg) / 2)
    v, u = np.mgrid[0:size, 0:size] + 0.5
    x, y = (u - size / 2) / focal, (v - size / 2) / focal
    r = np.hypot(x, y) / 0.2
    z = torch.tensor(3.0 - 0.4 * np.sqrt(np.clip(1 - r**2, 0, 1))).float()
    image = torch.tensor(np.stack([x, y, 0 * x], -1) / 0.5 + 0.5).float().clamp(0, 1)
    return image, z, torch.tensor(r < 0.95)


@pytest.mark.parametrize("encoding", ["distance", "linear", "disparity"])
def test_an_image_with_depth_renders_back_to_itself(encoding):
    image, z, mask = scene()
    near, far = z[mask].min(), z[mask].max()
    picture = {
        "distance": z,
        "linear": (far - z) / (far - near),
        "disparity": (1 / z - 1 / far) / (1 / near - 1 / far),
    }
    rows, columns = mask.nonzero().unbind(-1)
    focal = 48 / np.tan(np.radians(15))
    side = int(max(rows.max() - rows.min(), columns.max() - columns.min())) + 1
    true_depth = float((far - near) / near) / (side / focal)
    relief = Relief(encoding, fov_deg=30.0, depth_share=true_depth)
    points = relief.points(picture[encoding], mask)
    scale = 1 if encoding == "distance" else float(near)
    torch.testing.assert_close(points[:, 2] * scale, z[mask], atol=1e-4, rtol=0)

    splats, camera = relief.splats(image, picture[encoding], mask, Start(opacity=0.95), 0)
    seen = rasterize.rasterize(splats, camera, 96, 96, background=torch.zeros(3))
    inner = torch.nn.functional.avg_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] == 1
    assert (seen.rgb[0][inner] - image[inner]).abs().mean() < 0.01
    around = torch.nn.functional.max_pool2d(mask[None, None].float(), 9, 1, 4)[0, 0] == 1
    assert (seen.alpha[0, ..., 0][inner] > 0.9).all() and (seen.alpha[0, ..., 0][~around] < 0.1).all()
    low, high = splats.means.amin(dim=0), splats.means.amax(dim=0)
    assert float((high - low).max()) == pytest.approx(1.0, rel=1e-4) and (low + high).abs().max() < 1e-5


def test_depth_and_mask_of_another_size_are_stretched_and_a_part_keeps_its_place():
    image, z, mask = scene()
    coarse, _ = Relief("distance", 30.0).splats(image, z[::2, ::2], mask[::2, ::2], Start(size=0), 0)
    whole, _ = Relief("distance", 30.0).splats(image, z, None, Start(size=0), 0)
    part, camera = Relief("distance", 30.0).splats(image, z, mask, Start(count=50), 0)
    full, same = Relief("distance", 30.0).splats(image, z, mask, Start(), 0)
    assert (
        torch.equal(camera.viewmats, same.viewmats)
        and (part.means[:, None] == full.means).all(-1).any(-1).all()
    )
    assert len(whole) == 96 * 96 and abs(len(coarse) - int(mask.sum())) < 0.05 * len(coarse)


@pytest.mark.parametrize(
    "relief, depth, mask, name, value",
    [
        (Relief(), torch.rand(8, 8), torch.zeros(8, 8, dtype=torch.bool), "mask", "empty"),
        (
            Relief("distance"),
            torch.zeros(8, 8),
            torch.ones(8, 8, dtype=torch.bool),
            "depth",
            "0 under the mask",
        ),
        (
            Relief(),
            torch.full((8, 8), float("nan")),
            torch.ones(8, 8, dtype=torch.bool),
            "depth",
            "not finite under the mask",
        ),
    ],
)
def test_bad_depths_are_refused(relief, depth, mask, name, value):
    with raises(BadSetting, name=name, value=value):
        relief.points(depth, mask)


def ply_file(path, points, colors=None, names=("red", "green", "blue"), faces=None, text=False):
    from plyfile import PlyData, PlyElement

    kinds = [("x", "f8"), ("y", "f8"), ("z", "f8")]
    kinds += [(name, colors.dtype) for name in names] if colors is not None else []
    table = np.empty(len(points), dtype=kinds)
    for i, axis in enumerate("xyz"):
        table[axis] = points[:, i]
    for i, name in enumerate(names if colors is not None else ()):
        table[name] = colors[:, i]
    elements = [PlyElement.describe(table, "vertex")]
    if faces is not None:
        lists = np.empty(len(faces), dtype=[("vertex_indices", "O")])
        lists["vertex_indices"] = [np.array(face, np.int32) for face in faces]
        elements.append(PlyElement.describe(lists, "face", val_types={"vertex_indices": "i4"}))
    PlyData(elements, text=text).write(str(path))
    return path


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    "kind, names",
    [("u1", ("red", "green", "blue")), ("f4", ("diffuse_red", "diffuse_green", "diffuse_blue"))],
)
def test_points_of_a_ply_round_trip(tmp_path, text, kind, names):
    points = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    whole = np.random.default_rng(1).integers(0, 256, (50, 3))
    colors = whole.astype("u1") if kind == "u1" else (whole / 255).astype("f4")
    found, srgb = point_files.read(ply_file(tmp_path / "a.ply", points, colors, names, text=text), 10, 0)
    assert torch.equal(found, torch.from_numpy(points).double())  # the file's are doubles
    torch.testing.assert_close(srgb, torch.from_numpy(whole / 255).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("polygon", [False, True])
def test_a_ply_without_colours_is_grey_and_its_faces_are_sampled(tmp_path, polygon):
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    faces = [[0, 1, 2, 3]] if polygon else [[0, 1, 2], [0, 2, 3]]
    found, colors = point_files.read(ply_file(tmp_path / "a.ply", points, faces=faces), 400, 0)
    assert (
        found.shape == (400, 3) and (found[:, 2] == 0).all() and (found.mean(0)[:2] - 0.5).abs().max() < 0.05
    )
    torch.testing.assert_close(colors, torch.full((400, 3), 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [("points", "colors"), ("coords", "RGB"), ("xyz", None)])
def test_points_of_an_npz_round_trip(tmp_path, names):
    points, colors = np.random.default_rng(0).random((50, 3)), np.random.default_rng(1).random((50, 3))
    position, color = names
    arrays = {position: points}
    arrays |= (
        dict(zip("RGB", colors.T))
        if color == "RGB"
        else {color: (colors * 255).astype(np.uint8)}
        if color
        else {}
    )
    np.savez(tmp_path / "a.npz", **arrays)
    found, srgb = point_files.read(tmp_path / "a.npz", 10, 0)
    assert torch.equal(found, torch.from_numpy(points))
    expected = torch.from_numpy(colors).float() if color else torch.full((50, 3), 0.5)
    torch.testing.assert_close(srgb, expected, atol=1 / 255, rtol=0)


def test_points_that_are_there_twice_or_nowhere_are_left_out(tmp_path):
    points = np.random.default_rng(0).random((10, 3))
    spoilt = np.concatenate([points, points[3:5], [[np.nan, 0, 0]]])
    np.savez(tmp_path / "a.npz", points=spoilt)
    torch.testing.assert_close(point_files.read(tmp_path / "a.npz", 10, 0)[0], torch.from_numpy(points))


def test_files_that_hold_no_points_are_refused(tmp_path):
    def refused(name, word):
        with pytest.raises(BadFile, match=word) as error:
            point_files.read(tmp_path / name, 10, 0)
        assert error.value.path == tmp_path / name
        return error.value

    (tmp_path / "a.obj").touch()
    refused("a.obj", r"\.npz file")
    for name, kind in (("a.ply", ".ply"), ("a.npz", ".npz")):
        (tmp_path / name).write_bytes(b"hello")
        refused(name, f"readable {kind} file")
    ply.write(
        tmp_path / "splat.ply",
        Splats(torch.zeros(2, 3), torch.rand(2, 4), torch.ones(2, 3), torch.ones(2), torch.zeros(2, 1, 3)),
    )
    refused("splat.ply", "Gaussian splat, not points")
    np.savez(tmp_path / "b.npz", positions=np.zeros((4, 3)))
    refused("b.npz", "positions")
    np.savez(tmp_path / "c.npz", points=np.zeros((4, 2)))
    assert refused("c.npz", "points").__cause__.value == "of shape (4, 2)"
    np.savez(tmp_path / "d.npz", points=np.random.rand(4, 3), colors=np.random.rand(4, 3) * 255)
    assert refused("d.npz", "colour").__cause__.name == "the largest colour"
