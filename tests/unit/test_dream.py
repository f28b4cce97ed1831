"""The loop, with a prior whose wish is known."""

import dataclasses
import math

import pytest
import torch
from raising import raises

from lucid_core.cameras import turntable
from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import BadSetting, BadSplats, NoGaussiansLeft, NotFinite
from lucid_core.guidance.baselines import METHODS
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.tsm import TSM
from lucid_core.optimize.densify import Densify
from lucid_core.rasterize import rasterize
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.splats import SH_C0, Splats
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, METHOD, SIZE, WishPrior, disc, dream, normal, run


@pytest.fixture(scope="module")
def steps():
    return run()


def test_it_yields_every_step_and_counts_evaluations(steps):
    assert [step.step for step in steps] == list(range(1, 61))
    evaluations = [step.evaluations for step in steps]
    assert evaluations == sorted(evaluations) and evaluations[-1] >= 60 * 2 * 2  # views; inversion and prompt
    assert all(math.isfinite(value) for step in steps for value in step.losses.values())


def test_the_splat_becomes_what_the_prior_wants(steps):
    """PSNR to the wished picture rises by at least 8 dB, from every side."""
    cameras = turntable(4, 0.0, 5.3, 26.0, SIZE, SIZE)
    wish = disc([0.9, 0.2, 0.1]).movedim(1, -1)

    def psnr(splats):
        with torch.no_grad():
            image = rasterize(splats, cameras, SIZE, SIZE, background=torch.ones(3)).rgb
        return -10 * (image - wish).square().mean().log10()

    assert psnr(steps[-1].splats) > psnr(PointCloud(count=600, size=1.2).splats(0)) + 8


def test_same_seed_same_splat_bit_for_bit(steps):
    again, other = (
        run(replace_settings(CONFIG, steps=60)),
        run(replace_settings(CONFIG, steps=60), seed=1),
    )
    assert torch.equal(again[-1].splats.means, steps[-1].splats.means)
    assert torch.equal(again[-1].splats.sh, steps[-1].splats.sh)
    assert len(other[-1].splats) != len(again[-1].splats) or not torch.equal(
        other[-1].splats.means, again[-1].splats.means
    )


def test_the_global_generator_is_left_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    run(
        replace_settings(
            CONFIG,
            steps=8,
            densify=dataclasses.replace(CONFIG.optimizer.densify, start=0.0, every=0.2, grow_grad2d=0.0),
        )
    )
    assert torch.equal(torch.rand(3), expected)


def test_splats_are_added_pruned_and_capped():
    grow = dataclasses.replace(
        CONFIG.optimizer.densify,
        start=0.1,
        stop=1.0,
        every=0.2,
        grow_grad2d=0.0,
        prune_opacity=0.0,
        reset_every=0,
    )
    counts = [len(step.splats) for step in run(replace_settings(CONFIG, steps=20, densify=grow))]
    assert counts[-1] > 600
    capped = dataclasses.replace(grow, max_splats=600)
    assert {len(step.splats) for step in run(replace_settings(CONFIG, steps=20, densify=capped))} == {600}
    prune = dataclasses.replace(grow, grow_grad2d=NO_GROWTH, prune_opacity=0.1)
    assert 0 < len(run(replace_settings(CONFIG, steps=20, densify=prune))[-1].splats) < 600


def test_a_run_that_prunes_everything_says_so():
    prune = dataclasses.replace(
        CONFIG.optimizer.densify, start=0.0, every=0.2, grow_grad2d=NO_GROWTH, prune_opacity=0.999
    )
    with pytest.raises(NoGaussiansLeft):
        run(replace_settings(CONFIG, steps=20, densify=prune))


def test_opacities_are_reset_on_time():
    """gsplat 1.5's DefaultStrategy never resets (operator precedence); ours must."""
    reset = dataclasses.replace(
        CONFIG.optimizer.densify, start=0.9, stop=1.0, reset_every=0.5, prune_opacity=0.005
    )
    steps = run(replace_settings(CONFIG, steps=20, densify=reset))
    assert steps[9].splats.opacities.max() <= 0.0101 < steps[8].splats.opacities.max()


def test_higher_sh_bands_are_kept_and_trained():
    start = PointCloud(count=200, size=1.2).splats(0)
    start = dataclasses.replace(start, sh=torch.cat([start.sh, torch.zeros(200, 3, 3)], 1))
    final = run(replace_settings(CONFIG, steps=5), start=start)[-1].splats
    assert final.sh.shape[1:] == (4, 3) and final.sh[:, 1:].abs().max() > 0


