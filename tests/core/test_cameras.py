import math

import pytest
import torch

from lucid_core.cameras import CameraRanges, Cameras, framed, intrinsics, look, orbit, turned, turntable
from lucid_core.pointcloud import PointCloud


def position(viewmats):
    return -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]


def at(azimuth_deg, elevation_deg, radius=4.0):
    full = torch.ones(1, dtype=torch.float64)
    return orbit(full * math.radians(azimuth_deg), full * math.radians(elevation_deg), full * radius, full * 0.5, 64, 48)


@pytest.mark.parametrize(
    "azimuth, elevation, where",
    [
        (0, 0, (0, 0, -4)),
        (90, 0, (4, 0, 0)),
        (180, 0, (0, 0, 4)),
        (-90, 0, (-4, 0, 0)),
        (0, 90, (0, -4, 0)),
        (0, -90, (0, 4, 0)),
    ],
)
def test_orbit_puts_the_camera_where_the_frame_says(azimuth, elevation, where):
    """Front at -z, azimuth towards +x, up at -y."""
    torch.testing.assert_close(position(at(azimuth, elevation).viewmats)[0], torch.tensor(where, dtype=torch.float64))


def test_orbit_is_a_rigid_upright_pose_that_looks_at_the_origin():
    for azimuth in range(-180, 180, 37):
        for elevation in (-89, -30, 0, 45, 90):
            viewmat = at(azimuth, elevation).viewmats[0]
            rotation = viewmat[:3, :3]
            torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
            assert torch.linalg.det(rotation) == pytest.approx(1)
            torch.testing.assert_close(viewmat[:3, 3], torch.tensor([0, 0, 4.0], dtype=torch.float64))  # origin straight ahead
            assert abs(rotation[0, 1]) < 1e-12 and rotation[1, 1] > -1e-12  # image right is level, image down points down


def test_intrinsics_span_the_smaller_side():
    K = intrinsics(torch.tensor([math.radians(60)]), 200, 100)[0]
    assert K[0, 0] == K[1, 1] == pytest.approx(50 / math.tan(math.radians(30)))
    assert (K[0, 2], K[1, 2]) == (100, 50)


def test_turntable_begins_at_the_front_and_goes_round():
    where = position(turntable(4, 0.0, 2.0, 30.0, 64, 64).viewmats)
    torch.testing.assert_close(where, torch.tensor([[0, 0, -2.0], [2, 0, 0], [0, 0, 2], [-2, 0, 0]]), atol=1e-5, rtol=0)


def test_turned_equals_orbit():
    angles = torch.tensor([0.3, -2.0, 3.0])
    full = torch.ones(3)
    expected = orbit(angles, full * 0.4, full * 4, full * 0.5, 64, 64).viewmats
    start = orbit(torch.zeros(1), full[:1] * 0.4, full[:1] * 4, full[:1] * 0.5, 64, 64)
    torch.testing.assert_close(turned(start, angles, torch.zeros(3)).viewmats, expected, atol=1e-5, rtol=1e-5)
    centre = torch.tensor([1.0, -2.0, 3.0])
    moved = Cameras(look(position(start.viewmats)[0] + centre, centre), start.Ks)
    around = position(turned(moved, angles, centre).viewmats)
    torch.testing.assert_close(around, position(expected) + centre, atol=1e-5, rtol=1e-5)


def test_look_straight_down_is_finite():
    assert look(torch.tensor([0.0, -3.0, 0.0]), torch.zeros(3)).isfinite().all()


def test_samples_stay_in_their_ranges_widen_and_cover_all_sides():
    ranges, generator = CameraRanges(), torch.Generator().manual_seed(0)
    for progress, low, high in ((0.0, 5.2, 5.5), (0.5, 3.5, 5.0), (1.0, 3.5, 5.0)):
        views = ranges.sample(8, progress, 64, 64, generator)
        distance = position(views.cameras.viewmats).norm(dim=-1)
        assert ((distance > low - 1e-3) & (distance < high + 1e-3)).all()
        assert ((views.elevation_rad >= math.radians(-15.01)) & (views.elevation_rad <= math.radians(45.01))).all()
        sectors = ((views.azimuth_rad + math.pi) / (2 * math.pi) * 8).long()
        assert sorted(sectors.tolist()) == list(range(8))


def test_same_generator_same_views():
    first, second = (CameraRanges().sample(3, 0.2, 64, 64, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.cameras.viewmats, second.cameras.viewmats)


def test_framed_holds_the_splat_wherever_it_is():
    splats = PointCloud(count=500, size=2.0).splats(0)
    away = type(splats)(splats.means * 100 + 1000, splats.quats, splats.scales, splats.opacities, splats.sh)
    camera, _ = framed(away, 0.3, 0.6, 64, 64)
    inside = away.means @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
    pixels = inside @ camera.Ks[0].T
    pixels = pixels[:, :2] / pixels[:, 2:]
    assert (inside[:, 2] > 0).all() and ((pixels > 0) & (pixels < 64)).float().mean() > 0.98


@pytest.mark.parametrize(
    "bad", [{"radius_min": 6.0}, {"elevation_max_deg": 91}, {"fovy_min_deg": 0}, {"azimuth_min_deg": math.nan}]
)
def test_bad_ranges_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CameraRanges(**bad)
