"""The body of capsules: its surface, and its skeleton as OpenPose draws it."""

import colorsys
import math

import pytest
import torch
from raising import raises

from lucid_core.cameras import orbit
from lucid_core.errors import BadSetting
from lucid_core.rasterize import rasterize
from lucid_core.starts.body import (
    CENTRE,
    KEYPOINTS,
    POSES,
    TO_WORLD,
    Body,
    Capsule,
    capsules,
    joints,
    surface,
)

SIZE = 512
FACE, EARS = ("nose", "right eye", "left eye"), ("right ear", "left ear")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    pass


def test_the_depth_of_a_capsule_is_that_of_its_ball_at_each_end():
    capsule = Capsule(torch.zeros(3), torch.tensor([2.0, 0.0, 0.0]), 0.5, 0.3)
    points = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1, 0.4, 0], [2, 0, 0.3], [3, 0, 0]])
    torch.testing.assert_close(capsule.depth(points), torch.tensor([-0.5, 0.5, 0.0, 0.0, -0.7]))


def test_the_surface_of_a_ball_is_a_ball():
    """Its volume, with faces outwards, to the error of the grid."""
    points, faces = surface([Capsule(torch.zeros(3), torch.tensor([1e-6, 0, 0]), 0.2, 0.2)])
    torch.testing.assert_close(points.norm(dim=-1), torch.full((len(points),), 0.2), atol=1e-3, rtol=0)
    assert volume(points, faces) == pytest.approx(4 / 3 * math.pi * 0.2**3, rel=0.01)


def volume(points, faces):
    """By the divergence theorem; negative where the faces look inwards."""
    a, b, c = points.double()[faces].unbind(1)
    return float((torch.linalg.cross(a, b) * c).sum() / 6)


@pytest.mark.parametrize("pose", POSES)
def test_the_body_is_one_closed_surface_around_its_joints(pose):
    mesh = Body(pose).mesh()
    edges = torch.cat([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    assert {*map(tuple, edges.tolist())} == {*map(tuple, edges.flip(1).tolist())}
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    assert high[1] == pytest.approx(0.5, abs=0.01) and low[1] == pytest.approx(-0.49, abs=0.02)
    # A person of 70 kg and 1.75 m has 0.013 of the cube of the height.
    assert 0.009 < volume(mesh.vertices, mesh.faces) < 0.018
    places = joints(POSES[pose])
    inside = torch.stack([part.depth(torch.stack([*places.values()])) for part in capsules(places)]).amax(0)
    on_the_face = {*FACE, "right ear", "left ear"}
    assert [name for name, depth in zip(places, inside) if depth < 0] == [
        n for n in places if n in on_the_face
    ]
    assert inside.min() > -0.02


@pytest.mark.parametrize("pose", ["A pose", "T pose"])
def test_a_pose_that_stands_is_symmetric(pose):
    across = Body(pose).mesh().vertices[:, 0]
    assert float(-across.min()) == pytest.approx(float(across.max()), abs=0.005)


def test_the_height_scales_both():
    small, large = Body("walking"), Body("walking", height=2.0)
    torch.testing.assert_close(large.mesh().vertices, 2 * small.mesh().vertices)
    torch.testing.assert_close(large.skeleton().means, 2 * small.skeleton().means)
    torch.testing.assert_close(large.skeleton().scales, 2 * small.skeleton().scales)


def seen_at_the_keypoints(pose, azimuth_deg):
    """Keypoint -> colour (3,) of the skeleton's picture there."""
    one = torch.ones(1)
    camera = orbit(one * math.radians(azimuth_deg), 0 * one, 5 * one, one * math.radians(15), SIZE, SIZE)
    body = Body(pose)
    picture = rasterize(body.skeleton(), camera, SIZE, SIZE).rgb[0]
    places = joints(POSES[pose])
    points = torch.stack([places[name] for name in KEYPOINTS])
    world = (points - CENTRE) * TO_WORLD
    x, y, z = (camera.viewmats[0, :3, :3] @ world.T + camera.viewmats[0, :3, 3:]).unbind(0)
    K = camera.Ks[0]
    columns, rows = (K[0, 0] * x / z + K[0, 2]).long(), (K[1, 1] * y / z + K[1, 2]).long()
    return {name: picture[r, c] for name, r, c in zip(KEYPOINTS, rows, columns)}, columns


def color_of(name):
    return torch.tensor(colorsys.hsv_to_rgb(KEYPOINTS.index(name) / 18, 1.0, 1.0))


@pytest.mark.parametrize("pose", ["A pose", "T pose"])
@pytest.mark.parametrize("azimuth, hidden", [(0, EARS), (180, FACE)])
def test_the_skeleton_has_openposes_colours(pose, azimuth, hidden):
    """From the front the ears are partly behind their limbs."""
    colors, columns = seen_at_the_keypoints(pose, azimuth)
    for name in {*KEYPOINTS} - {*hidden}:
        torch.testing.assert_close(colors[name], color_of(name), atol=0.05, rtol=0, msg=name)
    left, right = (columns[KEYPOINTS.index(f"{side} wrist")] for side in ("left", "right"))
    assert (left > SIZE / 2 > right) == (azimuth == 0)  # from the front its left is at the viewer's right


def test_the_head_hides_the_face_from_behind_and_the_far_ear_from_the_side():
    behind, _ = seen_at_the_keypoints("A pose", 180)
    assert max(float(behind[name].max()) for name in FACE) < 0.05
    side, _ = seen_at_the_keypoints("A pose", 90)  # both ears are at one place
    assert (side["right ear"] - color_of("left ear")).abs().max() < 0.05


def test_what_is_no_pose_or_height_is_refused():
    with raises(BadSetting, name="pose", value="'sitting'"):
        Body("sitting")
    with raises(BadSetting, name="height", value=0.0):
        Body(height=0.0)
