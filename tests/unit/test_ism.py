"""ISM against closed forms, in float64."""

import math
from itertools import pairwise

import pytest
import torch
from raising import raises

from lucid_core.diffusion.prior import Conds
from lucid_core.errors import BadSetting
from lucid_core.guidance.base import MIN_T, ddim, eps, fixed_noise, offset_noise
from lucid_core.guidance.isd import ISD
from lucid_core.guidance.ism import ISM, PRESETS, fresh_noise, interval_score, inversion_times, invert_to

from .priors import FiniteSetPrior, GaussianPrior

SHAPE = (2, 4, 3, 3)


@pytest.fixture
def rand():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def test_eps_of_a_gaussian_prior_is_its_score(rand):
    z, mean, sigma = rand(), rand(), 2.0
    (e,) = eps(GaussianPrior(0.5), z, sigma, [mean])
    score = -(z - mean) / (0.5 + sigma**2)
    torch.testing.assert_close(e, -sigma * score)


def test_inversion_of_a_gaussian_prior_is_the_product_of_its_strides(rand):
    prior, z0, noise, mean = GaussianPrior(0.5), rand(), rand(), rand()
    sigmas = [prior.sigma(t) for t in (0.1, 0.3, 0.5, 0.62)]
    factor = math.prod(1 + (b - a) * a / (0.5 + a**2) for a, b in pairwise(sigmas))
    expected = mean + factor * (z0 + sigmas[0] * noise - mean)
    found = ddim(z0 + sigmas[0] * noise, sigmas, lambda z, sigma: eps(prior, z, sigma, [mean])[0])
    torch.testing.assert_close(found, expected)


def test_fine_inversion_follows_the_exact_probability_flow(rand):
    """For N(mean, v) the ODE dz = eps dsigma keeps (z - mean) / sqrt(v + sigma^2) constant."""
    prior, z0, noise, mean = GaussianPrior(0.5), rand(), rand(), rand()
    sigmas = [prior.sigma(t) for t in torch.linspace(0.1, 0.8, 4001).tolist()]
    first, last = sigmas[0], sigmas[-1]
    exact = mean + (z0 + first * noise - mean) * math.sqrt((0.5 + last**2) / (0.5 + first**2))
    found = ddim(z0 + first * noise, sigmas, lambda z, sigma: eps(prior, z, sigma, [mean])[0])
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("t, s", [(0.5, 0.42), (0.9, 0.8), (0.06, MIN_T)])
def test_interval_score_equals_its_closed_form(rand, t, s):
    """Every symbol of the method, written out by hand for N(mean, v): a wrong sign, sigma, time or prompt
    shows here.
    """
    ism, prior, v = ISM(cfg=7.5), GaussianPrior(0.5), 0.5
    z0, noise, y, negative, inverse = rand(), rand(), rand(), rand(), rand()

    sigmas = [prior.sigma(time) for time in inversion_times(s, ism.delta_s, ism.inversion_steps)]
    factor = math.prod(1 + (b - a) * a / (v + a**2) for a, b in pairwise(sigmas))
    sigma_s, sigma_t = prior.sigma(s), prior.sigma(t)
    z_s = inverse + factor * (z0 + sigmas[0] * noise - inverse)
    e_s = sigma_s * (z_s - inverse) / (v + sigma_s**2)
    z_t = z_s + (sigma_t - sigma_s) * e_s
    score = lambda mean: sigma_t * (z_t - mean) / (v + sigma_t**2)
    e_t = score(negative) + 7.5 * (score(y) - score(negative))

    g = interval_score(ism, prior, z0, noise, t, s, Conds(y, negative, inverse), torch.Generator())
    torch.testing.assert_close(g, sigma_t * (e_t - e_s))


def test_descending_the_gradient_leads_to_the_prompt(rand):
    """A point-mass prior wants exactly `y`: gradient descent on z0 arrives there."""
    prior, z0, y, negative = GaussianPrior(0.0), rand(), rand(), rand()
    generator = torch.Generator().manual_seed(1)
    ism = ISM(cfg=1.0, weight=1.0)
    distance = (z0 - y).norm()
    for i in range(200):
        z0 = z0 - 0.5 * ism.gradient(prior, z0, Conds(y, negative, z0), i / 200, generator)
    assert (z0 - y).norm() < 1e-3 * distance


def test_gradient_vanishes_on_the_wanted_member_of_a_finite_set_only():
    """Noise small beside the distance of the members: the ideal denoiser answers with the member itself, at t
    and at s.
    """
    members = 40 * torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    anything = torch.zeros(5, dtype=torch.float64)
    wanted = torch.tensor([-1e9, -1e9, 0.0, -1e9, -1e9], dtype=torch.float64)
    conds = Conds(wanted, anything, anything)
    at = lambda i: ISM().gradient(
        FiniteSetPrior(members), members[i : i + 1], conds, 1.0, torch.Generator().manual_seed(1)
    )
    assert at(2).abs().max() < 1e-6
    assert min(at(i).abs().max() for i in (0, 1, 3, 4)) > 1


