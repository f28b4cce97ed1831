"""Two teachers: who speaks when, and that a mix says what its parts say."""

import dataclasses
import itertools

import pytest
import torch
from raising import raises

from lucid_core.cameras import Views, turntable
from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import BadSetting, OutOfMemory
from lucid_core.guidance.base import PixelGradient
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import MODES, GuidanceSource, Mix, MixedSource
from lucid_core.guidance.sds import SDS
from lucid_core.guidance.tsm import TSM
from lucid_core.optimize.loop import distil
from lucid_core.settings import replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, METHOD, SIZE, WishPrior, batch_of, disc, normal

RED, BLUE = (0.9, 0.2, 0.1), (0.1, 0.2, 0.9)


class Scaled(WishPrior):
    """Latents of another VAE: `factor` times the image."""

    def __init__(self, factor=1.0, views=1000):
        super().__init__()
        self.factor, self.views = factor, views

    def encode(self, images):
        return self.factor * super().encode(images)

    def denoise(self, z, sigma, conds):
        if len(z) > self.views:
            raise OutOfMemory("on purpose")
        return super().denoise(z, sigma, conds)


def source(color, method=METHOD, **prior):
    wish, anything = normal(disc(color), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
    return GuidanceSource(Scaled(**prior), method, Prompts((wish,) * 4, negative=anything, inverse=anything))


def pulled(asked, progress=0.4, seed=0, generator=None):
    """(gradient at two grey images, loss)."""
    images = torch.linspace(0.2, 0.8, 2 * SIZE * SIZE * 3).reshape(2, SIZE, SIZE, 3).requires_grad_()
    views = Views(turntable(2, 0.0, 5.3, 26.0, SIZE, SIZE), torch.tensor([0.1, 2.0]), torch.zeros(2))
    loss = asked.loss(
        batch_of(images * 1.0, views), progress, generator or torch.Generator().manual_seed(seed)
    ).loss
    loss.backward()
    return images.grad, loss.item()


@pytest.mark.parametrize("progress, second", [(0.0, False), (0.69, False), (0.71, True), (0.99, True)])
def test_a_switch_is_one_teacher_and_then_the_other(progress, second):
    first, other = source(RED), source(BLUE, factor=2.0)
    mixed = MixedSource(first, other, Mix("switch", 0.3))
    assert torch.equal(pulled(mixed, progress)[0], pulled(other if second else first, progress)[0])
    assert (first if second else other).evaluations == 0


@pytest.mark.parametrize("mode, own", [("sequence", 0.5), ("switch", 0.75)])
def test_a_mix_in_turn_within_a_sum_has_its_own_schedules(mode, own):
    """At 0.75 of the run, half of the second part has passed in a sequence."""
    inner = MixedSource(source(RED), source(BLUE), Mix(mode, 0.5))
    both, _ = pulled(MixedSource(source(RED), inner, Mix("add", 1.0)), 0.75)
    assert torch.equal(both, pulled(source(BLUE), own)[0])


def test_added_teachers_pull_by_their_shares():
    """The second draws after the first; each through its own encoder."""
    first, second = source(RED), source(BLUE, SDS(), factor=2.0)
    both, loss = pulled(MixedSource(first, second, Mix("add", 0.3)))
    generator = torch.Generator().manual_seed(0)
    (a, loss_a), (b, loss_b) = pulled(first, generator=generator), pulled(second, generator=generator)
    torch.testing.assert_close(both, 0.7 * a + 0.3 * b)
    assert loss == pytest.approx(0.7 * loss_a + 0.3 * loss_b, rel=1e-5)


def test_the_limit_of_one_teacher_does_not_bind_the_other():
    strong = dataclasses.replace(METHOD, weight=100.0)
    limited = source(BLUE, TSM(weight=100.0, pixel_limit=1e-4))
    both, _ = pulled(MixedSource(source(RED, strong), limited, Mix("add", 0.5)))
    generator = torch.Generator().manual_seed(0)
    alone, rest = (
        pulled(source(RED, strong), generator=generator)[0],
        pulled(limited, generator=generator)[0],
    )
    assert 0 < rest.abs().max() <= 1.01e-4 < 0.1 * alone.abs().max()
    torch.testing.assert_close(both, 0.5 * alone + 0.5 * rest)


def test_teachers_alternate_at_random_by_their_share():
    weights = [
        Mix("alternate", 0.25).weights(0.5, generator)
        for generator in [torch.Generator().manual_seed(0)] * 4000
    ]
    assert set(weights) == {(1.0, 0.0), (0.0, 1.0)}
    assert sum(second for _, second in weights) / 4000 == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_no_share_and_a_whole_share_are_one_teacher_alone(mode):
    for share, speaks in ((0.0, 0), (1.0, 1)):
        sources = source(RED), source(BLUE)
        for progress in (0.0, 0.999):
            pulled(MixedSource(*sources, Mix(mode, share)), progress)
        assert sources[speaks].evaluations > 0 and sources[1 - speaks].evaluations == 0


def test_the_share_of_a_sum_changes_linearly():
    mix = Mix("add", 0.2, share_last=0.8)
    weights = torch.tensor([mix.weights(progress, torch.Generator()) for progress in (0.0, 0.5, 1.0)])
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.2, 0.8]]))


