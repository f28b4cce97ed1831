"""Where the model has no memory for all views at a time, it is asked about fewer, and says the same."""

import logging

import pytest
import torch
from raising import raises

from lucid_core.conditioning.view_prompts import Prompts, ViewBlend
from lucid_core.diffusion.prior import SplitPrior, is_out_of_memory
from lucid_core.errors import OutOfMemory, UnfinishedStep
from lucid_core.guidance.baselines import METHODS
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import GuidanceSource, Phase
from lucid_core.optimize.gaussians import Gaussians
from lucid_core.optimize.loop import FEWER
from lucid_core.optimize.state import Run
from lucid_core.optimize.step import Setup, backpropagate
from lucid_core.rasterize import Renderer
from lucid_core.settings import replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, SmallMemory, WishPrior, disc, dream, normal

ON_THE_DEVICE = getattr(
    torch, "AcceleratorError", torch.OutOfMemoryError
)  # which an older torch does not have


def prompts(perp_neg=0.0):
    """Four colours for the four sides."""
    colors = ([0.9, 0.2, 0.1], [0.1, 0.9, 0.2], [0.2, 0.1, 0.9], [0.9, 0.9, 0.1])
    anything = normal(disc([0.5, 0.5, 0.5]), 1.0)
    wishes = tuple(normal(disc(color), 0.01 * (1 + i)) for i, color in enumerate(colors))
    return Prompts(wishes, negative=anything, inverse=anything, blend=ViewBlend(perp_neg=perp_neg))


def gradients(prior, method, views, perp_neg=0.0):
    """What one batch of views gives the parameters, and the state of the generator after it."""
    config = replace_settings(CONFIG, views=views, resolution=64, tv_weight=1.0, flip_share=0.5)
    run = Run(Gaussians(PointCloud(count=200, size=1.2).splats(0), config, Renderer("numba")), seed=5)
    phase = Phase(GuidanceSource(prior, method, prompts(perp_neg)), 0.4)
    backpropagate(run, Setup(config, CAMERAS, Renderer("numba")), phase, 0)
    return {name: param.grad for name, param in run.params.items()}, run.generator.get_state()


ISMS = {"ISM": ISM(inversion_steps=3, eta=0.3, inversion_cfg=0.5), "fixed noise": ISM(fix_noise=True)}


@pytest.mark.parametrize("name", [*ISMS, *METHODS])
def test_every_method_gives_the_same_gradients_from_parts(name):
    """Of five views two, two and one at a time: the draws are those of the whole batch. With Perp-Neg,
    too.
    """
    method = ISMS.get(name) or METHODS[name]()
    for perp_neg in (0.0, 2.0):
        whole, drawn = gradients(SmallMemory(), method, 5, perp_neg)
        small = SmallMemory(2)
        parts, drawn_too = gradients(SplitPrior(small, 2), method, 5, perp_neg)
        assert torch.equal(drawn, drawn_too) and max(small.seen) == 2
        for key, gradient in whole.items():
            torch.testing.assert_close(
                parts[key],
                gradient,
                rtol=1e-3,
                atol=1e-5 * float(gradient.abs().max() if gradient.numel() else 1),
            )


@pytest.mark.parametrize("fails_in_backward", [False, True])
@pytest.mark.parametrize("fits", [3, 2, 1])
def test_a_run_goes_on_with_fewer_views_at_a_time(fits, fails_in_backward, caplog):
    def steps_of(prior):
        config = replace_settings(CONFIG, steps=3, views=4)
        return list(
            dream(PointCloud(count=100, size=1.2).splats(0), prior, ISM(), prompts(), CAMERAS, config, seed=0)
        )

    whole = steps_of(SmallMemory())
    with caplog.at_level(logging.WARNING):
        parts = steps_of(SmallMemory(fits, fails_in_backward))
    halves = [
        f"no memory for {size} views at a time; going on with {size // 2}" for size in (4, 2) if size > fits
    ]
    assert [record.message.split(",")[0] for record in caplog.records] == halves
    assert [step.evaluations for step in parts] == [step.evaluations for step in whole]
    assert parts[0].losses == pytest.approx(whole[0].losses, rel=1e-5)
    torch.testing.assert_close(
        parts[0].splats.means, whole[0].splats.means, rtol=0, atol=2 * CONFIG.optimizer.rates.lr_means[0]
    )


def test_the_machines_own_memory_counts_too():
    class Large(SmallMemory):
        def require(self, views, error):
            torch.empty(2**60 if views > self.views else 0)  # what torch's allocator itself says of it

    step = next(dream(PointCloud(count=100).splats(0), Large(2), ISM(), prompts(), CAMERAS, CONFIG, seed=0))
    assert step.splats.means.isfinite().all()


def test_no_memory_for_one_view_is_an_error_that_says_what_helps_and_loses_nothing():
    prior = SmallMemory()
    iterator = dream(PointCloud(count=100).splats(0), prior, ISM(), prompts(), CAMERAS, CONFIG, seed=0)
    next(iterator)
    last = next(iterator)
    prior.views = 0
    with raises(OutOfMemory, what="one view of 64 px"):
        next(iterator)
    assert last.checkpoint().step == 2


def test_a_full_memory_in_the_update_ends_the_run_with_the_last_splat(monkeypatch):
    """The parameters are partially updated: a repeated step would update some of them twice."""
    iterator = dream(PointCloud(count=100).splats(0), WishPrior(), ISM(), prompts(), CAMERAS, CONFIG, seed=0)
    last = next(iterator)
    calls, adam = [], torch.optim.Adam.step

    def second_fails(optimizer, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("on purpose")
        return adam(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", second_fails)
    with raises(OutOfMemory, what="the update of the parameters", remedy=FEWER):
        next(iterator)
    assert len(calls) == 2 and last.splats.means.isfinite().all()
    with raises(UnfinishedStep, step=2):
        last.checkpoint()


def test_another_error_is_not_taken_for_a_full_memory():
    class Broken(WishPrior):
        def denoise(self, z, sigma, conds):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        next(dream(PointCloud(count=100).splats(0), Broken(), ISM(), prompts(), CAMERAS, CONFIG, seed=0))


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (ON_THE_DEVICE("CUDA error: out of memory"), True),
        (ON_THE_DEVICE("CUDA error: an illegal memory access was encountered"), False),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 9.04 GiB, other allocations: 8.50 MiB)"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("rasterizer gsplat failed: CUDA out of memory; render fewer views"), False),
    ],
)
def test_full_memories_of_every_kind_of_device_count(error, counts):
    assert is_out_of_memory(error) == counts
