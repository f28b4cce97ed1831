"""What keeps a run sane: colours that gain bands, gradients that are cut, a stop at the last finite splat."""

import dataclasses
import math

import pytest
import torch
from raising import raises

from lucid_core import rasterize as rasterizers
from lucid_core.errors import BadSetting, NotFinite
from lucid_core.optimize import augment, losses, schedule
from lucid_core.optimize import gaussians as module
from lucid_core.optimize.config import Augmentation, DreamConfig, LearningRates, Task
from lucid_core.settings import replace_settings
from lucid_core.splats import activate, parameters

from .scenes import CAMERAS, CONFIG, arguments, dream, run, splats


def watch_renders(monkeypatch):
    """-> the SH degree of each render of a run."""
    degrees, rasterize = [], rasterizers.rasterize

    def watched(splats, cameras, width, height, sh_degree, *rest):
        degrees.append(sh_degree)
        return rasterize(splats, cameras, width, height, sh_degree, *rest)

    monkeypatch.setattr(rasterizers, "rasterize", watched)
    return degrees


def test_colours_gain_a_band_at_each_share_of_the_run(monkeypatch):
    degrees = watch_renders(monkeypatch)
    steps = run(
        replace_settings(CONFIG, steps=10, sh_degree=2, sh_every=0.3, sh_plain_share=0.0), start=splats()
    )
    assert degrees == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert steps[0].splats.sh.shape == (200, 9, 3)
    assert (
        not steps[2].splats.sh[:, 1:].any()
        and steps[3].splats.sh[:, 1:4].any()
        and not steps[5].splats.sh[:, 4:].any()
    )
    assert steps[-1].splats.sh[:, 4:].any()


def test_a_splat_keeps_the_bands_it_starts_with(monkeypatch):
    degrees = watch_renders(monkeypatch)
    start = splats()
    start = dataclasses.replace(start, sh=torch.cat([start.sh, torch.zeros(200, 3, 3)], 1))
    run(replace_settings(CONFIG, steps=4, sh_degree=2, sh_every=0.5, sh_plain_share=0.0), start=start)
    assert degrees == [1, 1, 2, 2]


def test_a_share_of_the_steps_renders_the_base_colours_alone(monkeypatch):
    degrees = watch_renders(monkeypatch)
    run(replace_settings(CONFIG, steps=40, sh_degree=1, sh_every=0.001, sh_plain_share=0.5), start=splats())
    assert 10 <= degrees[1:].count(0) <= 30 and degrees[1:].count(1) == 39 - degrees[1:].count(0)


def test_the_higher_bands_learn_at_a_constant_twentieth_of_the_base_colours_first_rate():
    params = parameters(splats().with_sh_degree(1))
    optimizers = {name: torch.optim.Adam([param]) for name, param in params.items()}
    rate = lambda name: optimizers[name].param_groups[0]["lr"]
    for progress in (0.0, 0.7, 1.0):
        schedule.set_learning_rates(optimizers, LearningRates(), Task(), progress)
        assert rate("shN") == pytest.approx(0.005 / 20, rel=1e-12)
        assert rate("sh0") == pytest.approx(0.005 * 0.6**progress, rel=1e-12)


@pytest.mark.parametrize("colors", ["any", "grey"])
def test_every_view_has_a_background_of_its_own(colors):
    """66% of them are not white: half random, half black, or all grey."""
    found = augment.random_backgrounds(
        3000, Augmentation(background_colors=colors), torch.Generator().manual_seed(0)
    )
    white, black = (found == 1).all(1), (found == 0).all(1)
    assert found.shape == (3000, 3) and found.min() >= 0 and found.max() <= 1
    assert white.float().mean() == pytest.approx(0.34, abs=0.03)
    assert black.float().mean() == pytest.approx(0.33 if colors == "any" else 0.0, abs=0.03)
    grey = (found == found[:, :1]).all(1) & ~white & ~black
    assert grey.float().mean() == pytest.approx(0.0 if colors == "any" else 0.66, abs=0.03)


@pytest.mark.parametrize("darkest", [0.4, 0.7])
def test_image_targets_have_white_or_grey_backgrounds(darkest):
    found = augment.light_backgrounds(3000, Augmentation(), darkest, torch.Generator().manual_seed(0))
    white = (found == 1).all(1)
    assert found.shape == (3000, 3) and (found == found[:, :1]).all()
    assert white.float().mean() == pytest.approx(0.34, abs=0.03)
    assert darkest <= found.min() < darkest + 0.01


