"""A prompt made of a picture: framing, camera columns, and conditionings that are exact for every camera."""

import math

import pytest
import torch
from raising import raises

from lucid_core.cameras import orbit
from lucid_core.conditioning.picture import (
    Picture,
    PictureView,
    frame_picture,
    marks_background,
)
from lucid_core.conditioning.picture_prompt import COLUMNS, PicturePrompt, camera_columns
from lucid_core.errors import BadInput, BadSetting

from .priors import GaussianPrior


def picture(elevation=0.0, azimuth=0.0):
    return Picture(torch.ones(64, 64, 3), torch.ones(64, 64, 1), PictureView(elevation, azimuth))


def radians(*degrees):
    return torch.tensor(degrees).deg2rad()


def square(height, width, top, left, side):
    mask = torch.zeros(height, width)
    mask[top : top + side, left : left + side] = 1
    return mask


# ---- camera columns


def test_columns_of_known_views():
    """The picture's own view, and views 90 degrees to the right and 30 degrees above it."""
    own = math.radians(30), math.radians(20)
    columns = camera_columns(radians(30.0, 120.0, 30.0), radians(20.0, 20.0, 50.0), *own)
    polar = math.radians(70)
    expected = [[0, 0, 1, polar], [0, 1, 0, polar], [-math.radians(30), 0, 1, polar]]
    torch.testing.assert_close(columns, torch.tensor(expected), atol=1e-6, rtol=0)


def test_azimuth_grows_towards_the_right_of_the_picture():
    """As in Zero123, whose positive azimuth moves the camera to its right."""
    poses = orbit(radians(0.0, 10.0), radians(0.0, 0.0), torch.full((2,), 4.0), torch.ones(2), 8, 8).viewmats
    positions = -(poses[:, :3, :3].mT @ poses[:, :3, 3:])[..., 0]
    to_the_right = poses[0, 0, :3] @ (positions[1] - positions[0])
    assert to_the_right > 0
    assert camera_columns(radians(10.0), radians(0.0), 0.0, 0.0)[0, 1] > 0


def test_the_blend_is_the_affine_layer_at_the_views_camera():
    """The prior's conditionings are A [embedding, camera] + b, as the host computes them before the blend."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 3 + COLUMNS, generator=generator, dtype=torch.float64)
    b = torch.randn(6, generator=generator, dtype=torch.float64)
    embedding = torch.randn(3, generator=generator, dtype=torch.float64)
    project = lambda camera: (torch.cat([embedding, camera]) @ A.T + b)[None]
    cameras = torch.cat([torch.zeros(1, COLUMNS), torch.eye(COLUMNS)]).double()
    prompt = PicturePrompt(tuple(map(project, cameras)), "negative", "inverse", picture(15.0, -40.0))
    azimuth, elevation = radians(0.0, 90.0, -170.0, 45.0).double(), radians(0.0, -30.0, 80.0, 10.0).double()
    conds = prompt.at(GaussianPrior(), azimuth, elevation)
    columns = camera_columns(azimuth, elevation, math.radians(-40), math.radians(15))
    expected = torch.cat([project(row) for row in columns])
    torch.testing.assert_close(conds.y, expected, rtol=1e-12, atol=1e-12)
    assert (conds.negative, conds.inverse, conds.others) == ("negative", "inverse", ())


# ---- framing


def test_the_object_is_centred_and_fills_its_share():
    mask = square(120, 200, top=10, left=20, side=60)
    framed = frame_picture(torch.full((120, 200, 3), 0.2), mask, PictureView(fill=0.75))
    assert framed.rgb.shape == (80, 80, 3)
    expected = square(80, 80, top=10, left=10, side=60)[..., None]
    torch.testing.assert_close(framed.alpha, expected)
    torch.testing.assert_close(framed.rgb, 1 - 0.8 * expected.expand(-1, -1, 3))  # on white


def test_fill_0_keeps_the_framing_and_adds_white_borders():
    mask, depth = square(100, 140, top=0, left=100, side=40), torch.rand(100, 140)
    framed = frame_picture(torch.zeros(100, 140, 3), mask, PictureView(fill=0.0), depth)
    assert framed.rgb.shape == (140, 140, 3)
    torch.testing.assert_close(framed.alpha[20:120, :, 0], mask)
    torch.testing.assert_close(framed.disparity[20:120, :, 0], depth)
    assert (framed.rgb[:20] == 1).all() and (framed.rgb[20:60, 100:] == 0).all()


def test_half_transparent_pixels_are_blended_with_white():
    mask = 0.6 * square(64, 64, top=16, left=16, side=32)
    framed = frame_picture(torch.full((64, 64, 3), 0.5), mask, PictureView(fill=0.0))
    assert float(framed.rgb[32, 32, 0]) == pytest.approx(0.6 * 0.5 + 0.4)


def test_resampling_keeps_the_mean():
    framed = frame_picture(torch.rand(128, 128, 3), square(128, 128, 32, 32, 64), PictureView(fill=0.0))
    assert framed.at(32).rgb.shape == (32, 32, 3)
    assert float(framed.at(32).alpha.mean()) == pytest.approx(0.25, abs=1e-3)


def test_a_mask_that_is_1_on_the_border_marks_the_background():
    mask = square(64, 64, 16, 16, 32)
    assert marks_background(1 - mask) and not marks_background(mask)
    assert not marks_background(torch.zeros(64, 64)) and not marks_background(torch.ones(64, 64))


@pytest.mark.parametrize("mask", [torch.zeros(64, 64), torch.ones(64, 64), torch.zeros(8, 8)])
def test_a_mask_of_nothing_or_of_all_is_refused(mask):
    with raises(BadInput, name="mask"):
        frame_picture(torch.ones(64, 64, 3), mask, PictureView())


def test_a_small_picture_and_a_small_object_are_refused():
    with raises(BadInput, name="image") as caught:
        frame_picture(torch.ones(63, 100, 3), square(63, 100, 10, 10, 40), PictureView())
    assert "100 x 63 px" in caught.value.problem
    with raises(BadInput, name="image") as caught:
        frame_picture(torch.ones(200, 200, 3), square(200, 200, 10, 10, 40), PictureView(fill=0.8))
    assert "50 px" in caught.value.problem


@pytest.mark.parametrize("setting", ["elevation_deg", "azimuth_deg", "fill", "weight", "depth_weight"])
@pytest.mark.parametrize("value", [-1000.0, 2000.0, math.nan])
def test_settings_out_of_bounds_are_refused(setting, value):
    with raises(BadSetting, name=setting):
        PictureView(**{setting: value})


def test_a_frame_far_larger_than_the_object_is_refused():
    with raises(BadSetting, name="fill", value=0.01):
        PictureView(fill=0.01)
