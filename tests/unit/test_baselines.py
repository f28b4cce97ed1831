"""The rivals of ISM against their papers' equations in the DDPM form, in float64."""

import math

import pytest
import torch
from raising import raises

from lucid_core.diffusion.prior import Conds
from lucid_core.errors import BadSetting
from lucid_core.guidance.base import clip_pixel_gradients
from lucid_core.guidance.baselines import METHODS as BY_NAME
from lucid_core.guidance.csd import CSD, classifier_score
from lucid_core.guidance.isd import ISD, invariant_score
from lucid_core.guidance.ism import ISM, interval_score
from lucid_core.guidance.sctd import SCTD, segment_score
from lucid_core.guidance.sdi import SDI, inversion_score, inversion_times
from lucid_core.guidance.sds import SDS, noise_residual
from lucid_core.guidance.tsm import TSM, trajectory_score

from . import vp
from .priors import FiniteSetPrior, GaussianPrior

METHODS = list(BY_NAME.values())


@pytest.fixture
def rand():
    return vp.rand()


@pytest.fixture(params=["linear prior", "finite set"])
def question(request):
    """A prior and prompts; one whose answers are linear in z and one where they are not."""
    rand = vp.rand(seed=9)
    return (
        (GaussianPrior(0.5), Conds(rand(), rand(), rand()))
        if request.param == "linear prior"
        else finite_set()
    )


def finite_set(seed=5):
    """A prior whose answers are not linear in z, and prompts that pick from it."""
    members = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return FiniteSetPrior(members), Conds(*(3 * logits))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_sds_is_dreamfusions_equation_3(rand, t, question):
    """w(t) * (eps_hat(x_t; y, t) - eps), w = 1 - abar, for a linear prior and for one that is not."""
    z0, noise = rand(), rand()
    prior, conds = question
    x_t = vp.noised(prior, z0, noise, t)
    expected = (1 - vp.abar(prior, t)) * (vp.cfg_eps(prior, x_t, t, conds.y, conds.negative, 30.0) - noise)
    torch.testing.assert_close(noise_residual(SDS(cfg=30.0), prior, z0, noise, t, conds), expected)


def test_sds_expects_nothing_of_the_wanted_image():
    """For N(y, 0) the prediction error vanishes at y whatever the noise, and points away from y elsewhere."""
    rand = vp.rand()
    y, away, noise = rand(), rand(), rand()
    prior, conds = GaussianPrior(0.0), Conds(y, y, y)
    torch.testing.assert_close(noise_residual(SDS(), prior, y, noise, 0.5, conds), torch.zeros_like(y))
    g = noise_residual(SDS(), prior, y + away, noise, 0.5, conds)
    torch.testing.assert_close(g, away * (1 - vp.abar(prior, 0.5)) / prior.sigma(0.5))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_csd_is_the_classifiers_half_of_sds(rand, share, question):
    """w(t) * (eps(y) - share * eps(negative) - (1 - share) * eps), w = 1 - abar."""
    z0, noise, t = rand(), rand(), 0.6
    prior, conds = question
    x_t = vp.noised(prior, z0, noise, t)
    e_y, e_negative, e_empty = (
        vp.eps(prior, x_t, t, cond) for cond in (conds.y, conds.negative, conds.inverse)
    )
    expected = (1 - vp.abar(prior, t)) * (e_y - share * e_negative - (1 - share) * e_empty)
    torch.testing.assert_close(classifier_score(prior, z0, noise, t, share, conds), expected)
    if share == 1:  # SDS at cfg + 1 less SDS at cfg
        more, less = (noise_residual(SDS(cfg=cfg), prior, z0, noise, t, conds) for cfg in (4.0, 3.0))
        torch.testing.assert_close(classifier_score(prior, z0, noise, t, share, conds), more - less)


def test_csd_anneals_its_negative_share_and_pays_for_it():
    rand, prior = vp.rand(), GaussianPrior(0.5)
    z0, conds = rand(), Conds(rand(), rand(), rand())
    CSD().gradient(prior, z0, conds, 0.9, torch.Generator().manual_seed(0))
    assert prior.evaluations == 4
    CSD(negative_share=0.5).gradient(prior, z0, conds, 0.9, torch.Generator().manual_seed(0))
    assert prior.evaluations == 4 + 6


