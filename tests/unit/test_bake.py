"""The bake of a splat into a texture: kernels beside float64 oracles, scenes of known colours, files."""

import io
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from raising import raises

from lucid_core.bake import kernels
from lucid_core.bake.fill import fill_unseen, nearest_texels
from lucid_core.bake.shade import shade
from lucid_core.bake.solid import Solid, solidify
from lucid_core.bake.surface import overlap_of, prepare, simplify, texels_of, unwrap, vertex_normals
from lucid_core.bake.texture import Bake, bake, depth_of
from lucid_core.bake.views import around, box_of
from lucid_core.cameras import Cameras, turntable
from lucid_core.errors import BadInput, BadSetting, MissingPackage
from lucid_core.frames import Frame
from lucid_core.io import glb
from lucid_core.rasterize import Renderer, rasterize
from lucid_core.splats import SH_C0, Splats
from lucid_core.starts.mesh import Mesh
from lucid_core.starts.points import Start

RED, BLUE = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.8])
SMALL = Bake(size=64, views=12)


def sphere(fineness=2):
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(fineness)
    return Mesh(torch.from_numpy(np.array(ball.vertices)).float(), torch.from_numpy(np.array(ball.faces)))


def plates():
    """Two parallel squares of side 2, at z = -0.5 and 0.5; each has its half of the texture."""
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    at = lambda z: torch.cat([square, torch.full((4, 1), z)], -1)
    faces = torch.tensor([[0, 2, 1], [0, 3, 2]])
    uvs = (square + 1) / 2 * torch.tensor([0.5, 1.0])
    return Mesh(
        torch.cat([at(-0.5), at(0.5)]),
        torch.cat([faces, faces + 4]),
        uvs=torch.cat([uvs, uvs + torch.tensor([0.5, 0.0])]),
    )


def covered(points, colors, normals):
    return Start(len(points), 0.0, 0.95, 0.1).splats(points, colors, 0, normals)


def ball_of(color, n=1500):
    points = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.manual_seed(0)), dim=-1)
    return covered(points, color.expand(n, 3), points)


# ---- kernels


def test_the_nearest_triangle_of_every_pixel():
    g = np.random.default_rng(0)
    corners = g.uniform([-5, -5, 1], [25, 17, 3], (30, 3, 3))
    face, depth = kernels.draw(corners, 20, 12)
    a, b, c = (corners[:, i, None, None] for i in range(3))
    x, y = np.arange(20)[None] + 0.5, np.arange(12)[:, None] + 0.5
    edge = lambda p, q: (q[..., 0] - p[..., 0]) * (y - p[..., 1]) - (q[..., 1] - p[..., 1]) * (x - p[..., 0])
    weights = np.stack([edge(b, c), edge(c, a), edge(a, b)])  # (3, F, H, W)
    weights /= weights.sum(0)
    z = 1 / (weights / np.stack([a, b, c])[..., 2]).sum(0)
    z[(weights < 0).any(0)] = np.inf
    assert (np.isfinite(z).any(0)).any() and (~np.isfinite(z).any(0)).any()
    assert (face == np.where(np.isfinite(z.min(0)), z.argmin(0), -1)).all()
    np.testing.assert_allclose(depth, z.min(0), rtol=1e-6)  # float32


def test_a_triangle_behind_the_camera_is_left_out():
    corners = np.array([[[0.0, 0, -1], [9, 0, -1], [0, 9, -1]]])
    assert (kernels.draw(corners, 8, 8)[0] == -1).all()


