"""The fit of a splat to given pictures: its losses, its loop, and what it refuses."""

import dataclasses
import math

import pytest
import torch
from raising import raises
from same import same

from lucid_core.cameras import Cameras, turntable
from lucid_core.errors import BadInput, BadSetting
from lucid_core.frames import Frame
from lucid_core.optimize import losses
from lucid_core.optimize.checkpoint import read, write
from lucid_core.optimize.densify import Densify
from lucid_core.optimize.views import (
    PRESETS,
    PosedImages,
    ViewFit,
    fit_views,
    frame_of,
    score_views,
)
from lucid_core.rasterize import rasterize
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import same_end

pytestmark = pytest.mark.usefixtures("one_thread")
W, H, VIEWS = 40, 32, 8
CAMERAS = turntable(VIEWS, 15.0, 5.0, 30.0, W, H)
CONFIG = replace_settings(
    PRESETS["cpu"],
    steps=40,
    densify=Densify(start=0.2, stop=0.8, every=0.2, prune_scale3d=0.0, reset_every=0.0, max_splats=400),
)
NO_CHANGE_OF_NUMBER = replace_settings(CONFIG, densify=Densify(start=1.0, stop=1.0))
FIT = ViewFit(held_out=4)


def ball(count=150, **settings):
    return PointCloud(count=count, size=1.5, **settings).splats(1)


def truth():
    return dataclasses.replace(ball(color=(0.9, 0.2, 0.1)), opacities=torch.full((150,), 0.9))


def shots(background=1.0):
    with torch.no_grad():
        render = rasterize(truth(), CAMERAS, W, H, background=torch.full((3,), background), backend="numba")
    disparity = render.alpha / render.depth.clamp_min(1e-6)
    return PosedImages(render.rgb.clamp(0, 1), CAMERAS, render.alpha[..., 0], disparity[..., 0])


def fitted(views, fit=FIT, config=CONFIG, start=None, seed=3, **others):
    return list(fit_views(start or ball(), views, fit, config, seed, "numba", **others))


# ---- losses


def test_ssim_is_the_formula_of_its_paper():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 14, 13, 3, generator=g, dtype=torch.float64)
    offset = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window = window / window.sum()
    for i in range(2):
        found = []
        for y in range(4):
            for x in range(3):
                for c in range(3):
                    p, q = (z[i, y : y + 11, x : x + 11, c] for z in (a, b))
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    found.append(
                        (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
                    )
        assert torch.allclose(losses.ssim(a, b)[i], torch.stack(found).mean(), rtol=1e-10)
    assert torch.allclose(losses.ssim(a, a), torch.ones(2, dtype=torch.float64))


def test_decorrelation_ignores_scale_and_shift_and_invalid_pixels():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 5, 6, 1, generator=g, dtype=torch.float64)
    valid = torch.rand(2, 5, 6, 1, generator=g) < 0.7
    spoiled = torch.where(valid, 3 * x + 2, 1e3)
    assert losses.decorrelation(x, spoiled, valid) < 1e-12
    assert abs(losses.decorrelation(x, -spoiled, valid) - 2) < 1e-12
    assert losses.decorrelation(x, spoiled, torch.zeros_like(valid)) == 0
    y = torch.rand(2, 5, 6, 1, generator=g, dtype=torch.float64)
    expected = [1 - torch.corrcoef(torch.stack([x[i][valid[i]], y[i][valid[i]]]))[0, 1] for i in range(2)]
    assert torch.allclose(losses.decorrelation(x, y, valid), torch.stack(expected).mean())


def test_cameras_in_a_frame_see_the_same():
    splats = dataclasses.replace(truth(), means=truth().means * 0.01 + torch.tensor([3.0, -2.0, 7.0]))
    splats = dataclasses.replace(splats, scales=splats.scales * 0.01)
    cameras = Frame((-300.0, 200.0, -700.0), 100 * 0.6).enter_cameras(CAMERAS)
    moved = rasterize(splats, cameras, W, H, backend="reference")
    assert (moved.rgb - rasterize(truth(), CAMERAS, W, H, backend="reference").rgb).abs().max() < 1e-3


# ---- the fit


def test_a_fit_comes_close_to_views_that_it_has_not_seen():
    part, held_out = shots().divide(FIT.held_out)
    assert (len(part), len(held_out)) == (6, 2)
    before = score_views(ball(), held_out, FIT, "numba")
    steps = fitted(part, config=NO_CHANGE_OF_NUMBER)
    after = score_views(steps[-1].splats, held_out, FIT, "numba")
    assert after.psnr > before.psnr + 5 and after.ssim > before.ssim
    assert set(steps[0].losses) == {"pixels", "scale", "mask", "depth"}
    assert steps[-1].evaluations == 0


def test_the_same_seed_gives_the_same_splat_and_a_resumed_run_is_the_run(tmp_path):
    views, halves = shots(), []
    for step in fit_views(ball(), views, FIT, CONFIG, 3, "numba"):
        if step.step == 20:
            halves.append(step.checkpoint())
    whole = fitted(views)
    assert same_end(whole[-1], step)
    write(tmp_path / "half.safetensors", halves[0], {})
    resumed = fitted(views, resume=read(tmp_path / "half.safetensors")[0])
    assert resumed[0].step == 20 and same_end(resumed[-1], whole[-1])


