"""Splats: activation, starting points, files."""

import math

import numpy as np
import pytest
import torch
from raising import raises

from lucid_core.errors import BadFile, BadSetting, BadSplats
from lucid_core.io import ply, video
from lucid_core.optimize.losses import disparity, tv
from lucid_core.splats import SH_C0, Splats, activate, parameters, repair, validate
from lucid_core.starts.shapes import SHAPES, PointCloud, from_points


def random_splats(n=50, degree=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(n, 3, generator=g),
        quats=torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1),
        scales=torch.rand(n, 3, generator=g) * 0.1 + 1e-3,
        opacities=torch.rand(n, generator=g) * 0.98 + 0.01,
        sh=torch.randn(n, (degree + 1) ** 2, 3, generator=g),
    )


def assert_same(a, b, **tolerance):
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **tolerance)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_activation_inverts_parameters(degree):
    splats = random_splats(degree=degree)
    assert splats.sh_degree == degree
    assert_same(
        activate({k: v.detach() for k, v in parameters(splats).items()}), splats, rtol=1e-5, atol=1e-6
    )


def test_extreme_splats_have_finite_parameters():
    splats = Splats(
        torch.zeros(2, 3),
        torch.ones(2, 4),
        torch.tensor([[0.0] * 3, [1e6] * 3]),
        torch.tensor([0.0, 1.0]),
        torch.zeros(2, 1, 3),
    )
    assert all(value.isfinite().all() for value in parameters(splats).values())


@pytest.mark.parametrize(
    "change, name",
    [
        ({"means": torch.zeros(0, 3)}, "quats"),  # of another length
        ({"means": torch.full((50, 3), math.nan)}, "means"),
        ({"scales": torch.ones(49, 3)}, "scales"),
        ({"sh": torch.ones(50, 2, 3)}, "sh"),
        ({"opacities": torch.full((50,), math.inf)}, "opacities"),
    ],
)
def test_bad_splats_are_refused(change, name):
    splats = random_splats()
    fields = {name: getattr(splats, name) for name in ("means", "quats", "scales", "opacities", "sh")}
    with raises(BadSplats, name=name):
        validate(Splats(**{**fields, **change}))