@pytest.mark.parametrize("t, interval", [(0.6, 0.02), (0.9, 0.3), (0.01, 0.02)])
def test_isd_follows_the_gain_of_one_ddim_step(rand, t, interval, question):
    """w * (lambda * (eps(z_t-c) - eps(z_t)) + cfg * (eps(y) - eps)), lambda = sqrt((1-abar')/abar') /
    sqrt((1-abar)/abar).
    """
    z0, noise, c = rand(), rand(), max(t - interval, 1e-3)
    prior, conds = question
    x_t = vp.noised(prior, z0, noise, t)
    e_y, e_negative = vp.eps(prior, x_t, t, conds.y), vp.eps(prior, x_t, t, conds.negative)
    x_c = vp.ddim(prior, x_t, e_y, t, c)
    ratio = vp.w(prior, c) / vp.w(prior, t)
    expected = ratio * (vp.eps(prior, x_c, c, conds.y) - e_y) + 3.0 * (e_y - e_negative)
    g = invariant_score(ISD(cfg=3.0, interval=interval), prior, z0, noise, t, conds)
    torch.testing.assert_close(g, (1 - vp.abar(prior, t)) * expected)


def test_isds_invariant_term_is_the_difference_of_two_predictions_of_the_image(rand):
    """sigma_t * lambda * delta_inv = z0(z_t) - z0(z_t-c): descending it leads from the earlier to the later
    prediction.
    """
    prior, conds = finite_set()
    z0, noise, t, c = rand(), rand(), 0.6, 0.5
    sigma_t, sigma_c = prior.sigma(t), prior.sigma(c)
    z_t = z0 + sigma_t * noise
    (first,) = prior.denoise(z_t, sigma_t, [conds.y])
    (later,) = prior.denoise(first + sigma_c * (z_t - first) / sigma_t, sigma_c, [conds.y])
    g = invariant_score(ISD(cfg=0.0, interval=0.1), prior, z0, noise, t, conds)
    torch.testing.assert_close(g, (1 - vp.abar(prior, t)) / sigma_t * (first - later))


def test_sdi_is_equation_10_of_its_paper(rand, question):
    """Invert with the prompt at gamma_inv, noise z0 at t with what that found, predict at gamma_fwd: z0 -
    x0(t - tau).
    """
    z0, t, top = rand(), 0.34, 0.41
    prior, conds = question
    guided = lambda x, time, scale: vp.cfg_eps(prior, x, time, conds.y, conds.negative, scale)
    b = 0.101  # times 0.001 (where clean is asked about), 0.101, 0.201, 0.301, 0.41
    x = vp.noised(prior, z0, guided(vp.abar(prior, 1e-3) ** 0.5 * z0, 1e-3, -7.5), b)
    for a, b in ((0.101, 0.201), (0.201, 0.301), (0.301, top)):
        x = vp.ddim(prior, x, guided(x, a, -7.5), a, b)
    kappa = (x - vp.abar(prior, top) ** 0.5 * z0) / (1 - vp.abar(prior, top)) ** 0.5
    x_t = vp.noised(prior, z0, kappa, t)
    a = vp.abar(prior, t)
    x0 = (x_t - (1 - a) ** 0.5 * guided(x_t, t, 7.5)) / a**0.5
    torch.testing.assert_close(
        inversion_score(SDI(eta=0.0), prior, z0, t, top, conds, torch.Generator()), z0 - x0
    )


def test_sdi_times_fall_over_the_run_and_never_leave_the_schedule():
    assert inversion_times(0.34, 0.41, 10) == pytest.approx([0.001, 0.101, 0.201, 0.301, 0.41])
    assert inversion_times(0.98, 1.0, 10)[-2:] == pytest.approx([0.901, 1.0])
    asked = []

    class Watched(GaussianPrior):
        def denoise(self, z, sigma, conds):
            asked.append(sigma)
            return super().denoise(z, sigma, conds)

    prior, z = Watched(0.5), torch.zeros(1, 4, 2, 2)
    for progress, t in ((0.0, 0.98), (0.5, 0.615), (1.0, 0.25)):
        SDI().gradient(prior, z, Conds(z, z, z), progress, torch.Generator().manual_seed(0))
        assert asked[-1] == pytest.approx(prior.sigma(t)) and max(asked) <= prior.sigma(1.0)
        asked.clear()