def test_gradient_leaves_no_graph_and_does_not_touch_its_input(rand):
    z0 = rand().requires_grad_()
    before = z0.detach().clone()
    g = ISM().gradient(
        GaussianPrior(0.5), z0, Conds(rand(), rand(), rand()), 0.5, torch.Generator().manual_seed(0)
    )
    assert not g.requires_grad and torch.equal(z0.detach(), before) and z0.grad is None


def test_the_weight_scales_the_gradient(rand):
    z0, conds = rand(), Conds(rand(), rand(), rand())
    once, thrice = (
        ISM(weight=weight).gradient(GaussianPrior(0.5), z0, conds, 0.1, torch.Generator().manual_seed(7))
        for weight in (1, 3)
    )
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("inversion_cfg", [0.0, 1.0, 3.0])
def test_guidance_in_the_inversion_is_the_official_reverse_one(rand, inversion_cfg):
    """Its noise everywhere is inverse + cfg * (negative - inverse): for a point-mass prior as if the prompt
    were that blend.
    """
    ism, prior, z0, noise = ISM(inversion_cfg=inversion_cfg), GaussianPrior(0.5), rand(), rand()
    y, negative, inverse = rand(), rand(), rand()
    blend = inverse + inversion_cfg * (negative - inverse)
    g = interval_score(ism, prior, z0, noise, 0.5, 0.42, Conds(y, negative, inverse), torch.Generator())
    plain = interval_score(ISM(), prior, z0, noise, 0.5, 0.42, Conds(y, negative, blend), torch.Generator())
    torch.testing.assert_close(g, plain)


@pytest.mark.parametrize("a, b", [(0.3, 0.31), (0.3, 0.9), (1.0, 8.0)])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta_is_the_variance_of_ddims_equation_16_upwards(a, b, eta):
    """As in the official code: |variance(t, t')| of the DDPM form times eta, at most half of 1 - abar; z is x
    / sqrt(abar).
    """
    abar_a, abar_b = 1 / (1 + a**2), 1 / (1 + b**2)
    variance = abs((1 - abar_b) / (1 - abar_a) * (1 - abar_a / abar_b))
    expected = min(eta * variance, (1 - abar_b) / 2) / abar_b
    assert fresh_noise(a, b, eta) ** 2 == pytest.approx(expected)


def test_eta_renews_noise_and_keeps_its_level():
    """A prior that knows the image finds all the noise: with eta its direction changes and its size does
    not.
    """
    shape = (1, 4, 64, 64)
    z0 = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior, conds = GaussianPrior(0.0), Conds(z0, z0, z0)
    at = lambda eta: (
        (invert_to(ISM(eta=eta), prior, z0, noise, 0.7, conds, torch.Generator().manual_seed(2)) - z0)
        / prior.sigma(0.7)
    )
    torch.testing.assert_close(at(0.0), noise)
    assert at(1.0).std() == pytest.approx(1, abs=0.02) and (at(1.0) * noise).mean() < 0.6


def test_fixed_noise_is_one_for_the_run(rand):
    generator, conds = torch.Generator().manual_seed(3), Conds(rand(), rand(), rand())
    first = fixed_noise(rand(), generator)
    torch.randn(7, generator=generator)
    assert torch.equal(first, fixed_noise(rand(), generator))
    assert not torch.equal(first, fixed_noise(rand(), torch.Generator().manual_seed(4)))
    z0, narrow = rand(), {"t_min": 0.5, "t_max": 0.5 + 1e-9, "t_max_start": 0.5 + 1e-9}
    for fix, same in ((True, True), (False, False)):
        ism, generator = ISM(fix_noise=fix, **narrow), torch.Generator().manual_seed(3)
        once, again = (ism.gradient(GaussianPrior(0.5), z0, conds, 1.0, generator) for _ in range(2))
        assert torch.allclose(once, again) == same


def test_same_generator_same_gradient(rand):
    z0, conds = rand(), Conds(rand(), rand(), rand())
    once = [
        ISM().gradient(GaussianPrior(0.5), z0, conds, 0.1, torch.Generator().manual_seed(7)) for _ in range(2)
    ]
    assert torch.equal(*once)