@pytest.mark.parametrize(
    "limit, of_the_model", [(math.inf, math.inf), (1e-4, math.inf), (1e-4, 1e-6), (math.inf, 1e-4)]
)
def test_the_guidances_limit_on_pixels_or_else_the_models_reaches_the_views(limit, of_the_model):
    seen = []

    class Watching(WishPrior):
        pixel_limit = of_the_model

        def encode(self, images):
            images.register_hook(lambda grad: seen.append(float(grad.abs().max())))
            return super().encode(images)

    settings = {"cfg": 1.0, "inversion_steps": 1}
    method = ISM(**settings) if limit == math.inf else TSM(**settings, pixel_limit=limit)
    wish, anything = normal(disc([0.9, 0.2, 0.1]), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
    prompts = Prompts((wish,) * 4, negative=anything, inverse=anything)
    list(
        dream(
            PointCloud(count=100).splats(0),
            Watching(),
            method,
            prompts,
            CAMERAS,
            replace_settings(CONFIG, steps=2),
            0,
        )
    )
    effective = limit if limit < math.inf else of_the_model
    assert len(seen) == 2 and (
        effective * 0.9 < max(seen) <= effective * 1.001 if effective < 1 else max(seen) > 1e-3
    )


def test_the_start_is_not_modified():
    start = PointCloud(count=200, size=1.2).splats(0)
    before = start.means.clone()
    run(replace_settings(CONFIG, steps=3), start=start)
    assert torch.equal(start.means, before)


def test_a_loss_that_is_not_finite_stops_at_the_last_good_splat():
    wish = normal(torch.full((1, 3, SIZE, SIZE), math.nan), 1.0)
    prompts = Prompts((wish,) * 4, negative=wish, inverse=wish)
    generator = dream(PointCloud(count=100).splats(0), WishPrior(), METHOD, prompts, CAMERAS, CONFIG, seed=0)
    with pytest.raises(NotFinite) as error:
        next(generator)
    assert (error.value.step, error.value.steps) == (1, 60)


def test_bad_input_is_refused():
    empty = Splats(
        torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 1, 3)
    )
    with raises(BadSplats, name="number of Gaussians"):
        run(start=empty)
    nan, inf = math.nan, math.inf
    bad_rates = (
        {"lr_means": (nan, 1e-3)},
        {"lr_sh": (inf, 1e-3)},
        {"lr_scales": (-1.0, 1e-3)},
        {"lr_quats": (0.0, 1e-3)},
    )
    bad_others = (
        {"tv_weight": nan},
        {"flip_share": 7.0},
        {"disparity_share": -3.0},
        {"scale_jitter": nan},
        {"clip_norm": inf},
    )
    for bad in bad_rates + bad_others + ({"adam_betas": (0.9, 2.0)},):
        with raises(BadSetting, name=next(iter(bad)).replace("betas", "beta2")):
            replace_settings(CONFIG, **bad)
    for bad in (
        {"grow_grad2d": nan},
        {"prune_opacity": nan},
        {"reset_every": -1.0},
        {"start": 0.7, "stop": 0.6},
    ):
        with raises(BadSetting, name=next(iter(bad))):
            Densify(**bad)
    for bad in ({"steps": 0}, {"views": 0}, {"resolution": 100}, {"resolution": 8}):
        with raises(BadSetting, name=next(iter(bad))):
            replace_settings(CONFIG, **bad)


def test_the_losses_of_a_step_are_reported_by_name():
    """The scale loss is the weighted mean of the start's scales; the others are off or not negative."""
    start = PointCloud(count=200, size=1.2).splats(0)
    (step,) = run(replace_settings(CONFIG, steps=1, scale_weight=3.0), start=start)
    assert set(step.losses) == {"gradient norm", "tv", "scale"}
    assert step.losses["scale"] == pytest.approx(3 * float(start.scales.mean()), rel=1e-5)
    assert step.losses["tv"] == 0 and step.losses["gradient norm"] > 0


def test_a_disc_seen_from_everywhere_is_not_on_one_side(steps):
    """The optimiser spreads what it learns over all sides: mean colour of the solid part is the disc's."""
    splats = steps[-1].splats
    solid = splats.opacities > 0.5
    color = (splats.sh[solid, 0] * SH_C0 + 0.5).mean(0)
    assert color[0] > color[1] + 0.2 and color[0] > color[2] + 0.2


@pytest.mark.parametrize(
    "method", [METHOD, *(kind() for kind in METHODS.values())], ids=lambda m: type(m).__name__
)
def test_a_step_tells_what_the_model_wants_to_see(method):
    """A prior that is sure of the disc predicts it from whatever it is shown, whichever call the method makes
    last.
    """
    wish, anything = normal(disc([0.9, 0.2, 0.1]), 0.0), normal(disc([0.5, 0.5, 0.5]), 1.0)
    prompts, start = (
        Prompts((wish,) * 4, negative=anything, inverse=anything),
        PointCloud(count=100).splats(0),
    )
    step = next(dream(start, WishPrior(), method, prompts, CAMERAS, CONFIG, seed=0))
    torch.testing.assert_close(step.x0_preview(), wish[0, :3].movedim(0, -1), rtol=0, atol=1e-5)
    assert (
        next(
            dream(start, WishPrior(), method, prompts, CAMERAS, CONFIG, 0, resume=step.checkpoint())
        ).x0_preview()
        is None
    )