def test_sdis_new_noise_is_that_of_its_authors_code():
    """eta * sqrt(variance(b, a)) on x at b: the DDPM posterior variance, between which z = x /
    sqrt(abar_b).
    """
    from lucid_core.guidance.sdi import fresh_noise

    a, b = 0.4, 2.0
    abar_a, abar_b = 1 / (1 + a**2), 1 / (1 + b**2)
    variance = (1 - abar_a) / (1 - abar_b) * (1 - abar_b / abar_a)
    assert fresh_noise(a, b) ** 2 == pytest.approx(variance / abar_b)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_tsm_compares_the_ends_of_two_paths_from_one_start(rand, gamma, question):
    """Equations 4, 5 and 7: mu = s + gamma * (t - s); w * (eps(x_t; y) - eps(x_mu)), both one step from
    x_s.
    """
    z0, noise, start, s, t = rand(), rand(), 0.4, 0.6, 0.7
    mu = s + gamma * (t - s)
    prior, conds = question
    x = vp.noised(prior, z0, noise, start)
    x_s = vp.ddim(prior, x, vp.eps(prior, x, start, conds.inverse), start, s)
    e_s = vp.eps(prior, x_s, s, conds.inverse)
    x_mu, x_t = vp.ddim(prior, x_s, e_s, s, mu), vp.ddim(prior, x_s, e_s, s, t)
    e_t = vp.cfg_eps(prior, x_t, t, conds.y, conds.negative, 7.5)
    expected = vp.w(prior, t) * (e_t - vp.eps(prior, x_mu, mu, conds.inverse))
    g = trajectory_score(
        TSM(gamma=gamma, inversion_steps=1), prior, z0, noise, t, s, conds, torch.Generator()
    )
    torch.testing.assert_close(g, expected)


def test_ism_is_a_special_case_of_tsm(rand):
    """gamma = 0: the second path ends where it starts (section 3.3 of Dreamer XL)."""
    z0, noise, (prior, conds) = rand(), rand(), finite_set()
    tsm = trajectory_score(TSM(gamma=0.0), prior, z0, noise, 0.7, 0.6, conds, torch.Generator())
    torch.testing.assert_close(
        tsm, interval_score(ISM(), prior, z0, noise, 0.7, 0.6, conds, torch.Generator())
    )


@pytest.mark.parametrize("times", [(0.5, 0.42, 0.4), (0.95, 0.8, 0.788), (0.12, 0.07, 0.02)])
def test_sctd_is_its_authors_sum_of_self_and_cross_consistency(rand, times, question):
    z0, noise, (t, s, e) = rand(), rand(), times
    prior, conds = question
    without = lambda x, a, b: vp.ddim(prior, x, vp.eps(prior, x, a, conds.inverse), a, b)
    x_e = vp.noised(prior, z0, noise, e)
    x_t = without(without(x_e, e, s), s, t) if t >= 0.15 else without(x_e, e, t)
    e_t = vp.cfg_eps(prior, x_t, t, conds.y, conds.negative, 7.5)
    x_es = without(vp.ddim(prior, x_t, e_t, t, s), s, e)
    x_et = vp.ddim(prior, x_t, e_t, t, e)
    expected = vp.w(prior, t) * ((x_es - x_e) + 8.5 * (x_e - x_et))
    torch.testing.assert_close(segment_score(SCTD(), prior, z0, noise, times, conds), expected)


