"""Both of gsplat's strategies on the CPU, driven by our loop: the helpers they lack there, the cap, the
seed.
"""

import dataclasses
import math

import pytest
import torch
from raising import raises

from lucid_core.errors import BadSetting
from lucid_core.optimize.densify import Densifier, Densify, relocate
from lucid_core.settings import replace_settings
from lucid_core.splats import parameters
from lucid_core.starts.shapes import PointCloud

from .scenes import CONFIG, run

MCMC = Densify(strategy="mcmc", start=0.1, stop=1.0, every=0.1, prune_opacity=0.02, reset_every=0.0)


def few_steps(densify, steps=20, **changes):
    return replace_settings(CONFIG, steps=steps, densify=densify, **changes)


def gsplats_table():
    return torch.tensor([[math.comb(n, k) for k in range(51)] for n in range(51)], dtype=torch.float32)


@pytest.mark.parametrize("opacity", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 51])
def test_relocation_is_equation_9_of_the_paper(opacity, n):
    """Against its double sum, term by term in Python's floats and whole binomials."""
    alpha = 1 - (1 - opacity) ** (1 / n)
    total = math.fsum(
        math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * alpha ** (k + 1)
        for i in range(1, n + 1)
        for k in range(i)
    )
    scales = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    opacities, new = relocate(
        torch.tensor([opacity], dtype=torch.float64), scales, torch.tensor([n]), gsplats_table()
    )
    assert opacities.item() == pytest.approx(alpha, rel=1e-12)
    torch.testing.assert_close(new, scales * opacity / total, rtol=1e-6, atol=0.0)


def test_relocated_splats_look_as_the_one_before():
    """n of them in one place have its opacity in the middle, and one alone is itself."""
    opacities, scales = (
        torch.rand(50, dtype=torch.float64) * 0.98 + 0.01,
        torch.rand(50, 3, dtype=torch.float64),
    )
    ratios = torch.arange(1, 51)
    alpha, _ = relocate(opacities, scales, ratios, gsplats_table())
    torch.testing.assert_close(1 - (1 - alpha) ** ratios, opacities)
    same = relocate(opacities, scales, torch.ones(50), gsplats_table())
    torch.testing.assert_close(same, (opacities, scales))


def test_more_than_the_table_holds_count_as_many_as_it_does():
    arguments = torch.tensor([0.5]), torch.ones(1, 3)
    at_most = relocate(*arguments, torch.tensor([51]), gsplats_table())
    assert all(
        torch.equal(a, b) for a, b in zip(relocate(*arguments, torch.tensor([400]), gsplats_table()), at_most)
    )


def test_mcmc_grows_by_a_twentieth_each_time_up_to_its_cap():
    counts = [len(step.splats) for step in run(few_steps(dataclasses.replace(MCMC, max_splats=640)))]
    assert counts[2] == 600 and counts[3] == 630 and counts[-1] == max(counts) == 640


def test_mcmc_moves_faint_splats_to_solid_ones():
    start = PointCloud(count=300, size=1.2).splats(0)
    opacities = start.opacities.clone()
    opacities[:100] = 0.001
    steps = run(
        few_steps(dataclasses.replace(MCMC, max_splats=300), lr_opacities=(1e-6, 1e-6)),
        start=dataclasses.replace(start, opacities=opacities),
    )
    assert len(steps[-1].splats) == 300
    before, after = steps[2].splats.opacities, steps[3].splats.opacities
    assert (before < 0.0199).sum() == 100 and (after < 0.0199).sum() == 0


def test_mcmc_shakes_faint_splats_most():
    """The noise falls off where opacity is above 1/200 (3DGS-MCMC, equation 8); off, nothing moves without a
    rate.
    """
    start = PointCloud(count=300, size=1.2).splats(0)
    faint = torch.arange(300) < 150
    start = dataclasses.replace(start, opacities=torch.where(faint, 0.004, 0.9), scales=start.scales * 10)
    quiet = few_steps(dataclasses.replace(MCMC, start=1.0), steps=1, lr_means=(1e-4, 1e-4))
    moved = [
        (run(replace_settings(quiet, noise=noise), start=start)[0].splats.means - start.means).norm(dim=1)
        for noise in (0.0, 5e5)
    ]
    assert moved[0].max() < 2e-4
    assert moved[1][faint].mean() > 100 * moved[1][~faint].mean()


def ten_splats(size):
    splats = PointCloud(count=10).splats(0)
    return dataclasses.replace(splats, scales=torch.ones(10, 3) * size)


