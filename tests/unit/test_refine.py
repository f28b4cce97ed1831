"""Starting from a splat that is there: limits, locks, a selection, and its own place and size."""

import dataclasses
import math

import pytest
import torch
from raising import raises

from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import BadSetting
from lucid_core.frames import RADIUS, Frame
from lucid_core.guidance.baselines import METHODS
from lucid_core.guidance.ism import ISM
from lucid_core.optimize.checkpoint import read, settings_of, write
from lucid_core.optimize.config import Task
from lucid_core.optimize.densify import Densify
from lucid_core.optimize.selection import Selection, Subject, join_splats, whole_splat
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.splats import Splats
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, GROWING, MCMC, METHOD, WishPrior, disc, dream, normal, run

STILL = Densify(grow_grad2d=NO_GROWTH, prune_opacity=0.0, reset_every=0.0)
FEW = replace_settings(CONFIG, steps=8, scale_weight=1.0, densify=STILL)
HALF = Selection("box", x=5.0, width=10.0, height=10.0, depth=10.0)  # x > 0


def some(count=300, sh=1):
    """Splats that no activation leaves alone: quaternions of any length, opacities of 0 and 1, colours out of
    range.
    """
    generator = torch.Generator().manual_seed(1)
    cloud = PointCloud(count=count, size=1.2).splats(0)
    colors = torch.randn(count, sh, 3, generator=generator)
    opacities = torch.rand(count, generator=generator)
    opacities[:2] = torch.tensor([0.0, 1.0])
    return Splats(
        cloud.means, 3 * torch.randn(count, 4, generator=generator), cloud.scales, opacities, colors
    )


