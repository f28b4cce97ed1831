"""The picture as a view of its own: its camera, its loss, and a run whose front becomes the picture."""

import math

import pytest
import torch

from lucid_core.cameras import orbit
from lucid_core.conditioning.picture import Picture, PictureView
from lucid_core.conditioning.picture_prompt import PicturePrompt
from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource, Mix, MixedSource
from lucid_core.optimize.loop import distil
from lucid_core.optimize.picture_view import picture_targets, without_augmentation
from lucid_core.rasterize import Render, rasterize
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, METHOD, SIZE, WishPrior, disc, normal

RED, BLUE = [0.9, 0.2, 0.1], [0.1, 0.2, 0.9]


def ball(**view):
    """A picture of a red disc, with a round depth map."""
    rgb = disc(RED)[0].movedim(0, -1)
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    inside = 0.6**2 - axis[:, None] ** 2 - axis[None] ** 2
    alpha = (inside > 0)[..., None].float()
    return Picture(rgb, alpha, PictureView(fill=0.0, **view), inside.clamp_min(0).sqrt()[..., None])


def camera_source(picture, color=BLUE):
    """A camera model that wants a disc of `color` from every camera; the picture is another one."""
    wish, anything = normal(disc(color), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
    return GuidanceSource(WishPrior(), METHOD, PicturePrompt((wish,) * 5, anything, anything, picture))


def text_source():
    wish, anything = normal(disc(BLUE), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
    return GuidanceSource(WishPrior(), METHOD, Prompts((wish,) * 4, anything, anything))


def target(picture):
    (found,) = picture_targets(camera_source(picture), CAMERAS, SIZE, torch.device("cpu"))
    return found


def as_render(picture, depth=None):
    depth = torch.ones_like(picture.alpha) if depth is None else depth
    return Render(picture.rgb[None], picture.alpha[None], (depth * picture.alpha)[None], {})


def front_error(splats, elevation=0.0, azimuth=0.0):
    one = torch.ones(1)
    angles = one * math.radians(azimuth), one * math.radians(elevation)
    camera = orbit(*angles, one * 5.3, one * math.radians(26), SIZE, SIZE)
    with torch.no_grad():
        rgb = rasterize(splats, camera, SIZE, SIZE, background=torch.ones(3)).rgb[0]
    return float((rgb - ball().rgb).square().mean())


def final(source, config=CONFIG, seed=0):
    start = PointCloud(count=600, size=1.2).splats(0)
    *_, last = distil(start, source, CAMERAS, config, seed)
    return last


def test_the_camera_is_at_the_pictures_angles_and_the_ranges_middle():
    ranges = replace_settings(CAMERAS, radius_max=5.9, fovy_max_deg=34.0)
    (found,) = picture_targets(
        camera_source(ball(elevation_deg=20.0, azimuth_deg=-70.0)), ranges, 32, torch.device("cpu")
    )
    expected = orbit(
        *(torch.tensor([x]) for x in (math.radians(-70), math.radians(20), 5.6, math.radians(30))), 32, 32
    )
    torch.testing.assert_close(found.camera.viewmats, expected.viewmats)
    torch.testing.assert_close(found.camera.Ks, expected.Ks)
    assert found.picture.rgb.shape == (32, 32, 3) and found.picture.disparity.shape == (32, 32, 1)


def test_each_picture_of_a_mix_is_taken_once_and_weight_0_not_at_all():
    picture = ball()
    count = lambda source: len(picture_targets(source, CAMERAS, SIZE, torch.device("cpu")))
    mixed = MixedSource(camera_source(picture), camera_source(picture), Mix("add"))
    assert count(MixedSource(mixed, text_source(), Mix("switch"))) == 1
    assert count(MixedSource(mixed, camera_source(ball()), Mix("switch"))) == 2
    assert count(camera_source(ball(weight=0.0))) == count(text_source()) == 0


def test_the_loss_is_0_at_the_picture_and_proportional_to_its_weight():
    picture, other = ball(depth_weight=0.0), Picture(torch.ones(SIZE, SIZE, 3), torch.zeros(SIZE, SIZE, 1))
    assert float(target(picture).loss(as_render(picture))) == pytest.approx(0, abs=1e-6)
    losses = [float(target(ball(weight=w, depth_weight=0.0)).loss(as_render(other))) for w in (1.0, 3.0)]
    assert losses[1] == pytest.approx(3 * losses[0]) and losses[0] > 0


def test_the_depth_counts_up_to_scale_and_shift():
    picture = ball(depth_weight=1.0)
    loss = lambda inverse: float(target(picture).loss(as_render(picture, 1 / inverse)))
    assert loss(3 + 0.5 * picture.disparity) == pytest.approx(0, abs=1e-5)
    assert loss(3 - 0.5 * picture.disparity) == pytest.approx(2, abs=1e-5)


def test_the_depth_of_a_view_without_object_has_no_gradient_and_is_finite():
    picture = ball(depth_weight=1.0)
    empty = Render(*(torch.zeros(1, SIZE, SIZE, n, requires_grad=True) for n in (3, 1, 1)), {})
    loss = target(picture).loss(empty)
    loss.backward()
    assert loss.isfinite() and empty.depth.grad.abs().max() == 0


def test_views_for_a_picture_are_plain():
    config = replace_settings(CONFIG, background_share=0.5, flip_share=0.5, disparity_share=0.2)
    mixed = MixedSource(text_source(), camera_source(ball()), Mix("add"))
    plain = without_augmentation(config, mixed).optimizer.augmentation
    assert (plain.background_share, plain.flip_share, plain.disparity_share) == (0, 0, 0)
    assert without_augmentation(config, text_source()) is config


@pytest.mark.parametrize("azimuth", [0.0, 90.0])
def test_the_front_becomes_the_picture_and_the_rest_what_the_model_wants(azimuth):
    """The model wants blue from everywhere, the picture is red. Its latents are pixels, hence the weight."""
    held = final(camera_source(ball(azimuth_deg=azimuth, weight=10.0)))
    left = final(camera_source(ball(azimuth_deg=azimuth, weight=0.0)))
    assert front_error(held.splats, azimuth=azimuth) < 0.1 * front_error(left.splats, azimuth=azimuth)
    assert front_error(held.splats, azimuth=azimuth + 180) > 0.5 * front_error(left.splats)
    assert held.losses["picture"] > 0 and "picture" not in left.losses


def test_image_targets_hold_the_picture_too():
    targets = ImageTargets(views=2, kept=4, fits=20, cfg=1.0, cfg_last=1.0, grow_grad2d=NO_GROWTH)
    source = lambda weight: GuidanceSource(WishPrior(), targets, camera_source(ball(weight=weight)).prompts)
    held, left = (final(source(weight)) for weight in (3.0, 0.0))
    assert front_error(held.splats) < 0.3 * front_error(left.splats)
