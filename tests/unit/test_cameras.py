import math

import pytest
import torch
from raising import raises

from lucid_core.cameras import (
    CameraRanges,
    Cameras,
    CloseUp,
    frame_splats,
    from_viewing_distance,
    intrinsics,
    look,
    orbit,
    rotate,
    turntable,
    why_unseen,
)
from lucid_core.conditioning.camera_map import EARLY, LATE, camera_map
from lucid_core.errors import BadSetting
from lucid_core.rasterize import rasterize
from lucid_core.splats import Splats
from lucid_core.starts.shapes import PointCloud

STILL = {"jitter_center": 0.0, "jitter_target": 0.0, "jitter_up": 0.0}


def position(viewmats):
    return -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]


def at(azimuth_deg, elevation_deg, radius=4.0):
    full = torch.ones(1, dtype=torch.float64)
    return orbit(
        full * math.radians(azimuth_deg),
        full * math.radians(elevation_deg),
        full * radius,
        full * 0.5,
        64,
        48,
    )


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
    torch.testing.assert_close(
        position(at(azimuth, elevation).viewmats)[0], torch.tensor(where, dtype=torch.float64)
    )


def test_orbit_is_a_rigid_upright_pose_that_looks_at_the_origin():
    for azimuth in range(-180, 180, 37):
        for elevation in (-89, -30, 0, 45, 90):
            viewmat = at(azimuth, elevation).viewmats[0]
            rotation = viewmat[:3, :3]
            torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
            assert torch.linalg.det(rotation) == pytest.approx(1)
            torch.testing.assert_close(
                viewmat[:3, 3], torch.tensor([0, 0, 4.0], dtype=torch.float64)
            )  # origin straight ahead
            assert (
                abs(rotation[0, 1]) < 1e-12 and rotation[1, 1] > -1e-12
            )  # image right is level, image down points down


def test_intrinsics_span_the_smaller_side():
    K = intrinsics(torch.tensor([math.radians(60)]), 200, 100)[0]
    assert K[0, 0] == K[1, 1] == pytest.approx(50 / math.tan(math.radians(30)))
    assert (K[0, 2], K[1, 2]) == (100, 50)


def test_turntable_begins_at_the_front_and_goes_round():
    where = position(turntable(4, 0.0, 2.0, 30.0, 64, 64).viewmats)
    torch.testing.assert_close(
        where, torch.tensor([[0, 0, -2.0], [2, 0, 0], [0, 0, 2], [-2, 0, 0]]), atol=1e-5, rtol=0
    )


def test_turned_equals_orbit():
    angles = torch.tensor([0.3, -2.0, 3.0])
    full = torch.ones(3)
    expected = orbit(angles, full * 0.4, full * 4, full * 0.5, 64, 64).viewmats
    start = orbit(torch.zeros(1), full[:1] * 0.4, full[:1] * 4, full[:1] * 0.5, 64, 64)
    torch.testing.assert_close(rotate(start, angles, torch.zeros(3)).viewmats, expected, atol=1e-5, rtol=1e-5)
    centre = torch.tensor([1.0, -2.0, 3.0])
    moved = Cameras(look(position(start.viewmats)[0] + centre, centre), start.Ks)
    around = position(rotate(moved, angles, centre).viewmats)
    torch.testing.assert_close(around, position(expected) + centre, atol=1e-5, rtol=1e-5)


def test_look_straight_down_is_finite():
    assert look(torch.tensor([0.0, -3.0, 0.0]), torch.zeros(3)).isfinite().all()


def official_ranges(
    iterations, every, azimuth, azimuth_last, polar, polar_last, radius, radius_last, fovy, fovy_last
):
    """LucidDreamer's lists at the end of its loop over `iterations`, by its own rules, one after the
    other.
    """
    for iteration in range(1, iterations + 1):
        if iteration % every == 0:
            fovy = [max(fovy_last[0], fovy[0] * 0.75), min(fovy_last[1], fovy[1] * 1.1)]
            radius = [max(radius_last[0], radius[0] * 0.95), max(radius_last[1], radius[1] * 0.95)]
            polar = [max(polar_last[0], polar[0] / 1.5), min(polar_last[1], polar[1] * 1.5)]
            azimuth = [max(azimuth_last[0], azimuth[0] * 1.5), min(azimuth_last[1], azimuth[1] * 1.5)]
    return azimuth, [90 - polar[1], 90 - polar[0]], radius, fovy