def oracle(points, normals, pose, K, picture, depth, power, reach):
    """`collect` for one view in float64, point by point."""
    sums = np.zeros((len(points), 4))
    for i, (point, normal) in enumerate(zip(points.astype(float), normals.astype(float))):
        x, y, z = seen = pose[:3, :3] @ point + pose[:3, 3]
        u, v = K[0, 0] * x / z + K[0, 2] - 0.5, K[1, 1] * y / z + K[1, 2] - 0.5
        cosine = abs(seen @ (pose[:3, :3] @ normal)) / np.linalg.norm(seen)
        row, column = round(v), round(u)
        near = depth[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].min()
        tolerance = (1 + kernels.REACH * np.tan(np.arccos(cosine))) * z / K[0, 0]
        if cosine < kernels.FLAT or z > near + tolerance:
            continue
        r, c = int(v), int(u)
        weights = np.outer([1 - (v - r), v - r], [1 - (u - c), u - c])
        *color, opacity, distance = (weights[..., None] * picture[r : r + 2, c : c + 2]).sum((0, 1))
        if opacity >= kernels.FAINT:
            off = (distance / opacity - z) / reach
            sums[i] = cosine**power * np.exp(-(off**2) / 2) * np.array([*color, opacity])
    return sums


def test_a_view_gives_its_colours_to_the_points_that_it_shows():
    mesh = sphere()
    mesh = replace(mesh, vertices=Frame.of_points(mesh.vertices).enter_points(mesh.vertices))
    camera, g = around(5, 32)[1], np.random.default_rng(1)
    depth = depth_of(mesh, camera, 32)
    picture = g.random((32, 32, 5), np.float32)
    picture[..., 4] = picture[..., 3] * np.where(np.isfinite(depth), depth, 5.0)
    points, normals = mesh.vertices.numpy(), vertex_normals(mesh).numpy()
    pose, K = camera.viewmats[0].numpy(), camera.Ks[0].numpy()
    arguments = (points, normals, pose, K, picture, depth, 3.0, 0.1)
    sums = np.zeros((len(points), 4))
    kernels.collect(*arguments, sums)
    expected = oracle(*arguments)
    assert 0.2 < (expected[:, 3] > 0).mean() < 0.6  # about half of a sphere
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-6)  # float32 positions


# ---- texels and UVs


def test_texels_lie_where_the_uvs_say():
    mesh = plates()
    texels = texels_of(mesh, 16)
    assert len(texels.index) == 16 * 16
    row, column = texels.index // 16, texels.index % 16
    right = (column >= 8).float()
    x = ((column + 0.5) / 16 - right / 2) * 4 - 1
    expected = torch.stack([x, (row + 0.5) / 16 * 2 - 1, right - 0.5], -1)
    torch.testing.assert_close(texels.points, expected)
    torch.testing.assert_close(texels.normals.abs(), torch.tensor([0.0, 0, 1]).expand(len(x), 3))
    assert overlap_of(mesh, texels) < 1e-6
    mirrored = replace(mesh, uvs=mesh.uvs[:4].repeat(2, 1))
    assert overlap_of(mirrored, texels_of(mirrored, 16)) > 0.3


def test_an_unwrap_keeps_the_surface():
    mesh = sphere()
    flat = unwrap(mesh, 128)
    assert flat.uvs.min() >= 0 and flat.uvs.max() <= 1
    corners = lambda m: m.vertices[m.faces].reshape(-1, 9).sort(0).values
    torch.testing.assert_close(corners(flat), corners(mesh))
    texels = texels_of(flat, 128)
    assert overlap_of(flat, texels) < 0.02
    torch.testing.assert_close(
        texels.normals, torch.nn.functional.normalize(texels.points), atol=0.05, rtol=0
    )


def test_a_simplified_mesh_keeps_its_shape():
    mesh = simplify(sphere(3), 320)
    assert 300 <= len(mesh.faces) <= 320
    assert (mesh.vertices.norm(dim=-1) - 1).abs().max() < 0.05


# ---- bake


def test_a_splat_of_one_colour_gives_a_texture_of_that_colour():
    baked = bake(ball_of(RED), sphere(), SMALL, Renderer("numba"))
    assert baked.mesh.texture.shape == (64, 64, 3)
    torch.testing.assert_close(baked.mesh.texture, RED.expand(64, 64, 3), atol=1e-4, rtol=0)
    assert baked.seen == 1 and baked.left_out == 0