def refined(start, config=FEW, selection=None, fit=False):
    """The whole splat after a run."""
    wish, anything = normal(disc([0.9, 0.2, 0.1]), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
    prompts = Prompts((wish,) * 4, negative=anything, inverse=anything)
    subject = Subject.of(start, selection, fit)
    *_, last = dream(subject.free, WishPrior(), METHOD, prompts, CAMERAS, config, seed=0, fixed=subject.fixed)
    return subject.whole(last.splats, config.task.freeze_geometry)


def equal(a, b, *names):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("fit", [False, True])
def test_frozen_geometry_keeps_its_bits_and_takes_new_colours(fit):
    start = some()
    after = refined(start, replace_settings(FEW, freeze_geometry=True, densify=GROWING), fit=fit)
    assert equal(after, start, "means", "quats", "scales", "opacities")
    assert (after.sh - start.sh).abs().mean() > 0.01


def test_frozen_colours_keep_their_bits_while_the_rest_moves():
    start = some(sh=4)
    after = refined(start, replace_settings(FEW, freeze_color=True))
    assert equal(after, start, "sh") and not equal(after, start, "means")
    with raises(BadSetting, name="freeze_color", value=True):
        Task(freeze_color=True, freeze_geometry=True)


@pytest.mark.parametrize("densify", [GROWING, MCMC], ids=["default", "mcmc"])
@pytest.mark.parametrize("fit", [False, True])
def test_what_is_not_selected_keeps_its_bits_while_the_rest_grows(densify, fit):
    start = some()
    outside = start.means[:, 0] < 0
    after = refined(start, replace_settings(FEW, steps=12, densify=densify), HALF, fit)
    rest = after.map(lambda x: x[-int(outside.sum()) :])
    assert equal(rest, start.map(lambda x: x[outside]), *vars(start))
    assert len(after) != len(start)


def test_what_is_not_selected_is_seen():
    """A ball that is right but for its half: only the whole view tells the model so. Here: the other half
    changes the loss.
    """
    start, config = some(), replace_settings(FEW, steps=1)
    alone = start.map(lambda x: x[start.means[:, 0] >= 0])
    among, by_itself = refined(start, config, HALF), refined(alone, config)
    assert not torch.equal(among.sh[: len(alone)], by_itself.sh)


def test_a_selection_of_all_is_none_and_of_nothing_is_refused():
    start = some()
    everything = Selection("box", width=100, height=100, depth=100)
    assert Subject.of(start, everything).rest is None
    assert equal(refined(start, selection=everything), refined(start), *vars(start))
    with raises(BadSetting, name="selection", value="empty"):
        Subject.of(start, Selection(x=9.0))


def test_boxes_and_ellipsoids():
    points = torch.tensor(
        [[1.0, 2.0, 3.0], [1.9, 2.0, 3.0], [1.0, 3.9, 3.0], [1.9, 3.9, 3.0], [2.1, 2.0, 3.0]]
    )
    place = {"x": 1.0, "y": 2.0, "z": 3.0, "width": 2.0, "height": 4.0, "depth": 1.0}
    assert Selection("box", **place).mask(points).tolist() == [True, True, True, True, False]
    assert Selection("sphere", **place).mask(points).tolist() == [True, True, True, False, False]
    for bad in ({"shape": "cone"}, {"width": 0.0}, {"x": math.nan}):
        with raises(BadSetting, name=next(iter(bad))):
            Selection(**bad)


@pytest.mark.parametrize(
    "place, size", [((0.0, 0.0, 0.0), 1.0), ((3.0, -2.0, 700.0), 250.0), ((1e6, 1e6, -1e6), 1e3)]
)
def test_a_splat_of_any_place_and_size_is_put_where_the_cameras_look_and_back(place, size):
    start = some()
    far = dataclasses.replace(
        start, means=start.means * size + torch.tensor(place), scales=start.scales * size
    )
    frame = Frame.of(far)
    inside = frame.enter(far)
    assert (
        inside.means.norm(dim=-1).quantile(0.98) < RADIUS * 1.01
        and inside.means.median(dim=0).values.abs().max() < 1e-3
    )
    back = frame.leave(inside)
    ulp = far.means.abs().amax() * 2**-23
    assert (back.means - far.means).abs().max() <= ulp
    torch.testing.assert_close(back.scales, far.scales, rtol=3e-7, atol=0)


def test_a_fitted_run_is_the_run_of_the_fitted_splat():
    """Far away and a thousand times as large, it becomes what it becomes in the middle."""
    start = some()
    far = dataclasses.replace(start, means=start.means * 1024, scales=start.scales * 1024)
    near, after = refined(start, fit=True), refined(far, fit=True)
    torch.testing.assert_close(after.means / 1024, near.means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("splats", [1, 3])
def test_very_few_gaussians_have_a_frame(splats):
    start = some().map(lambda x: x[:splats])
    assert Frame.of(start).enter(start).means.isfinite().all()
    assert refined(start, replace_settings(FEW, steps=2), fit=True).means.isfinite().all()


@pytest.mark.parametrize(
    "method", [ISM(), *(kind() for kind in METHODS.values())], ids=lambda method: type(method).__name__
)
def test_strength_limits_the_noise(method):
    assert method.with_strength(1.0) is method
    weak = method.with_strength(0.3)
    top = getattr(method, "t_max_start", method.t_max)
    assert getattr(weak, "t_max_start", weak.t_max) == pytest.approx(
        method.t_min + 0.3 * (top - method.t_min)
    )
    assert method.t_min < weak.t_max <= method.t_max
    method.with_strength(0.01)


def test_strength_limits_the_first_noise_levels_too():
    weak = ISM(t_min_start=0.5).with_strength(0.4)
    assert weak.t_min_start < weak.t_max_start == pytest.approx(0.404)
    assert ISM().with_strength(0.4).t_min_start == 0


def test_less_strength_stays_nearer_to_the_start():
    start = some()
    moved = [
        float((refined(start, replace_settings(FEW, strength=s)).means - start.means).norm())
        for s in (0.1, 0.4, 1.0)
    ]
    assert moved[0] < 0.5 * moved[1] < 0.5 * moved[2]
    assert equal(
        refined(start, replace_settings(FEW, strength=1.0)), run(FEW, start=start)[-1].splats, *vars(start)
    )


def test_a_checkpoint_of_a_part_gives_the_whole_splat(tmp_path):
    start, config = some(), FEW
    start = dataclasses.replace(start, means=start.means * 7 + 2)
    selection = Selection(x=7.0, y=2.0, z=2.0, width=10.0, height=30.0, depth=30.0)
    subject = Subject.of(start, selection, fit=True)
    wish = normal(disc([0.9, 0.2, 0.1]), 0.01)
    prompts = Prompts((wish,) * 4, negative=wish, inverse=wish)
    *_, last = dream(subject.free, WishPrior(), METHOD, prompts, CAMERAS, config, seed=0, fixed=subject.fixed)
    settings = settings_of(start, 0, config, selection, subject.frame)
    write(tmp_path / "part", subject.kept(last.checkpoint()), settings)
    checkpoint, saved = read(tmp_path / "part")
    assert saved == settings and equal(
        whole_splat(checkpoint, saved), subject.whole(last.splats), *vars(start)
    )
    again = dream(
        subject.free, WishPrior(), METHOD, prompts, CAMERAS, config, 0, resume=checkpoint, fixed=subject.fixed
    )
    assert equal(next(again).splats, last.splats, *vars(start))


def test_joining_fills_missing_bands_of_colour():
    both = join_splats(some(5, sh=1), some(4, sh=4))
    assert both.sh.shape == (9, 4, 3) and not both.sh[:5, 1:].any() and both.sh[5:, 1:].all()
