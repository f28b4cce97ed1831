import math
from dataclasses import replace

import numpy as np
import pytest

from demo import shapes
from demo.words import COLORS, KINDS
from demo.world import Thing, bounding_radius, camera_axes, parse, render

FRONT, RIGHT, BACK, LEFT = 0.0, math.pi / 2, math.pi, -math.pi / 2
FOVY = math.radians(25)


def thing(kind: str, color: str = "red") -> Thing:
    return Thing(kind, color, COLORS[color])


@pytest.mark.parametrize(
    "prompt, kind, color",
    [
        ("a red mushroom", "mushroom", "red"),
        ("A photo of a PURPLE cottage, back view", "house", "purple"),
        ("violet donut on a white background", "torus", "purple"),
        ("turquoise cup.", "mug", "cyan"),
        ("an orange ball seen from above", "sphere", "orange"),
    ],
)
def test_parse_finds_the_thing_that_a_prompt_names(prompt, kind, color):
    assert parse(prompt) == Thing(kind, color, COLORS[color])


@pytest.mark.parametrize(
    "prompt",
    ["", "a mushroom", "something red", "a red castle", "a red cube on a blue ball", "a red and green mug"],
)
def test_parse_declines_what_the_world_has_no_single_truth_for(prompt):
    assert parse(prompt) is None


def test_a_thing_of_another_world_is_refused():
    with pytest.raises(ValueError, match="no 'castle'; choose one of cube"):
        Thing("castle", "red", (1, 0, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_solid_lies_within_the_sphere_that_rays_are_cut_to(kind):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4000, 3))
    shell = bounding_radius(kind) + shapes.MARGIN
    points = (
        directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(shell, 1.5, (4000, 1))
    )
    assert min(shapes.surface(KINDS.index(kind), *point)[0] for point in points) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_is_never_much_longer_than_the_way_to_any_other_surface(kind):
    # sphere tracing steps over thin parts where a distance grows faster than one moves
    rng = np.random.default_rng(1)
    start = rng.uniform(-1, 1, (4000, 3))
    end = start + rng.normal(size=(4000, 3)) * 0.05
    for a, b in zip(start, end):
        difference = abs(shapes.surface(KINDS.index(kind), *a)[0] - shapes.surface(KINDS.index(kind), *b)[0])
        assert difference <= 1.1 * np.linalg.norm(a - b)


def test_a_sphere_covers_what_geometry_says():
    rgb, mask = render(thing("sphere"), FRONT, 0, FOVY, 128, radius=4.0)
    seen_radius = math.tan(math.asin(0.8 / 4.0)) / math.tan(FOVY / 2) * 64  # pixels
    assert rgb.shape == (1, 128, 128, 3) and mask.shape == (1, 128, 128)
    assert rgb.dtype == mask.dtype == np.float32
    assert mask.sum() == pytest.approx(math.pi * seen_radius**2, rel=0.005)


def test_a_sphere_is_lit_as_its_normals_say():
    rgb, _ = render(thing("sphere", "green"), FRONT, 0, FOVY, 1, radius=4.0, supersample=1)
    assert rgb[0, 0, 0] == pytest.approx(np.array(COLORS["green"]) * shapes.light(0.0, 0.0, 1.0), abs=2e-3)


def test_azimuth_grows_towards_the_viewers_right():
    (front, right, back, left), _ = render(thing("mug"), [FRONT, RIGHT, BACK, LEFT], 0, FOVY, 64)
    handle = [np.any(view[28:36, at] < 0.9) for view in (front, back) for at in (slice(50, 58), slice(6, 14))]
    assert handle == [
        True,
        False,
        False,
        True,
    ]  # on +x: at the right of the front view, at the left of the back view
    hidden = np.abs(left - left[:, ::-1]).max(axis=-1)[28:36, 28:36].mean()
    shown = np.abs(right - left).max(axis=-1)[28:36, 28:36].mean()
    assert shown > 0.05 > hidden  # only from the right does the handle stand before the cup


def test_the_front_has_the_face():
    (front, back), _ = render(
        thing("snowman", "blue"), [FRONT, BACK], math.radians(15), FOVY, 64, background=0.0
    )
    is_nose = lambda view: view[..., 0] > view[..., 2] + 0.3
    assert is_nose(front).sum() > 3 and is_nose(back).sum() == 0


def test_elevation_grows_upwards():
    (above, below), _ = render(thing("house", "blue"), FRONT, np.radians([80, -80]), FOVY, 64)
    is_roof = lambda view: (view[24:40, 24:40, 0] > view[24:40, 24:40, 2]).mean()
    assert is_roof(above) > 0.9 and is_roof(below) == 0


def test_camera_axes_are_those_of_the_pack():
    torch = pytest.importorskip("torch")
    from lucid_core.cameras import orbit

    rng = np.random.default_rng(2)
    azimuth, elevation = rng.uniform(-4, 4, 8), rng.uniform(-1.4, 1.4, 8)
    angle = torch.from_numpy(azimuth), torch.from_numpy(elevation)
    one = torch.ones(8, dtype=torch.float64)
    rotation = orbit(*angle, one, one, 64, 64).viewmats[:, :3, :3].numpy()  # rows right, down, forward
    ours = camera_axes(azimuth, elevation) * [1, -1, -1]  # world -> splat frame
    np.testing.assert_allclose(ours * np.array([1, -1, 1])[:, None], rotation, atol=1e-12)


def test_views_of_many_things_are_those_of_each_alone():
    things = [thing("cone", "blue"), thing("torus", "yellow"), replace(thing("cube"), rgb=(0.2, 0.3, 0.4))]
    angles = np.array([0.1, 2.0, -1.0])
    together, masks = render(things, angles, 0.4, 0.5, 32, fill=[0.7, 0.8, 0.9], background=[1, 0.5, 0.2])
    for i, one in enumerate(things):
        rgb, mask = render(one, angles[i], 0.4, 0.5, 32, fill=0.7 + 0.1 * i, background=[1, 0.5, 0.2][i])
        np.testing.assert_array_equal(together[i], rgb[0])
        np.testing.assert_array_equal(masks[i], mask[0])


def test_offset_moves_the_picture_right_and_down():
    (rgb,), _ = render(thing("house"), 0.3, 0.2, FOVY, 32)
    (moved,), _ = render(thing("house"), 0.3, 0.2, FOVY, 32, offset=(2 / 32, 1 / 32))
    np.testing.assert_allclose(moved[1:, 2:], rgb[:-1, :-2], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fill_is_the_share_that_the_bounding_sphere_takes(kind):
    _, mask = render(thing(kind), np.arange(8) * math.pi / 4, 0.3, FOVY, 64, fill=0.8)
    covered = mask.max(axis=(0, 1)) > 0  # columns
    width = 64 - 2 * min(covered.argmax(), covered[::-1].argmax())
    assert 0.45 * 64 < width <= 0.8 * 64 + 3