@pytest.mark.parametrize("iteration", [1, 499, 500, 501, 999, 1000, 1501, 2500, 3999, 4501, 4999])
def test_the_ranges_widen_as_the_official_ones_do(iteration):
    """A head of its configs, with elevations that may grow too."""
    expected = official_ranges(
        iteration,
        500,
        [-80, 80],
        [-180, 180],
        [60, 90],
        [45, 120],
        [5.2, 5.5],
        [3.5, 5.0],
        [18.3, 34.4],
        [9.2, 36.0],
    )
    ranges = CameraRanges(
        azimuth_min_deg=-80,
        azimuth_max_deg=80,
        elevation_min_deg=0,
        elevation_max_deg=30,
        elevation_min_end_deg=-30,
        elevation_max_end_deg=45,
        angle_factor=1.5,
        fovy_max_end_deg=36.0,
    )
    for found, wanted in zip(ranges.ranges(iteration / 5000), expected, strict=True):
        assert [float(end) for end in found] == pytest.approx(wanted, rel=1e-6)


def test_angles_that_are_chosen_stay_unless_they_may_grow():
    narrow = dict(azimuth_min_deg=-20, azimuth_max_deg=40, elevation_min_deg=50, elevation_max_deg=60)
    azimuth, elevation, *_ = CameraRanges(**narrow).ranges(1.0)
    assert [float(end) for end in (*azimuth, *elevation)] == [-20, 40, 50, 60]
    azimuth, elevation, *_ = CameraRanges(**narrow, angle_factor=2.0).ranges(0.25)
    assert [float(end) for end in (*azimuth, *elevation)] == pytest.approx([-110, 130, -15, 82.5 - 22.5])
    azimuth, *_ = CameraRanges(azimuth_min_deg=0, azimuth_max_deg=360, angle_factor=9.0).ranges(0.9)
    assert [float(end) for end in azimuth] == [0, 360]
    fovy = CameraRanges(fovy_min_deg=10, fovy_max_deg=11, fovy_min_end_deg=30, fovy_max_end_deg=31)
    assert all(low <= high for low, high in (fovy.ranges(tenth / 10)[3] for tenth in range(11)))


def test_the_official_schedule_also_grows_where_the_late_range_is_larger():
    ranges = CameraRanges(radius_min=2.0, radius_max=2.0, radius_min_end=4.0, radius_max_end=4.0)
    lows = [float(ranges.ranges(tenth / 10)[2][0]) for tenth in range(11)]
    assert lows[0] == 2 and lows == sorted(lows) and lows[5] == pytest.approx(2 / 0.95**5) and max(lows) <= 4


def test_the_linear_schedule_reaches_the_late_ranges_after_widen():
    ranges = CameraRanges(schedule="linear", widen=0.5)
    assert [float(end) for end in ranges.ranges(0.25)[2]] == pytest.approx([4.35, 5.25])
    assert [float(end) for end in ranges.ranges(0.5)[3]] == pytest.approx([9.2, 34.4])
    assert [float(end) for end in CameraRanges(schedule="linear", widen=0.0).ranges(0.0)[2]] == pytest.approx(
        [3.5, 5.0]
    )


def test_samples_stay_in_their_ranges_widen_and_cover_all_sides():
    ranges, generator = CameraRanges(**STILL), torch.Generator().manual_seed(0)
    for progress, low, high in ((0.0, 5.2, 5.5), (0.9, 3.5, 5.0), (1.0, 3.5, 5.0)):
        views = ranges.sample(8, progress, 64, 64, generator)
        distance = position(views.cameras.viewmats).norm(dim=-1)
        assert ((distance > low - 1e-3) & (distance < high + 1e-3)).all()
        assert (
            (views.elevation_rad >= math.radians(-15.01)) & (views.elevation_rad <= math.radians(45.01))
        ).all()
        sectors = ((views.azimuth_rad + math.pi) / (2 * math.pi) * 8).long()
        assert sorted(sectors.tolist()) == list(range(8))