def test_a_splat_of_no_gaussians_is_refused():
    with raises(BadSplats, name="number of Gaussians"):
        validate(random_splats().map(lambda x: x[:0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_point_clouds_fill_their_shape(shape):
    splats = PointCloud(shape, count=2000, size=3.0, color=(1.0, 0.5, 0.0), color_noise=0.0).splats(seed=1)
    validate(splats)
    assert splats.means.abs().max() <= 1.5 + 1e-5
    assert splats.means.abs().amax(0).min() > 1.2 and splats.means.mean(0).abs().max() < 0.1
    if shape == "sphere":
        torch.testing.assert_close(splats.means.norm(dim=-1), torch.full((2000,), 1.5))
    torch.testing.assert_close(splats.sh[:, 0] * SH_C0 + 0.5, torch.tensor([[1.0, 0.5, 0.0]]).expand(2000, 3))


def test_first_size_is_the_distance_to_the_three_nearest():
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    splats = from_points(grid, torch.rand(64, 3), opacity=0.1)
    torch.testing.assert_close(splats.scales, torch.ones(64, 3))


def test_same_seed_same_points():
    a, b, c = (PointCloud(count=100).splats(seed) for seed in (3, 3, 4))
    assert torch.equal(a.means, b.means) and not torch.equal(a.means, c.means)


@pytest.mark.parametrize("bad", [{"count": 3}, {"size": 0}, {"shape": "teapot"}, {"color": (2.0, 0, 0)}])
def test_bad_point_clouds_are_refused_by_name(bad):
    with raises(BadSetting, name=next(iter(bad))):
        PointCloud(**bad)


@pytest.mark.parametrize("degree", [0, 3])
def test_ply_round_trip(tmp_path, degree):
    splats = random_splats(degree=degree)
    ply.write(tmp_path / "a.ply", splats)
    assert_same(ply.read(tmp_path / "a.ply"), splats, rtol=1e-5, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_rows_that_are_no_gaussians_are_left_out_and_zero_rotations_unrotated():
    splats = random_splats()
    n = len(splats)
    assert repair(splats)[0] is splats and repair(splats)[1] == ""
    spoilt = splats.map(lambda x: torch.cat([x, torch.zeros_like(x[:2])]))  # two rows of zeros
    spoilt.quats[3] = 0
    with pytest.raises(BadSplats, match=f"3 of {n + 2}") as error:
        validate(spoilt)
    assert error.value.name == "quats"
    mended, note = repair(spoilt)
    validate(mended)
    assert len(mended) == n and "2 of" in note and "rotation of 1" in note
    assert mended.quats[3].tolist() == [1, 0, 0, 0]
    with raises(BadSplats, name="means"):
        validate(repair(Splats(torch.zeros(n), *list(vars(splats).values())[1:]))[0])
    others = torch.arange(n) != 3
    assert all(
        torch.equal(a[others], b[others]) for a, b in zip(vars(mended).values(), vars(splats).values())
    )


def test_ply_layout_is_the_standard_one(tmp_path):
    from plyfile import PlyData

    ply.write(tmp_path / "a.ply", random_splats(degree=1))
    data = PlyData.read(tmp_path / "a.ply")
    assert data.byte_order == "<" and not data.text
    assert list(data["vertex"].data.dtype.names) == (
        [
            "x",
            "y",
            "z",
            "nx",
            "ny",
            "nz",
            "f_dc_0",
            "f_dc_1",
            "f_dc_2",
            *[f"f_rest_{i}" for i in range(9)],
            "opacity",
        ]
        + [f"scale_{i}" for i in range(3)]
        + [f"rot_{i}" for i in range(4)]
    )


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n"]
)
def test_a_file_that_is_no_splat_is_refused(tmp_path, content):
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    with raises(BadFile, path=path):
        ply.read(path)


def test_contact_sheet_and_png(tmp_path):
    import cv2

    frames = torch.stack([torch.full((4, 6, 3), i / 4) for i in range(5)])
    sheet = video.contact_sheet(frames, columns=3)
    assert sheet.shape == (8, 18, 3) and sheet[0, 6, 0] == 64 and sheet[7, 17, 0] == 255
    sheet[0, 0] = (255, 0, 10)
    video.write_png(tmp_path / "a.png", sheet)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], sheet)


def test_video_holds_every_frame(tmp_path):
    import cv2

    frames = torch.linspace(0, 1, 20)[:, None, None, None].expand(20, 64, 64, 3)
    video.write_mp4(tmp_path / "a.mp4", list(video.to_uint8(frames)), fps=24)
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    means = []
    while (frame := capture.read())[0]:
        means.append(frame[1].mean() / 255)
    assert len(means) == 20 and np.abs(np.array(means) - np.linspace(0, 1, 20)).max() < 0.06


def test_tv_is_that_of_the_official_code():
    x = torch.rand(2, 5, 7, 3)
    rows = sum((x[b, 1:] - x[b, :-1]).square().sum() / (4 * 7 * 3) for b in range(2))
    columns = sum((x[b, :, 1:] - x[b, :, :-1]).square().sum() / (5 * 6 * 3) for b in range(2))
    torch.testing.assert_close(tv(x), 2 * (rows + columns) / 2)


def test_disparity_is_one_at_the_nearest_and_zero_in_empty_space():
    alpha = torch.ones(1, 4, 4, 1)
    alpha[:, :2] = 0.0
    z = torch.tensor([2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 4, 1).expand(1, 4, 4, 1)
    image = disparity(z * alpha, alpha, torch.tensor([1.5]))[0, ..., 0]
    assert image[3].tolist() == pytest.approx([1.0, (1 / 3 - 0.2) / 0.3, (1 / 4 - 0.2) / 0.3, 0.0], abs=1e-3)
    assert (image[:2] == 0).all()