def test_sctd_draws_points_of_one_segment():
    sctd = SCTD()
    edges = [0.02 + i * 0.192 for i in range(6)]
    for progress in (0.0, 0.1, 0.5):
        for u in (0.0, 0.3, 0.77, 0.999):
            for v in (0.0, 0.5, 0.999):
                t, s, e = sctd.times(progress, u, v)
                assert 0.02 <= e < s < t <= 1 and t - e >= 0.08 - 1e-9
                assert min(abs(e - edge) for edge in edges) < 1e-9
                assert s - e >= 0.01 - 1e-9 and t - s >= 0.01 - 1e-9
    assert sctd.times(0.0, 0.0, 0.0)[0] == pytest.approx(0.5) and sctd.times(1.0, 0.999, 0.0)[0] < 0.5
    assert SCTD(t_min_start=0.3).times(0.0, 0.0, 0.0)[0] == pytest.approx(0.3)
    assert SCTD(t_min_start=0.3).times(1.0, 0.999, 0.0) == sctd.times(1.0, 0.999, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_pushes_away_from_other_views_by_perp_neg(rand, method):
    """The gradient changes; where the prompted noise enters it once, by nothing along the prompt's own
    direction.
    """
    z0, y, negative, other = rand(), rand(), rand(), rand()
    weights = torch.full((2, 1), -2.0)
    at = lambda conds: method().gradient(GaussianPrior(0.5), z0, conds, 0.4, torch.Generator().manual_seed(7))
    change = at(Conds(y, negative, negative, (other,), weights)) - at(Conds(y, negative, negative))
    assert change.abs().max() > 1e-3
    if method not in (SCTD, SDI):
        cosine = torch.nn.functional.cosine_similarity(change.flatten(1), (negative - y).flatten(1))
        assert cosine.abs().max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_seeded_graphless_weighted_and_leaves_its_input_alone(method):
    rand = vp.rand()
    z0 = rand().requires_grad_()
    conds, before = Conds(rand(), rand(), rand()), z0.detach().clone()
    once, again, thrice = (
        method(weight=weight).gradient(GaussianPrior(0.5), z0, conds, 0.4, torch.Generator().manual_seed(7))
        for weight in (1, 1, 3)
    )
    assert torch.equal(once, again) and not once.requires_grad and once.isfinite().all()
    assert torch.equal(z0.detach(), before) and z0.grad is None
    torch.testing.assert_close(thrice, 3 * once)
    state = torch.random.get_rng_state()
    method().gradient(GaussianPrior(0.5), z0, conds, 0.4, torch.Generator().manual_seed(7))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leads_to_the_prompt(method):
    """A prior that wants exactly `y` with the prompt and what is there without: following the gradient leads
    to `y`.
    """
    rand = vp.rand()
    z0, y, generator = rand(), rand(), torch.Generator().manual_seed(1)
    start = (z0 - y).norm()
    z = z0.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.2, betas=(0.9, 0.99))
    for i in range(300):
        optimizer.param_groups[0]["lr"] = 0.2 * 0.01 ** (i / 300)
        z.grad = method().gradient(
            GaussianPrior(0.0), z, Conds(y, z.detach(), z.detach()), i / 300, generator
        )
        optimizer.step()
    assert (z.detach() - y).norm() < 0.05 * start


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [{"weight": math.nan}, {"weight": 0}])
def test_bad_settings_are_refused_by_name(method, bad):
    with raises(BadSetting, name=next(iter(bad))):
        method(**bad)


def test_pixels_are_limited_one_by_one_and_keep_their_hue():
    images = torch.zeros(1, 2, 2, 3, requires_grad=True)
    wanted = torch.tensor([[[[0.3, -0.6, 0.1], [0.01, 0.02, 0.03]], [[0.0, 0.0, 0.0], [0.0, 0.0, -5.0]]]])
    seen = images * 1
    clip_pixel_gradients(seen, 0.06)
    (seen * wanted).sum().backward()
    expected = torch.tensor(
        [[[[0.03, -0.06, 0.01], [0.01, 0.02, 0.03]], [[0.0, 0.0, 0.0], [0.0, 0.0, -0.06]]]]
    )
    torch.testing.assert_close(images.grad, expected)
    free = torch.zeros(1, 2, 2, 3, requires_grad=True)
    seen = free * 1
    clip_pixel_gradients(seen, math.inf)
    (seen * wanted).sum().backward()
    torch.testing.assert_close(free.grad, wanted)