def test_the_official_colours_have_one_band(monkeypatch):
    degrees = watch_renders(monkeypatch)
    assert run(replace_settings(CONFIG, steps=3), start=splats())[-1].splats.sh.shape == (200, 1, 3)
    assert degrees == [0, 0, 0]


def test_the_gradient_is_cut_to_its_norm(monkeypatch):
    norms = []

    class Watched(torch.optim.Adam):
        def step(self):
            norms.append(sum(float(p.grad.square().sum()) for p in self.param_groups[0]["params"]))
            return super().step()

    monkeypatch.setattr("lucid_core.optimize.gaussians.Adam", Watched)
    total = lambda: math.sqrt(sum(norms[:6]))  # of the six parameters in the first step
    run(replace_settings(CONFIG, steps=1), start=splats())
    free = total()
    norms.clear()
    run(replace_settings(CONFIG, steps=1, clip_norm=free / 10), start=splats())
    assert total() == pytest.approx(free / 10, rel=1e-4)


def until_it_stops(config=CONFIG):
    """-> the steps before, and the error."""
    steps = []
    with pytest.raises(NotFinite) as error:
        for step in dream(**arguments(config)):
            steps.append(step)
    assert all(x.isfinite().all() for step in steps for x in vars(step.splats).values())
    return steps, error.value


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch):
    monkeypatch.setattr(losses, "scale", _nan_at(4))
    steps, error = until_it_stops(replace_settings(CONFIG, scale_weight=1.0))
    assert (len(steps), error.what, error.step, error.steps) == (3, "the loss", 4, 10)


def _nan_at(call):
    calls = []

    def scale(scales):
        calls.append(1)
        return scales.mean() if len(calls) < call else scales.mean() * math.nan

    return scale


def test_a_gradient_that_is_not_finite_stops_the_run_and_spoils_nothing(monkeypatch):
    """A finite loss whose gradient is not: the square root at 0."""
    calls = []

    def scale(scales):
        calls.append(1)
        return scales.mean() if len(calls) < 3 else (scales - scales.detach()).sqrt().sum()

    monkeypatch.setattr(losses, "scale", scale)
    steps, error = until_it_stops(replace_settings(CONFIG, scale_weight=1.0))
    assert (len(steps), error.what, error.step, error.steps) == (2, "the gradient of scales", 3, 10)


def test_a_parameter_that_is_not_finite_stops_the_run(monkeypatch):
    def spoiled(params, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 5:
            with torch.no_grad():
                params["scales"][7] = 100.0  # its exponential overflows float32

    monkeypatch.setattr(module, "clamp_colors", spoiled)
    steps, error = until_it_stops(
        replace_settings(CONFIG, densify=dataclasses.replace(CONFIG.optimizer.densify, prune_scale3d=0.0))
    )
    assert (len(steps), error.what, error.step, error.steps) == (4, "scales of the splat", 5, 10)


def test_a_finished_step_is_the_readers_own():
    iterator = dream(**arguments(CONFIG))
    first = next(iterator).splats
    before = first.means.clone()
    next(iterator)
    assert torch.equal(first.means, before)


@pytest.mark.parametrize("bad", [{"sh_degree": 4}, {"sh_every": 0.0}, {"clip_norm": -1.0}])
def test_bad_settings_are_refused_by_name(bad):
    with raises(BadSetting, name=next(iter(bad))):
        replace_settings(DreamConfig(), **bad)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_colour_of_zero_still_has_a_gradient(backend):
    """Renderers cut colours off at 0; what rests there would stay black."""
    params = parameters(splats(20))
    with torch.no_grad():
        params["sh0"].fill_(-9.0)
    module.clamp_colors(params)
    camera = CAMERAS.sample(1, 0.0, 32, 32, torch.Generator().manual_seed(0)).cameras
    image = rasterizers.rasterize(
        activate(params), camera, 32, 32, background=torch.zeros(3), backend=backend
    ).rgb
    image.sum().backward()
    assert image.max() < 1 / 255 and (params["sh0"].grad.abs().sum((1, 2)) > 0).any()
