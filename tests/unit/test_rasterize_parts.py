"""Renders that are cut into fewer views, or left to the next backend, for want of memory.

There is no GPU here: a limit of views stands for its memory, in the forward or in the backward pass, and
numba renders.
"""

from dataclasses import replace

import pytest
import torch
from raising import raises
from torch import nn

from lucid_core import rasterize as rasterizers
from lucid_core.errors import LostGpu, RenderOutOfMemory
from lucid_core.rasterize import choice, rasterize, slowdown
from lucid_core.settings import replace_settings

from .scenes import (
    CONFIG,
    FIELDS,
    H,
    SmallMemory,
    W,
    arguments,
    dream,
    random_splats,
    relative_error,
    three_views,
)
from .test_rasterize_choice import as_if_on_cuda, fake_probe, forget  # noqa: F401


class FullInBackward(torch.autograd.Function):
    """Passes images on; their gradients find no memory."""

    @staticmethod
    def forward(ctx, images):
        return images.view_as(images)

    @staticmethod
    def backward(ctx, gradients):
        raise torch.OutOfMemoryError("CUDA out of memory")


def limit(monkeypatch, name, forward=64, backward=64):
    """Let `name` be numba with memory for so many views at a time -> the numbers of views it is asked for."""
    asked, real = [], choice.renderer

    def limited(*arguments):
        views = len(arguments[1])
        asked.append(views)
        if views > forward:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rgb, *others = real("numba")(*arguments)
        if views > backward and rgb.requires_grad:
            rgb = FullInBackward.apply(rgb)
        return rgb, *others

    monkeypatch.setattr(choice, "renderer", lambda other: limited if other == name else real(other))
    return asked


def render_and_gradients(backend="auto", seed=0):
    splats = random_splats(seed=seed, sh_degree=1).map(lambda x: x.requires_grad_())
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    render = rasterize(splats, three_views(), W, H, background=background, backend=backend)
    render.info["means2d"].retain_grad()  # as gsplat's strategies do
    g = torch.Generator().manual_seed(2)
    sum(
        (x * torch.randn(x.shape, generator=g)).sum() for x in (render.rgb, render.alpha, render.depth)
    ).backward()
    gradients = {name: getattr(splats, name).grad for name in FIELDS}
    return render, gradients | {"background": background.grad, "means2d": render.info["means2d"].grad}


def require_same(found, truth):
    (render, gradients), (true_render, true_gradients) = found, truth
    for name in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(render, name), getattr(true_render, name)), name
    for name in ("means2d", "radii"):
        assert torch.equal(render.info[name], true_render.info[name]), name
    assert {**render.info, "means2d": 0, "radii": 0} == {**true_render.info, "means2d": 0, "radii": 0}
    for name, gradient in gradients.items():
        assert relative_error(gradient, true_gradients[name]) < 1e-6, name


@pytest.mark.parametrize("backend", ["numba", "auto"])
@pytest.mark.parametrize("memory", [{"forward": 2}, {"forward": 1}, {"backward": 2}, {"backward": 1}])
def test_fewer_views_at_a_time_give_the_same(monkeypatch, backend, memory):
    truth = render_and_gradients()
    limit(monkeypatch, "numba", **memory)
    require_same(render_and_gradients(backend), truth)
    assert slowdown() == ""


def test_the_number_of_views_that_fits_is_found_once_in_a_run(monkeypatch):
    asked = limit(monkeypatch, "numba", forward=2)
    render_and_gradients()
    assert asked == [3, 2, 1, 2, 1]  # too many; the images; their gradients
    asked.clear()
    render_and_gradients()
    assert asked == [2, 1, 2, 1]
    choice.device_for("numba")
    asked.clear()
    render_and_gradients()
    assert asked == [3, 2, 1, 2, 1]


def test_views_that_fit_are_rendered_once(monkeypatch):
    asked = limit(monkeypatch, "numba")
    render_and_gradients()
    assert asked == [3]


def test_nothing_is_rendered_again_where_no_gradient_is_wanted(monkeypatch):
    asked = limit(monkeypatch, "numba", forward=2)
    with torch.no_grad():
        render = rasterize(random_splats(), three_views(), W, H)
    assert asked == [3, 2, 1] and not render.info["means2d"].requires_grad