def test_the_share_of_the_steps_changes_linearly():
    generator, mix = torch.Generator().manual_seed(0), Mix("alternate", 0.0, share_last=1.0)
    share = lambda progress: sum(mix.weights(progress, generator)[1] for _ in range(1000)) / 1000
    assert share(0.0) == 0 and share(1.0) == 1
    assert share(0.3) == pytest.approx(0.3, abs=0.05)  # three standard deviations


@pytest.mark.parametrize(
    "mode, last", [("switch", 0.5), ("sequence", 0.0), ("add", -0.5), ("alternate", 1.5)]
)
def test_a_share_that_cannot_change_is_refused(mode, last):
    with raises(BadSetting, name="share_last"):
        Mix(mode, 0.5, last)


@pytest.mark.parametrize(
    "settings, name, value", [(("both", 0.5), "mode", "'both'"), (("add", 1.5), "share", 1.5)]
)
def test_bad_mixes_are_refused(settings, name, value):
    with raises(BadSetting, name=name, value=value):
        Mix(*settings)


def steps(asked, steps=8, resume=None):
    start = PointCloud(count=200, size=1.2).splats(0)
    return distil(
        start,
        asked,
        CAMERAS,
        replace_settings(CONFIG, steps=steps),
        seed=4,
        backend="numba",
        resume=resume,
    )


def three(mode, **prior):
    """A mix of a mix."""
    inner = MixedSource(source(RED, **prior), source(BLUE, ISM(cfg=2.0), factor=2.0), Mix("add", 0.4))
    return MixedSource(inner, source(BLUE, SDS()), Mix(mode, 0.5))


@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_run_is_resumed_bit_for_bit(mode):
    whole = list(steps(three(mode)))
    kept = next(itertools.islice(steps(three(mode)), 3, None)).checkpoint()
    *_, end = steps(three(mode), resume=kept)
    assert torch.equal(end.splats.means, whole[-1].splats.means) and torch.equal(
        end.splats.sh, whole[-1].splats.sh
    )
    assert (end.step, end.evaluations) == (8, whole[-1].evaluations)


def test_one_models_full_memory_halves_the_views_of_all():
    whole, parts = list(steps(three("add"), 2)), list(steps(three("add", views=1), 2))
    assert [step.evaluations for step in parts] == [step.evaluations for step in whole]
    torch.testing.assert_close(
        parts[0].splats.means, whole[0].splats.means, rtol=0, atol=2 * CONFIG.optimizer.rates.lr_means[0]
    )


def test_after_a_switch_the_colour_turns_to_that_of_the_second():
    def blueness(asked):
        *_, last = steps(asked, 60)
        middle = last.x0_preview()[SIZE // 2, SIZE // 2]
        color = (last.splats.opacities[:, None] * last.splats.sh[:, 0]).mean(0)
        return float(color[2] - color[0]), float(middle[2] - middle[0])

    red, switched = (
        blueness(source(RED)),
        blueness(MixedSource(source(RED), source(BLUE), Mix("switch", 0.6))),
    )
    assert red[0] < -0.5 and switched[0] > red[0] + 0.3
    assert red[1] < 0 < switched[1]  # what the previews show is of the teacher that was asked last


def views_of(count):
    return Views(
        turntable(count, 0.0, 5.3, 26.0, SIZE, SIZE), torch.linspace(0.1, 2.0, count), torch.zeros(count)
    )


def gradient_of(asked, pixels):
    images = torch.linspace(0.2, 0.8, 2 * SIZE * SIZE * 3).reshape(2, SIZE, SIZE, 3).requires_grad_()
    batch = batch_of(images * 1.0, views_of(2))
    asked.loss(batch, 0.4, torch.Generator().manual_seed(0), pixels).loss.backward()
    return images.grad


def test_the_residual_is_the_view_less_what_the_model_makes_of_it_as_strong_as_the_gradient():
    """Here a latent is its image, so the picture is the image less the unweighted gradient where that lies in
    [0, 1].
    """
    asked = source(RED)
    plain, residual = (gradient_of(asked, PixelGradient(image_residual=on)) for on in (False, True))
    images = torch.linspace(0.2, 0.8, 2 * SIZE * SIZE * 3).reshape(2, SIZE, SIZE, 3)
    expected = images - (images - plain / METHOD.weight).clamp(0, 1)
    torch.testing.assert_close(residual, expected * (plain.norm() / expected.norm()))


def test_no_graph_of_the_encoder_is_kept_for_the_residual():
    class Watched(Scaled):
        def encode(self, images):
            assert not images.requires_grad
            return super().encode(images)

    asked = dataclasses.replace(source(RED), prior=Watched())
    assert gradient_of(asked, PixelGradient(image_residual=True)).abs().sum() > 0


def test_the_pull_is_averaged_over_squares_and_then_limited():
    plain = gradient_of(source(RED), PixelGradient())
    means = gradient_of(source(RED), PixelGradient(pixel_average=8))
    squares = plain.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).mean((2, 4), keepdim=True)
    torch.testing.assert_close(means, squares.expand(-1, -1, 8, -1, 8, -1).flatten(3, 4).flatten(1, 2))
    limit = float(means.abs().max()) / 2
    limited = gradient_of(source(RED), PixelGradient(pixel_limit=limit, pixel_average=8))
    assert limited.abs().max() == pytest.approx(limit, rel=1e-5)
    hue = limited / limited.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(hue, means / means.norm(dim=-1, keepdim=True))


def test_a_size_that_does_not_divide_the_resolution_is_refused():
    with raises(BadSetting, name="pixel_average", value=7):
        replace_settings(CONFIG, pixel_average=7)