def densified(splats, gradients, step=101, fitting=None, **settings):
    """Splats after one call at `step` of 1000 with image-plane gradients (B, N, 2) in pixels, of images of
    100 x 100.
    """
    densify = Densify(**{"start": 0.0, "every": 0.001, "reset_every": 0.1, **settings})
    densifier, params = Densifier(densify, 1000), parameters(splats)
    optimizers = {name: torch.optim.Adam([param]) for name, param in params.items()}
    means2d = torch.zeros_like(gradients).requires_grad_()
    means2d.grad = gradients.clone()
    views, n, _ = gradients.shape
    radii = torch.ones(views, n, 2, dtype=torch.int32)
    info = dict(means2d=means2d, radii=radii, width=100, height=100, n_cameras=views, gaussian_ids=None)
    densifier.after_backward(
        params, optimizers, step - 1, step, info, torch.Generator().manual_seed(0), fitting
    )
    return params


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("gradient, grown", [(0.9e-3, False), (1.1e-3, True)])
def test_growth_is_by_the_mean_gradient_of_a_view_however_many_are_summed(views, gradient, grown):
    """3DGS's statistic: the gradient's norm in half image widths, averaged over the views that show the
    splat.
    """
    start = ten_splats(0.02)
    pixels = torch.full((views, 10, 2), gradient / 50 / math.sqrt(2))
    after = densified(start, pixels, grow_grad2d=1e-3)
    assert len(after["means"]) == (20 if grown else 10)


def test_the_loss_of_a_fit_is_a_mean_over_its_views():
    start, pixels = ten_splats(0.02), torch.full((4, 10, 2), 1.1e-3 / 4 / 50 / math.sqrt(2))
    assert len(densified(start, pixels, fitting=(1e-3, 0.0))["means"]) == 20
    assert len(densified(start, pixels, grow_grad2d=1e-3)["means"]) == 10


@pytest.mark.parametrize("size, copied", [(0.0104, True), (0.0106, False)])
def test_small_splats_are_copied_and_large_ones_split_at_the_official_border(size, copied):
    """percent_dense 0.003 of an extent of 3.5."""
    after = densified(ten_splats(size), torch.full((1, 10, 2), 1.0))
    assert len(after["means"]) == 20
    assert float(after["scales"].detach().exp().max()) == pytest.approx(
        size if copied else size / 1.6, rel=1e-5
    )


def test_large_splats_are_pruned_after_the_first_reset():
    """Those over a tenth of the extent of 3.5."""
    start = ten_splats(torch.tensor([0.34] * 4 + [0.36] * 6)[:, None])
    still = torch.zeros(1, 10, 2)
    assert [len(densified(start, still, step)["means"]) for step in (99, 100, 101)] == [10, 10, 4]
    assert len(densified(start, still, prune_scale3d=0.0)["means"]) == 10


@pytest.mark.parametrize("prune, highest", [(0.0, 0.01), (0.005, 0.01), (0.02, 0.04), (0.6, 0.99)])
def test_a_reset_caps_opacities_and_leaves_some(prune, highest):
    start = dataclasses.replace(ten_splats(0.02), opacities=torch.full((10,), 0.995))
    after = densified(start, torch.zeros(1, 10, 2), step=100, prune_opacity=prune)
    torch.testing.assert_close(after["opacities"].detach().sigmoid(), torch.full((10,), highest))


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_same_seed_same_splat(strategy):
    densify = dataclasses.replace(MCMC, strategy=strategy, grow_grad2d=1e-6)
    first, second = (run(few_steps(densify, steps=12), seed=3)[-1].splats for _ in range(2))
    assert len(first) > 600 and len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values()))


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_the_cap_holds_within_a_growth_too(strategy):
    """Every splat asks to grow, and 7 may."""
    densify = dataclasses.replace(MCMC, strategy=strategy, grow_grad2d=0.0, prune_opacity=0.0, max_splats=607)
    counts = [len(step.splats) for step in run(few_steps(densify))]
    assert counts[-1] == 607 == max(counts)


def test_gsplats_own_functions_are_back_after_a_step():
    import gsplat.strategy.ops as ops

    before = ops.compute_relocation, ops.quat_scale_to_covar_preci
    run(few_steps(MCMC, steps=4))
    assert (ops.compute_relocation, ops.quat_scale_to_covar_preci) == before


@pytest.mark.parametrize(
    "bad", [{"strategy": "magic"}, {"max_splats": 0}, {"noise": -1.0}, {"every": 0.0}, {"start": 0.9}]
)
def test_bad_settings_are_refused_by_name(bad):
    with raises(BadSetting, name=next(iter(bad))):
        Densify(**bad)


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_the_generators_of_gpus_that_hold_no_splat_are_left_alone(strategy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("every GPU was seeded"))
    before = torch.get_rng_state()
    run(few_steps(Densify(strategy=strategy), steps=2))
    assert torch.equal(torch.get_rng_state(), before)