def test_growth_follows_the_threshold_of_the_fit():
    none, much = (
        fitted(shots(), dataclasses.replace(FIT, grow_grad2d=at))[-1].splats for at in (NO_GROWTH, 1e-6)
    )
    assert len(none) <= 150 < len(much) <= 400


def test_what_lies_outside_an_ignoring_mask_has_no_effect():
    views, fit = shots(), dataclasses.replace(FIT, mask_use="ignore", ssim_weight=0.0)
    masks = torch.zeros(VIEWS, H, W)
    masks[:, 8:24, 10:30] = 1
    views = dataclasses.replace(views, masks=masks, disparities=None)
    noise = torch.rand(views.images.shape, generator=torch.Generator().manual_seed(0))
    other = dataclasses.replace(views, images=torch.where(masks[..., None] > 0, views.images, noise))
    a, b = fitted(views, fit)[-1], fitted(other, fit)[-1]
    assert "mask" not in a.losses and same(a.splats, b.splats)
    scores = [score_views(a.splats, one, fit, "numba") for one in (views, other)]
    assert math.isclose(scores[0].psnr, scores[1].psnr) and math.isclose(scores[0].ssim, scores[1].ssim)


def test_the_ssim_of_ignoring_masks_is_of_the_pixels_within():
    """Ignored pixels would raise it to the middle between that of the others and 1."""
    views, fit = shots(), dataclasses.replace(FIT, mask_use="ignore")
    masks = torch.zeros(VIEWS, H, W)
    masks[:, :, : W // 2] = 1
    start = PointCloud(count=100, size=1.2).splats(0)
    score = lambda masks: score_views(start, dataclasses.replace(views, masks=masks), fit, "numba").ssim
    assert score(torch.ones_like(masks)) < 0.3 and score(masks) < 0.4 and score(1 - masks) < 0.4


def test_a_mask_that_cuts_out_replaces_the_background():
    fit = ViewFit(background=(0.0, 0.0, 1.0), mask_use="cut out")
    views = shots()
    half = dataclasses.replace(views, masks=torch.full((VIEWS, H, W), 0.25))
    expected = 0.25 * views.images + 0.75 * torch.tensor([0.0, 0.0, 1.0])
    assert torch.allclose(half.prepare(fit).images, expected)
    assert torch.equal(views.prepare(ViewFit()).images, views.images)


def test_locked_geometry_stays_and_fixed_gaussians_too():
    config = replace_settings(CONFIG, freeze_geometry=True, steps=5)
    (*_, last), start = fitted(shots(), config=config), ball()
    assert torch.equal(last.splats.means, start.means) and not torch.equal(last.splats.sh, start.sh)


def test_a_scene_of_any_size_is_fitted_alike():
    views, far = shots(), torch.tensor([30.0, 20.0, -50.0])
    moved = ball().scale_by(64.0)
    moved = dataclasses.replace(moved, means=moved.means + far)
    viewmats = views.cameras.viewmats.clone()
    viewmats[:, :3, 3] = 64 * viewmats[:, :3, 3] - viewmats[:, :3, :3] @ far
    big = dataclasses.replace(views, cameras=Cameras(viewmats, views.cameras.Ks))
    config = replace_settings(NO_CHANGE_OF_NUMBER, steps=10)
    seen = []
    for start, one in ((ball(), views), (moved, big)):
        frame = frame_of(start, one)
        steps = fitted(one.enter(frame), start=frame.enter(start), config=config)
        seen.append([step.losses["pixels"] for step in steps])
    assert seen[0] == pytest.approx(seen[1], rel=2e-3) and seen[0][-1] < seen[0][0]


# ---- what is refused


def test_pictures_and_cameras_that_do_not_belong_together_are_refused():
    views = shots()
    with raises(BadInput, name="cameras"):
        dataclasses.replace(views, images=views.images[:3], masks=None, disparities=None)
    with raises(BadInput, name="mask"):
        dataclasses.replace(views, masks=views.masks[:, :5])
    with raises(BadInput, name="depth"):
        dataclasses.replace(views, disparities=views.disparities[:2])
    with raises(BadInput, name="image"):
        dataclasses.replace(views, images=views.images * float("nan"))
    with raises(BadInput, name="image"):
        PosedImages(views.images[:, :10], CAMERAS)
    with raises(BadSetting, name="held_out", value=1):
        ViewFit(held_out=1)


def test_cameras_that_cannot_show_the_splat_are_refused():
    views = shots()
    with raises(BadInput, name="cameras") as same_way:
        fitted(views.select(torch.tensor([0, 0, 0])))
    with raises(BadInput, name="cameras") as one:
        fitted(views.select(torch.tensor([0])))
    assert all("same direction" in caught.value.problem for caught in (same_way, one))
    aside = dataclasses.replace(ball(), means=ball().means + torch.tensor([0.0, 100.0, 0.0]))
    with raises(BadInput, name="cameras") as unseen:
        fitted(views, start=aside)
    assert "do not see" in unseen.value.problem


def test_a_fit_without_held_out_views_fits_all():
    views = shots()
    assert views.divide(0) == (views, None)
    assert views.divide(100) == (views, None)
