"""The rivals of ISM against their papers' equations in the DDPM form, in float64."""

import math

import pytest
import torch

from lucid_core.prior import Conds
from lucid_core.score import limit_pixels
from lucid_core.sds import SDS, noise_residual

from . import vp
from .priors import FiniteSetPrior, GaussianPrior

METHODS = [SDS]


@pytest.fixture
def rand():
    return vp.rand()


def finite_set(seed=5):
    """A prior whose answers are not linear in z, and prompts that pick from it."""
    members = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return FiniteSetPrior(members), Conds(*(3 * logits))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_sds_is_dreamfusions_equation_3(rand, t):
    """w(t) * (eps_hat(x_t; y, t) - eps), w = 1 - abar, for a linear prior and for one that is not."""
    z0, noise = rand(), rand()
    for prior, conds in ((GaussianPrior(0.5), Conds(rand(), rand(), rand())), finite_set()):
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
    """A prior that wants exactly `y` with the prompt and what is there without: following the gradient leads to `y`."""
    rand = vp.rand()
    z0, y, generator = rand(), rand(), torch.Generator().manual_seed(1)
    start = (z0 - y).norm()
    z = z0.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1, betas=(0.9, 0.99))
    for i in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.01 ** (i / 300)
        z.grad = method().gradient(GaussianPrior(0.0), z, Conds(y, z.detach(), z.detach()), i / 300, generator)
        optimizer.step()
    assert (z.detach() - y).norm() < 0.05 * start


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [{"weight": math.nan}, {"weight": 0}])
def test_bad_settings_are_refused_by_name(method, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        method(**bad)


def test_pixels_are_limited_one_by_one_and_keep_their_hue():
    images = torch.zeros(1, 2, 2, 3, requires_grad=True)
    wanted = torch.tensor([[[[0.3, -0.6, 0.1], [0.01, 0.02, 0.03]], [[0.0, 0.0, 0.0], [0.0, 0.0, -5.0]]]])
    seen = images * 1
    limit_pixels(seen, 0.06)
    (seen * wanted).sum().backward()
    expected = torch.tensor([[[[0.03, -0.06, 0.01], [0.01, 0.02, 0.03]], [[0.0, 0.0, 0.0], [0.0, 0.0, -0.06]]]])
    torch.testing.assert_close(images.grad, expected)
    free = torch.zeros(1, 2, 2, 3, requires_grad=True)
    seen = free * 1
    limit_pixels(seen, math.inf)
    (seen * wanted).sum().backward()
    torch.testing.assert_close(free.grad, wanted)