def angles(elevation=(-10.0, 80.0), views=4000, **ranges):
    """Elevations and azimuths in degrees of many draws."""
    ranges = CameraRanges(
        elevation_min_deg=elevation[0], elevation_max_deg=elevation[1], **{**STILL, **ranges}
    )
    seen = ranges.sample(views, 0.0, 64, 64, torch.Generator().manual_seed(0))
    return seen.elevation_rad.rad2deg(), seen.azimuth_rad.rad2deg()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gamma_draws_towards_the_middle_of_the_ranges(gamma):
    """The distance from the middle is u**gamma of half the range, so a share 0.5**(1 / gamma) lies in its
    inner half.
    """
    elevation, azimuth = angles(gamma=gamma)
    assert ((elevation - 35).abs() < 22.5).float().mean() == pytest.approx(0.5 ** (1 / gamma), abs=0.03)
    assert (azimuth.abs() < 90).float().mean() == pytest.approx(0.5 ** (1 / gamma), abs=0.03)
    assert elevation.min() >= -10.01 and elevation.max() <= 80.01 and abs(float(elevation.mean()) - 35) < 2


def test_the_sphere_is_covered_evenly():
    """Archimedes: heights of points that cover a sphere evenly are uniform."""
    elevation, azimuth = angles((-90.0, 90.0), sphere_share=1.0, gamma=3.0)
    heights = elevation.deg2rad().sin().sort().values
    torch.testing.assert_close(heights, torch.linspace(-1, 1, 4000), atol=0.06, rtol=0)
    assert (azimuth.abs() < 90).float().mean() == pytest.approx(0.5, abs=0.01)
    mixed = angles((-90.0, 90.0), sphere_share=0.5)[0].abs()
    assert (mixed > 60).float().mean() == pytest.approx(
        0.5 / 3 + 0.5 * (1 - math.sin(math.radians(60))), abs=0.03
    )


def test_jitter_moves_centre_target_and_upright_by_what_it_says():
    still, moved = (
        CameraRanges(**jitter).sample(4000, 0.0, 64, 64, torch.Generator().manual_seed(0)).cameras.viewmats
        for jitter in (STILL, {"jitter_center": 0.4, "jitter_target": 0.05, "jitter_up": 0.02})
    )
    rotation = moved[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(4000, 3, 3), atol=1e-5, rtol=0)
    shift = position(moved) - position(still)
    assert shift.abs().max() <= 0.2 + 1e-5 and shift.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.03)
    passed = torch.linalg.cross(
        rotation[:, 2], -position(moved)
    )  # how far the axis of view passes the origin, twice over
    assert passed.norm(dim=-1).square().mean().sqrt() == pytest.approx(0.05 * math.sqrt(2), rel=0.05)
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).expand(4000, 3), rotation[:, 2])
    roll = (torch.nn.functional.normalize(right, dim=-1) * rotation[:, 1]).sum(-1).asin()
    assert 0.015 < roll.std() < 0.06  # 0.02, and what the shift of the centre adds


def test_jitter_is_the_official_one_by_default_and_without_it_nothing_is_drawn():
    ranges = CameraRanges()
    assert (ranges.jitter_center, ranges.jitter_target, ranges.jitter_up, ranges.gamma) == (
        0.05,
        0.05,
        0.01,
        1.0,
    )
    ends = []
    for jitter in (STILL, {**STILL, "jitter_up": 0.01}):
        generator = torch.Generator().manual_seed(0)
        CameraRanges(**jitter).sample(2, 0.0, 64, 64, generator)
        ends.append(torch.rand(1, generator=generator))
    generator = torch.Generator().manual_seed(0)
    (
        torch.randperm(2, generator=generator),
        torch.rand(2, generator=generator),
        torch.rand(3, 2, generator=generator),
    )
    assert torch.equal(ends[0], torch.rand(1, generator=generator)) and not torch.equal(*ends)


def test_straight_down_with_jitter_is_finite():
    ranges = CameraRanges(elevation_min_deg=90, elevation_max_deg=90)
    assert ranges.sample(50, 0.0, 64, 64, torch.Generator().manual_seed(0)).cameras.viewmats.isfinite().all()