def test_what_stands_in_front_does_not_colour_what_is_behind():
    axis = torch.linspace(-1, 1, 40)
    flat = torch.cartesian_prod(axis, axis)
    at = lambda z: torch.cat([flat, torch.full((1600, 1), z)], -1)
    points = torch.cat([at(-0.5), at(0.5)])
    colors = torch.cat([RED.expand(1600, 3), BLUE.expand(1600, 3)])
    normals = torch.tensor([0.0, 0, 1]).expand(3200, 3)
    baked = bake(covered(points, colors, normals), plates(), replace(SMALL, views=24), Renderer("numba"))
    left, right = baked.mesh.texture[:, :32], baked.mesh.texture[:, 32:]
    assert (left - RED).abs().mean() < 0.02 and (right - BLUE).abs().mean() < 0.02
    inner = lambda half: half[4:-4, 2:-2]  # at the border the splat is translucent
    assert (inner(left) - RED).abs().max() < 0.05 and (inner(right) - BLUE).abs().max() < 0.05


def test_a_bake_moves_with_its_splat_and_leaves_out_the_rest():
    splats, mesh, shift = ball_of(RED), sphere(), torch.tensor([30.0, -20.0, 10.0])
    stray = Splats(*(x[:5] for x in vars(ball_of(BLUE)).values()))
    both = [torch.cat(pair) for pair in zip(vars(splats).values(), vars(stray).values())]
    both[0][-5:] *= 3
    moved = replace(Splats(*both), means=both[0] * 7 + shift, scales=both[2] * 7)
    baked = bake(moved, replace(mesh, vertices=mesh.vertices * 7 + shift), SMALL, Renderer("numba"))
    assert baked.left_out == 5
    torch.testing.assert_close(baked.mesh.texture, RED.expand(64, 64, 3), atol=1e-3, rtol=0)


def test_unseen_texels_take_the_nearest_seen_colour():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.01, 0, 0], [5, 5, 5]])
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [9, 9, 9], [9, 9, 9]])
    filled = fill_unseen(colors, points, torch.tensor([True, True, False, False]))
    torch.testing.assert_close(filled[2], torch.tensor([0.99, 0.01, 0.0]))  # by 1 / distance
    far = 1 / (points[3] - points[:2]).norm(dim=-1)
    torch.testing.assert_close(filled[3, :2], far / far.sum())
    assert (filled[:2] == colors[:2]).all()