@pytest.mark.parametrize(
    "s, steps, expected",
    [
        (
            0.42,
            5,
            [MIN_T, MIN_T + 0.2, MIN_T + 0.4, 0.42],
        ),  # reaches down to 0: the last stride is the short one
        (0.90, 2, [0.5, 0.7, 0.9]),  # starts two strides below
        (0.90, 1, [0.7, 0.9]),
        (MIN_T, 5, [MIN_T]),
    ],
)
def test_inversion_times(s, steps, expected):
    assert inversion_times(s, 0.2, steps) == pytest.approx(expected)


def test_times_stay_in_range_and_anneal():
    ism = ISM()
    for progress in (0.0, 0.1, 0.3, 1.0):
        for u in (0.0, 0.5, 0.999):
            t, s = ism.times(progress, u)
            assert ism.t_min <= t <= ism.t_max_start and MIN_T <= s < t
    assert ism.times(0.0, 1.0)[0] == pytest.approx(0.98)
    assert ism.times(0.15, 1.0)[0] == pytest.approx(0.74)
    assert ism.times(0.3, 1.0)[0] == pytest.approx(0.5) == ism.times(1.0, 1.0)[0]
    t, s = ism.times(0.0, 0.9)
    assert t - s == pytest.approx(0.1)
    t, s = ism.times(1.0, 0.9)
    assert t - s == pytest.approx(0.08)


def test_the_least_noise_and_cfg_anneal_too():
    ism = ISM(t_min=0.4, t_min_start=0.02, t_max=0.7, t_max_start=0.8, warmup=0.5)
    assert [ism.t(progress, 0.0) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [0.02, 0.21, 0.4, 0.4]
    )
    assert [ism.t(progress, 1.0) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [0.8, 0.75, 0.7, 0.7]
    )
    assert ISM(t_min=0.4).t(0.0, 0.0) == pytest.approx(0.4)  # 0 = as t_min
    with raises(BadSetting, name="t_min_start", value=0.9):
        ISM(t_min_start=0.9, t_max_start=0.8)

    prior, z0 = GaussianPrior(0.5), torch.ones(SHAPE, dtype=torch.float64)
    conds = Conds(0.3 * z0, 0.1 * z0, 0 * z0)
    falling = ISM(cfg=2.0, cfg_start=6.0, warmup=0.5)
    for progress, cfg in ((0.0, 6.0), (0.25, 4.0), (0.5, 2.0), (1.0, 2.0)):
        found, expected = (
            method.gradient(prior, z0, conds, progress, torch.Generator().manual_seed(1))
            for method in (falling, ISM(cfg=cfg, warmup=0.5))
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("preset, views, cost", [("official", 4, 18.2), ("fast", 2, 7.9)])
def test_cost_per_step_is_at_most_the_published_one(preset, views, cost):
    """The official code spends 18.6 sample-evaluations a step at B = 4; ours saves its needless call where s
    is at 0.

    The fast way, its preset with 2 views, is to cost less than half of that.
    """
    generator, prior, ism = torch.Generator().manual_seed(0), GaussianPrior(0.5), PRESETS[preset]
    z0 = torch.zeros(views, 1, 1, 1)
    for i in range(3000):
        ism.gradient(prior, z0, Conds(z0, z0, z0), i / 3000, generator)
    assert prior.evaluations / 3000 == pytest.approx(cost, abs=0.2)


def test_offset_noise_is_shared_by_the_batch_and_a_tenth():
    noise = offset_noise(torch.zeros(64, 4, 64, 64), torch.Generator().manual_seed(0))
    means = noise.mean(dim=(2, 3))  # (B, C)
    assert means.std(dim=0).max() < 0.05 and 0.01 < means.mean(0).abs().mean() < 0.3


@pytest.mark.parametrize(
    "bad",
    [
        {"cfg": -1},
        {"cfg": math.nan},
        {"t_min": 0.0},
        {"t_min": 0.6},
        {"t_max_start": 0.3},
        {"delta_t": 0},
        {"warmup": 2},
        {"inversion_steps": -1},
        {"weight": math.inf},
    ],
)
def test_bad_settings_are_refused_by_name(bad):
    with raises(BadSetting, name=next(iter(bad)) if bad != {"t_min": 0.6} else "t_max"):
        ISM(**bad)


def test_presets_are_valid_and_official_is_the_default():
    assert PRESETS["official"] == ISM() and set(PRESETS) == {"official", "fast", "cpu"}


@pytest.mark.parametrize(
    "method, bad",
    [(ISM, {"delta_t": 0.6}), (ISM, {"delta_t_start": 0.99}), (ISD, {"interval": 0.6})],
)
def test_an_interval_longer_than_the_noise_range_reaches_is_refused(method, bad):
    ((name, value),) = bad.items()
    with raises(BadSetting, name=name, value=value):
        method(**bad)