def test_camera_map_shows_cameras_where_they_stand():
    """One camera direction, behind and to the left of the object (+x): dots in that corner only, early ones
    farther out.
    """
    spot = {"azimuth_min_deg": 130, "azimuth_max_deg": 140, "elevation_min_deg": 40, "elevation_max_deg": 45}
    picture = camera_map(CameraRanges(**spot, **STILL))
    assert picture.shape == (320, 640, 3) and float(picture.min()) >= 0 and float(picture.max()) <= 1
    place = lambda color, half: (
        (picture[:, half * 320 : half * 320 + 320] - torch.tensor(color) / 255).abs().amax(-1) < 0.02
    )
    for half, axis in enumerate((160, 32)):
        early = place(EARLY, half)[:290, :].nonzero().float().mean(0)
        late = place(LATE, half)[:290, :].nonzero().float().mean(0)
        assert early[1] > late[1] > axis and early[0] < late[0] < 160


def test_same_generator_same_views():
    first, second = (
        CameraRanges().sample(3, 0.2, 64, 64, torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first.cameras.viewmats, second.cameras.viewmats)


def test_framed_holds_the_splat_wherever_it_is():
    splats = PointCloud(count=500, size=2.0).splats(0)
    away = type(splats)(splats.means * 100 + 1000, splats.quats, splats.scales, splats.opacities, splats.sh)
    seen, camera = frame_splats(away, 0.3, 0.6, 64, 64)
    torch.testing.assert_close(
        seen.scales[:, None] / seen.means.std(), away.scales[:, None] / away.means.std()
    )
    inside = seen.means @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
    pixels = inside @ camera.Ks[0].T
    pixels = pixels[:, :2] / pixels[:, 2:]
    assert (inside[:, 2] > 0).all() and ((pixels > 0) & (pixels < 64)).float().mean() > 0.98


def one_spot(n, size, spread=0.0):
    """n opaque red Gaussians of a standard deviation on one spot, or around it."""
    means = torch.tensor([[7.0, -3.0, 2.0]]) + spread * torch.randn(
        n, 3, generator=torch.Generator().manual_seed(0)
    )
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    return Splats(
        means,
        quats,
        torch.full((n, 3), size),
        torch.full((n,), 0.9),
        torch.tensor([1.7, -1.7, -1.7]).repeat(n, 1, 1),
    )


@pytest.mark.parametrize(
    "splats",
    [
        one_spot(1, 0.1),
        one_spot(2, 0.01, 1.0),
        one_spot(200, 0.3),
        one_spot(500, 1e-5, 3e-4),
        one_spot(500, 100.0, 3e3),
        one_spot(1, 1e-7),
    ],
    ids=["one", "two", "on one spot", "tiny", "huge", "one tiny"],
)
def test_whatever_has_an_extent_fills_the_frame(splats):
    seen, camera = frame_splats(splats, 0.3, 0.6, 64, 64)
    view = rasterize(seen, camera, 64, 64, background=torch.ones(3))
    rows, columns = (view.alpha[0, ..., 0] > 0.02).nonzero().unbind(-1)
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    edge = torch.cat([view.alpha[0, [0, -1]].flatten(), view.alpha[0, :, [0, -1]].flatten()])
    assert max(height, width) > 32 and edge.mean() < 0.1
    assert view.rgb[0, ..., 0].mean() > view.rgb[0, ..., 1].mean()


@pytest.mark.parametrize("target", [(0.0, 0.0, -5.0), (0.0, 0.0, 5000.0), (0.0, 0.0, 1.0)])
def test_a_view_is_the_same_wherever_its_target_lies(target):
    """Also where the target is the camera's own place, or far behind the splat."""
    splats = PointCloud(count=100, size=1.0, opacity=0.8).splats(0)
    camera = Cameras(
        look(torch.tensor([0.0, 0.0, -5.0]), torch.tensor(target), torch.eye(3)),
        intrinsics(torch.tensor([0.6]), 64, 64),
    )
    before = rasterize(splats, camera, 64, 64)
    after = rasterize(*from_viewing_distance(splats, camera, torch.tensor(target)), 64, 64)
    assert before.alpha.mean() > 0.02
    torch.testing.assert_close(after.rgb, before.rgb, atol=5e-3, rtol=0)


def test_what_cannot_be_seen_is_said():
    faint = one_spot(2, 0.1, 1.0)
    faint.opacities[:] = 1e-3
    seen, camera = frame_splats(faint, 0.3, 0.6, 64, 64)
    assert not rasterize(seen, camera, 64, 64).alpha.any()
    assert "opaque" in why_unseen(faint) and "(7, -3, 2)" in why_unseen(one_spot(1, 0.1))


def test_a_small_splat_is_seen_by_a_camera_of_its_own_size_as_a_large_one_is():
    def picture(size, at):
        splats = one_spot(50, 0.1, 0.3)
        target = torch.tensor(at)
        away = Splats(
            (splats.means - splats.means[0]) * size + target,
            splats.quats,
            splats.scales * size,
            splats.opacities,
            splats.sh,
        )
        pose = look(target + torch.tensor([0.5, -1.0, -2.5]) * size, target)
        camera = Cameras(pose, intrinsics(torch.tensor([0.8]), 48, 48))
        return rasterize(*from_viewing_distance(away, camera, target), 48, 48).rgb

    expected = picture(1.0, (0.0, 0.0, 0.0))
    assert expected.max() > 0.3
    for size, at in (
        (1e-3, (0.0, 0.0, 0.0)),
        (1e4, (0.0, 0.0, 0.0)),
        (1.0, (30.0, -20.0, 10.0)),
        (1e-3, (1.0, 0.0, 0.0)),
    ):
        torch.testing.assert_close(picture(size, at), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "bad",
    [{"radius_min": 6.0}, {"elevation_max_deg": 91}, {"fovy_min_deg": 0}, {"azimuth_min_deg": math.nan}],
)
def test_bad_ranges_are_refused_by_name(bad):
    with raises(BadSetting, name=next(iter(bad))):
        CameraRanges(**bad)


def drawn(close_up, views=400):
    ranges = CameraRanges(**STILL, close_up=close_up)
    return ranges.sample(views, 0.0, 64, 64, torch.Generator().manual_seed(3))


def test_a_close_up_orbits_its_point_and_zooms():
    """The point is in the middle of the image, as far away as the origin was; the angles stay."""
    point, plain, near = torch.tensor([0.1, -0.4, 0.2]), drawn(None), drawn(CloseUp(1.0, 3.0, 0.1, -0.4, 0.2))
    seen = (near.cameras.viewmats[:, :3, :3] @ point) + near.cameras.viewmats[:, :3, 3]
    torch.testing.assert_close(seen[:, :2], torch.zeros(400, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[:, 2], position(plain.cameras.viewmats).norm(dim=-1))
    focal, centre = near.cameras.Ks[:, [0, 1], [0, 1]], near.cameras.Ks[:, :2, 2]
    torch.testing.assert_close(focal, 3 * plain.cameras.Ks[:, [0, 1], [0, 1]])
    torch.testing.assert_close(centre, torch.full((400, 2), 32.0))
    assert torch.equal(near.azimuth_rad, plain.azimuth_rad)
    assert torch.equal(near.elevation_rad, plain.elevation_rad)


def test_a_close_up_takes_its_share_of_the_views_and_leaves_the_others():
    plain, some = drawn(None).cameras, drawn(CloseUp(share=0.25, y=-0.4)).cameras
    same = (plain.Ks == some.Ks).all(-1).all(-1)
    assert 0.18 < 1 - same.float().mean() < 0.32  # 3 standard deviations
    assert torch.equal(plain.viewmats[same], some.viewmats[same])
    none = drawn(CloseUp(share=0.0, y=-0.4)).cameras
    assert torch.equal(plain.viewmats, none.viewmats) and torch.equal(plain.Ks, none.Ks)


def test_a_close_up_out_of_bounds_is_refused():
    with raises(BadSetting, name="share", value=1.5):
        CloseUp(share=1.5)
    with raises(BadSetting, name="zoom", value=0.0):
        CloseUp(zoom=0.0)