@pytest.mark.parametrize("memory", [{"forward": 0}, {"backward": 0}])
def test_what_does_not_fit_as_one_view_is_left_to_the_next_backend(monkeypatch, memory):
    truth = render_and_gradients("numba")
    fake_probe(monkeypatch, gsplat="", gswarp="no")
    as_if_on_cuda(monkeypatch)
    asked = limit(monkeypatch, "gsplat", **memory)
    require_same(render_and_gradients(), truth)
    assert asked[0] == 3 and asked[-1] == 1
    assert "numba" in slowdown() and "gsplat has no memory for one view" in slowdown()
    asked.clear()
    require_same(render_and_gradients(), truth)
    assert not asked


@pytest.mark.parametrize("memory", [{"forward": 0}, {"backward": 0}])
def test_no_memory_for_one_view_ends_at_the_last_backend(monkeypatch, memory):
    limit(monkeypatch, "numba", **memory)
    with raises(RenderOutOfMemory, backend="numba"):
        render_and_gradients()


def test_an_error_of_the_backward_pass_that_is_none_of_memory_surfaces(monkeypatch):
    limit(monkeypatch, "numba", backward=0)

    def fail(ctx, gradients):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(FullInBackward, "backward", staticmethod(fail))
    with raises(LostGpu, backend="numba"):
        render_and_gradients()


def test_memory_that_others_lack_is_not_the_renderers(monkeypatch):
    """A model's backward pass over the images: its error stays what it was, and the render is not cut."""
    splats = random_splats().map(lambda x: x.requires_grad_())
    render = rasterize(splats, three_views(), W, H)
    with pytest.raises(torch.OutOfMemoryError):
        FullInBackward.apply(render.rgb).sum().backward()
    assert choice.views_at_a_time("numba") > 64 and slowdown() == ""


@pytest.mark.parametrize("forward", [64, 2])
def test_a_second_backward_pass_gives_the_same_gradients(monkeypatch, forward):
    limit(monkeypatch, "numba", forward=forward)
    splats = random_splats().map(lambda x: x.requires_grad_())
    rgb = rasterize(splats, three_views(), W, H).rgb
    inputs = [getattr(splats, name) for name in FIELDS]
    first, second = (torch.autograd.grad(rgb.square().sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_splats_that_change_before_the_backward_pass_are_noticed(monkeypatch):
    means = nn.Parameter(random_splats().means)
    render = rasterize(replace(random_splats(), means=means), three_views(), W, H)
    with torch.no_grad():
        means += 1
    with pytest.raises(RuntimeError, match="inplace"):
        render.rgb.sum().backward()


@pytest.mark.parametrize("wanted", ["opacities", "background"])
def test_only_wanted_gradients_are_made(monkeypatch, wanted):
    splats, background = random_splats(), torch.rand(3)
    leaf = {"background": background}.get(wanted, getattr(splats, wanted, None)).requires_grad_()
    rasterize(splats, three_views(), W, H, background=background).rgb.sum().backward()
    assert leaf.grad.any() and all(getattr(splats, name).grad is None for name in FIELDS if name != wanted)


# ---- in a run


def steps_of_a_run(**options):
    given = arguments(CONFIG)
    return list(dream(**{**given, "config": replace_settings(given["config"], steps=3), **options}))


def test_a_run_with_little_memory_takes_the_same_steps(monkeypatch):
    truth = steps_of_a_run()
    asked = limit(monkeypatch, "numba", backward=1)
    steps = steps_of_a_run()
    assert asked == [2, 1, 1, *[1, 1, 1, 1] * 2]  # only the first step tries both views together
    for step, true_step in zip(steps, truth):
        assert step.evaluations == true_step.evaluations and step.slowdown == ""
        assert step.losses == pytest.approx(true_step.losses, rel=1e-5)
        torch.testing.assert_close(step.splats.means, true_step.splats.means, rtol=0, atol=1e-4)


def test_each_step_says_why_it_is_slow(monkeypatch):
    fake_probe(monkeypatch, gsplat="", gswarp="no")
    as_if_on_cuda(monkeypatch)
    limit(monkeypatch, "gsplat", backward=0)
    monkeypatch.setattr(
        rasterizers, "device_for", lambda backend: choice.device_for(backend) and torch.device("cpu")
    )
    assert all("gsplat has no memory for one view" in step.slowdown for step in steps_of_a_run())


def test_a_full_memory_of_the_model_does_not_cut_the_render(monkeypatch):
    """Both fail in the same backward pass; the model is asked about fewer views at a time, in the same
    step.
    """
    asked = limit(monkeypatch, "numba")
    prior = SmallMemory(views=1, fails_in_backward=True)
    steps = steps_of_a_run(prior=prior)
    assert max(prior.seen[-6:]) == 1 and asked == [2] * 4  # one step is made twice
    assert [step.step for step in steps] == [1, 2, 3]