def test_gaps_between_charts_take_the_nearest_texel():
    index = torch.tensor([0, 63 * 8 + 7])
    texture = torch.stack([RED, BLUE])[nearest_texels(index, 64, 64)].reshape(64, 64, 3)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = torch.stack([index // 64, index % 64], -1)
    distance = (torch.stack([y, x], -1)[:, :, None] - centres).float().norm(dim=-1)
    clear = (distance[..., 0] - distance[..., 1]).abs() > 2  # OpenCV's 5x5 distances are off by 2%
    expected = torch.stack([RED, BLUE])[distance.argmin(-1)]
    assert (texture == expected)[clear].all() and clear.float().mean() > 0.9


# ---- pictures and files


def test_a_textured_mesh_is_drawn_as_its_texture():
    """A square that fills the image: every pixel is its texel."""
    texture = (
        torch.rand(16, 16, 3, generator=torch.manual_seed(0)).repeat_interleave(4, 0).repeat_interleave(4, 1)
    )
    front = plates()
    mesh = Mesh(
        front.vertices[:4], front.faces[:2], uvs=front.uvs[:4] * torch.tensor([2.0, 1]), texture=texture
    )
    pose = torch.eye(4)[None]
    pose[0, 2, 3] = 2.5  # the square is 2 in front of the camera
    K = torch.tensor([[[64.0, 0, 32], [0, 64, 32], [0, 0, 1]]])
    rgb, alpha = shade(mesh, Cameras(pose, K), 64, 64)
    torch.testing.assert_close(alpha, torch.ones(64, 64, 1))
    inner = (slice(1, None, 4), slice(1, None, 4))  # texels whose neighbours have the same colour
    torch.testing.assert_close(rgb[inner], texture[inner], atol=1e-4, rtol=0)


def test_a_glb_opens_elsewhere_with_the_same_bytes():
    trimesh = pytest.importorskip("trimesh")
    mesh = replace(plates(), texture=torch.rand(8, 8, 3, generator=torch.manual_seed(0)))
    data = glb.encode(mesh)
    (found,) = trimesh.load(io.BytesIO(data), file_type="glb", process=False).geometry.values()
    np.testing.assert_array_equal(found.vertices, mesh.vertices)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    uvs = np.array([0, 1]) + np.array([1, -1]) * mesh.uvs.numpy()  # trimesh counts from the lower left corner
    np.testing.assert_allclose(found.visual.uv, uvs, atol=1e-7)
    levels = (mesh.texture * 255).round().numpy()
    np.testing.assert_array_equal(np.asarray(found.visual.material.baseColorTexture)[..., :3], levels)
    content = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert "KHR_materials_unlit" in content["materials"][0]["extensions"]
    assert int.from_bytes(data[8:12], "little") == len(data)


def test_the_glb_of_a_bake_looks_as_its_splat():
    """Opened by trimesh and rendered beside the splat."""
    trimesh = pytest.importorskip("trimesh")
    points = ball_of(RED, 6000).means
    splats = covered(points, 0.5 + 0.4 * points, points)
    data = glb.encode(bake(splats, sphere(3), replace(SMALL, size=128), Renderer("numba")).mesh)
    (found,) = trimesh.load(io.BytesIO(data), file_type="glb", process=False).geometry.values()
    uvs = np.array([0, 1]) + np.array([1, -1]) * found.visual.uv  # trimesh counts from the lower left corner
    texture = np.asarray(found.visual.material.baseColorTexture)[..., :3] / 255
    vertices, faces, uvs, texture = (
        torch.from_numpy(np.array(x)) for x in (found.vertices, found.faces, uvs, texture)
    )
    mesh = Mesh(vertices.float(), faces.long(), uvs=uvs.float(), texture=texture.float())
    for row in torch.arange(3).split(1):
        camera = turntable(3, 25.0, 4.0, 35.0, 96, 96).map(lambda x, row=row: x[row])
        (rgb, alpha), shown = shade(mesh, camera, 96, 96), rasterize(splats, camera, 96, 96)
        both = (alpha > 0.99) & (shown.alpha[0] > 0.99)  # at the outline the Gaussians stand out
        assert both.sum() > 0.9 * (shown.alpha[0] > 0.5).sum()
        assert (rgb - shown.rgb[0]).square().mean(-1)[both[..., 0]].mean() < 10**-3.3  # 33 dB


def test_a_glb_needs_a_texture():
    with raises(BadSetting, name="the mesh"):
        glb.encode(plates())


# ---- bad input


def test_a_mesh_that_cannot_be_textured_is_refused(monkeypatch):
    mesh = plates()
    with raises(BadInput, name="the mesh's uvs"):
        prepare(replace(mesh, uvs=mesh.uvs * 2), 0, 64)
    many = Mesh(mesh.vertices, mesh.faces[:1].expand(200_001, 3))
    with raises(BadInput, name="the mesh"):
        prepare(many, 0, 64)
    with raises(BadInput, name="the mesh's uvs"):
        texels_of(replace(mesh, uvs=mesh.uvs * 0), 64)
    with raises(BadSetting, name="the mesh"):
        bake(ball_of(RED), replace(mesh, faces=mesh.faces[:0]), SMALL, Renderer("numba"))
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with raises(MissingPackage, package="xatlas"):
        prepare(replace(mesh, uvs=None), 0, 64)
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with raises(MissingPackage, package="fast-simplification"):
        prepare(replace(mesh, uvs=None), 2, 64)


def test_a_splat_of_another_place_is_refused_with_both_boxes():
    splats, mesh = ball_of(RED), sphere()
    with raises(BadInput, name="the splat") as caught:
        bake(replace(splats, means=splats.means + 50), mesh, SMALL, Renderer("numba"))
    (low, high) = (", ".join(f"{x:.3g}" for x in end.tolist()) for end in box_of(mesh.vertices))
    assert low in caught.value.problem and high in caught.value.problem and "(49" in caught.value.problem
    with raises(BadInput, name="the splat"):
        bake(splats.scale_by(0.1), mesh, SMALL, Renderer("numba"))


def test_a_splat_that_cannot_be_seen_is_refused():
    splats = ball_of(RED)
    with raises(BadInput, name="the splat"):
        bake(replace(splats, opacities=splats.opacities * 0), sphere(), SMALL, Renderer("numba"))
    with raises(BadInput, name="the splat"):
        bake(replace(splats, opacities=splats.opacities * 0 + 0.005), sphere(), SMALL, Renderer("numba"))


def test_colours_are_those_of_the_splat():
    """ball_of is what it says: its bands of order 0 are the colour."""
    torch.testing.assert_close(ball_of(RED).sh[:, 0] * SH_C0 + 0.5, RED.expand(1500, 3))


# ---- solid


def test_a_shell_becomes_a_filled_ball():
    """Cells are filled by their distance from the sphere; what is fainter than min_opacity does not count."""
    shell, fog = ball_of(RED, 12_000), ball_of(BLUE, 200)
    fog = replace(fog, means=fog.means * 1.3, opacities=fog.opacities * 0.05)
    both = Splats(*(torch.cat(pair) for pair in zip(vars(shell).values(), vars(fog).values())))
    solid = solidify(both, Solid(cells=20, min_opacity=0.1), Renderer("numba"))
    cell, radius = 0.1, solid.means.norm(dim=-1)
    assert radius.max() < 1 + cell
    assert (solid.opacities[radius < 1 - 1.5 * cell] > 0.9).all()
    assert solid.opacities[(radius - 1).abs() < cell / 4].mean() == pytest.approx(0.5, abs=0.15)
    whole = 4 / 3 * math.pi / cell**3  # cells in the ball
    assert float(solid.opacities.sum()) == pytest.approx(whole, rel=0.05)


def test_gaps_in_a_shell_do_not_shrink_it():
    """Through a gap the depth is a mean of both sides of the ball. With it a fifth would be missing."""
    shell, cell = ball_of(RED), 0.1
    solid = solidify(replace(shell, scales=0.7 * shell.scales), Solid(cells=20), Renderer("numba"))
    assert float(solid.opacities.sum()) == pytest.approx(4 / 3 * math.pi / cell**3, rel=0.05)


def test_a_huge_gaussian_does_not_widen_the_grid_beyond_memory():
    splats = ball_of(RED, 12_000)
    splats.scales[0] = 1e3
    solidify(splats, Solid(cells=16, min_opacity=0.1), Renderer("numba"))


def test_a_splat_without_an_inside_is_refused():
    splats = ball_of(RED, 300)
    with raises(BadInput, name="the splat"):
        solidify(splats.map(lambda x: x[:1]), Solid(cells=16), Renderer("numba"))
    with raises(BadInput, name="the splat's opacities"):
        solidify(replace(splats, opacities=splats.opacities * 0.05), Solid(cells=16), Renderer("numba"))
    with raises(BadSetting, name="cells"):
        Solid(cells=4)


def test_a_solid_of_gaussians_as_large_as_the_splat_is_refused():
    splats = ball_of(RED, 4)
    with raises(BadInput, name="the splat"):
        solidify(replace(splats, scales=torch.full((4, 3), 5.0)), Solid(cells=16), Renderer("numba"))
