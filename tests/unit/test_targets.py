"""Image targets: the queries to the model, the replay buffer, and the fit of the splat."""

import dataclasses
import itertools

import pytest
import torch
from raising import raises

from lucid_core.cameras import Views, turntable
from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.diffusion.prior import Conds
from lucid_core.errors import BadSetting, NotFinite, OutOfMemory
from lucid_core.guidance.image_targets import PRESETS, ImageTargets
from lucid_core.guidance.mixing import GuidanceSource, Mix, MixedSource
from lucid_core.optimize.checkpoint import read, write
from lucid_core.optimize.densify import Densify
from lucid_core.optimize.loop import distil
from lucid_core.optimize.replay import Replay
from lucid_core.rasterize import rasterize
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.starts.shapes import PointCloud

from .priors import GaussianPrior
from .scenes import CAMERAS, CONFIG, METHOD, SIZE, WishPrior, batch_of, disc, normal, same_end

WISH, ANYTHING = normal(disc([0.9, 0.2, 0.1]), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
TARGETS = ImageTargets(views=4, fits=6, kept=12, sampling_steps=2, cfg=1.0, cfg_last=1.0, last=0.3, rate=2.0)
ONE_LEVEL = dict(t=0.5, t_last=0.5, t_spread=0.0, cfg=1.0, cfg_last=1.0)


class FullPrior(WishPrior):
    """No memory for more than two views."""

    def denoise(self, z, sigma, conds):
        if len(z) > 2:
            raise OutOfMemory("on purpose")
        return super().denoise(z, sigma, conds)


class BrokenPrior(WishPrior):
    """Its third round of pictures is not finite."""

    rounds = 0

    def decode(self, latents):
        self.rounds += 1
        return super().decode(latents) * (float("nan") if self.rounds > 2 else 1)


def source(targets=TARGETS, prior=None, negative=ANYTHING):
    return GuidanceSource(
        prior or WishPrior(), targets, Prompts((WISH,) * 4, negative=negative, inverse=ANYTHING)
    )


def steps(asked, steps=30, resume=None, **config):
    start = PointCloud(count=300, size=1.2).splats(0)
    config = replace_settings(CONFIG, steps=steps, **config)
    return distil(start, asked, CAMERAS, config, seed=4, backend="numba", resume=resume)


def psnr(splats):
    with torch.no_grad():
        image = rasterize(
            splats, turntable(4, 0.0, 5.3, 26.0, SIZE, SIZE), SIZE, SIZE, background=torch.ones(3)
        ).rgb
    return float(-10 * (image - disc([0.9, 0.2, 0.1]).movedim(1, -1)).square().mean().log10())


def ask(targets, images, prompt, inverse, negative=None, prior=None, seed=0):
    conds = Conds(y=prompt, negative=inverse if negative is None else negative, inverse=inverse)
    return targets.pictures(
        prior or GaussianPrior(0.3), images, conds, 0.0, torch.Generator().manual_seed(seed)
    )


@pytest.fixture
def images():
    return torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_sampling_follows_the_probability_flow_of_a_gaussian(images):
    """Its closed form: z - mean goes as sqrt(variance + sigma^2). Without inversion steps it begins at noise
    of sigma.
    """
    prior, mean = GaussianPrior(0.3), torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    targets = ImageTargets(**ONE_LEVEL, inversion_steps=0, sampling_steps=100)
    generator = torch.Generator().manual_seed(0)
    torch.rand((), generator=generator)
    sigma = prior.sigma(0.5)
    found = ask(targets, images, mean, mean)
    noise = torch.randn(2, 3, 8, 8, generator=generator).double()
    z = images.movedim(-1, 1) + sigma * noise
    exact = (mean + (z - mean) * (0.3 / (0.3 + sigma**2)) ** 0.5).movedim(1, -1)
    inside = (exact > 0) & (exact < 1)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(found[inside], exact[inside], rtol=0, atol=0.02)
    assert found.min() >= 0 and found.max() <= 1


def test_inversion_and_sampling_under_one_prompt_end_where_they_began(images):
    mean = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    errors = [
        float(
            (ask(ImageTargets(**ONE_LEVEL, inversion_steps=n, sampling_steps=n), images, mean, mean) - images)
            .abs()
            .mean()
        )
        for n in (2, 50)
    ]
    assert errors[1] < 0.03 and errors[1] < errors[0] / 3
    other = torch.full_like(mean, 0.2)
    changed = ask(ImageTargets(**ONE_LEVEL, inversion_steps=50, sampling_steps=50), images, other, mean)
    assert changed.mean() < images.mean() - 0.05  # towards the prompt


def test_a_certain_prior_says_its_wish_whatever_it_is_shown(images):
    wish = torch.full((1, 3, 8, 8), 0.25, dtype=torch.float64)
    found = ask(ImageTargets(**ONE_LEVEL), images, wish, wish, prior=GaussianPrior(0.0))
    torch.testing.assert_close(found, torch.full_like(images, 0.25))


def test_guidance_goes_beyond_the_prompt(images):
    prompt, negative = (
        torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64),
        torch.full((1, 3, 8, 8), 0.4, dtype=torch.float64),
    )
    means = [
        float(ask(ImageTargets(**{**ONE_LEVEL, "cfg": cfg}), images, prompt, prompt, negative).mean())
        for cfg in (1.0, 3.0)
    ]
    assert means[1] > means[0] + 0.02


@pytest.mark.parametrize("cfg, each", [(1.0, 1), (2.0, 2)])
def test_what_is_asked_is_counted(images, cfg, each):
    """A view costs one evaluation for each inversion step, two for each sampling step with guidance."""
    prior, mean = GaussianPrior(0.3), torch.full((1, 3, 8, 8), 0.5)
    settings = {**ONE_LEVEL, "cfg": cfg, "cfg_last": cfg, "inversion_steps": 3, "sampling_steps": 5}
    ask(ImageTargets(**settings), images, mean, mean, prior=prior)
    assert prior.evaluations == len(images) * (3 + each * 5)


def test_the_schedules_go_from_their_first_to_their_last_values():
    targets = ImageTargets(fall=0.5)
    assert [targets.anneal(progress, 4.0, 2.0) for progress in (0.0, 0.25, 0.5, 1.0)] == [4.0, 3.0, 2.0, 2.0]
    assert ImageTargets(fall=0.0).anneal(0.0, 4.0, 2.0) == 2.0


def test_it_asks_by_its_fits_and_not_in_its_last_part():
    targets = ImageTargets(fits=10, last=0.4)
    asked = [targets.rounds(step / 100, 100) for step in range(100)]
    assert asked[:60] == [step // 10 + 1 for step in range(60)] and set(asked[60:]) == {6}
    assert ImageTargets(last=0.99).rounds(0.5, 3) == 1


def pictures(count, first=0.0):
    value = first + torch.arange(float(count))
    return Replay(
        value[:, None, None].expand(-1, 4, 4),
        value[:, None, None].expand(-1, 3, 3),
        value[:, None].expand(-1, 3),
        value[:, None, None, None].expand(-1, 2, 2, 3),
        rounds=int(first) + 1,
    )


def test_the_replay_keeps_the_newest_pictures_with_their_cameras():
    replay = pictures(4).add(pictures(4, first=4.0), kept=6)
    for value in replay.tensors().values():
        assert value.flatten(1)[:, 0].tolist() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert replay.rounds == 5


def test_draws_use_every_picture_equally_often():
    replay, generator = pictures(5), torch.Generator().manual_seed(0)
    drawn = [replay.draw(2, generator).backgrounds[:, 0] for _ in range(2000)]
    assert all(len(set(pair.tolist())) == 2 for pair in drawn)
    counts = torch.cat(drawn).long().bincount()
    assert counts.sum() == 4000 and (counts - 800).abs().max() < 100
    assert replay.draw(12, generator).backgrounds[:, 0].long().bincount().max() == 3


def test_the_splat_comes_to_look_like_the_pictures():
    first, *_, last = steps(source(), 90)
    assert psnr(last.splats) > psnr(first.splats) + 8
    assert last.evaluations == 11 * 4 * (
        2 + 2
    )  # rounds, views, inversion and sampling steps without guidance


def test_most_steps_do_not_ask_the_model():
    evaluations = [step.evaluations for step in steps(source())]
    asked = [after > before for before, after in itertools.pairwise([0, *evaluations])]
    assert [step for step, was in enumerate(asked) if was] == [0, 6, 12, 18]


def test_a_resumed_run_is_the_run(tmp_path):
    whole = list(steps(source()))
    for at in (1, 10, 29):
        file = tmp_path / f"{at}.safetensors"
        write(file, next(itertools.islice(steps(source()), at - 1, None)).checkpoint(), {})
        *_, end = steps(source(), resume=read(file)[0])
        assert same_end(end, whole[-1])


def test_image_targets_follow_a_shape_in_sequence():
    """Each has its own schedules: the second begins at its own beginning, where the model is asked at
    once.
    """
    asked = MixedSource(source(METHOD), source(), Mix("sequence", 0.6))
    for progress, active, own in (
        (0.0, METHOD, 0.0),
        (0.2, METHOD, 0.5),
        (0.4, TARGETS, 0.0),
        (0.7, TARGETS, 0.5),
    ):
        phase = asked.phase(progress)
        assert phase.source.guidance == active and phase.progress == pytest.approx(own)
    assert asked.phase(0.7).length == pytest.approx(0.6)
    done = list(steps(asked))
    assert psnr(done[-1].splats) > psnr(done[0].splats) + 4
    *_, end = steps(asked, resume=next(itertools.islice(steps(asked), 14, None)).checkpoint())
    assert same_end(end, done[-1])


def test_a_sequence_within_a_sequence_shares_its_part_of_the_run():
    inner = MixedSource(source(METHOD), source(), Mix("sequence", 0.5))
    phase = MixedSource(source(METHOD), inner, Mix("sequence", 0.5)).phase(0.875)
    assert phase.source.guidance == TARGETS and (phase.progress, phase.length) == (0.5, 0.25)


@pytest.mark.parametrize("mode", ["sequence", "switch"])
def test_image_targets_after_image_targets_are_made_anew(mode):
    first, second = WishPrior(), WishPrior()
    few = dataclasses.replace(TARGETS, fits=100)
    asked = MixedSource(source(prior=first), source(few, prior=second), Mix(mode, 0.3))
    done = list(steps(asked))
    assert first.evaluations > 0 and second.evaluations > 0
    assert done[20].evaluations == first.evaluations and done[21].evaluations > first.evaluations
    assert len(done[21].checkpoint().tensors["replay.pictures"]) == few.views  # none of the first model's
    *_, end = steps(asked, resume=next(itertools.islice(steps(asked), 24, None)).checkpoint())
    assert same_end(end, done[-1])


def test_image_targets_after_a_switch_have_their_own_schedule():
    """As in a sequence: several rounds, the first at the first noise level."""
    phases = [
        MixedSource(source(METHOD), source(), Mix(mode, 0.3)).phase(0.85) for mode in ("switch", "sequence")
    ]
    assert [(phase.progress, phase.length, phase.start) for phase in phases] == [
        pytest.approx((0.5, 0.3, 0.7))
    ] * 2


def test_one_prior_behind_two_methods_is_counted_once():
    prior = WishPrior()
    asked = MixedSource(source(METHOD, prior), source(TARGETS, prior), Mix("sequence", 0.5))
    *_, last = steps(asked)
    assert last.evaluations == prior.evaluations


def three_views():
    views = Views(turntable(3, 0.0, 5.3, 26.0, SIZE, SIZE), torch.tensor([0.1, 2.0, -1.0]), torch.zeros(3))
    return batch_of(torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(5)), views)


def wanting(color, **changes):
    wish = normal(disc(color), 0.1)
    targets = dataclasses.replace(TARGETS, t=1.0, t_last=1.0, t_spread=0.0, inversion_steps=0, **changes)
    return GuidanceSource(WishPrior(), targets, Prompts((wish,) * 4, negative=ANYTHING, inverse=ANYTHING))


@pytest.mark.parametrize("progress, share", [(0.0, 0.2), (0.5, 0.4), (1.0, 0.6)])
def test_two_models_make_one_set_of_images_by_their_shares(progress, share):
    """The mean of two Gaussian denoisers of one variance is that of the mean of their means."""
    batch = three_views()
    red, blue = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.9])
    mixed = MixedSource(wanting(red.tolist()), wanting(blue.tolist(), views=9), Mix("add", 0.2, 0.6))
    one = wanting(((1 - share) * red + share * blue).tolist())
    found, expected = (
        asked.pictures(batch, progress, torch.Generator().manual_seed(0)) for asked in (mixed, one)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert mixed.first.evaluations == mixed.second.evaluations == one.evaluations


def test_the_second_model_works_below_its_own_noise_level():
    """Of the sampling steps at t = 1, 0.75, 0.5 and 0.25, a model of t 0.6 to 0.3 does two, later one."""
    first = wanting([0.9, 0.2, 0.1], sampling_steps=4)
    second = dataclasses.replace(TARGETS, t=0.6, t_last=0.3, fall=1.0)
    mixed = MixedSource(first, source(second), Mix("add", 1.0))
    a_step = 3  # views, without guidance
    for progress, counts in ((0.0, (2, 2)), (1.0, (3, 1))):
        before = [prior.evaluations for prior in mixed.priors()]
        mixed.pictures(three_views(), progress, torch.Generator().manual_seed(0))
        asked = [prior.evaluations - count for prior, count in zip(mixed.priors(), before)]
        assert asked == [a_step * count for count in counts]


def test_a_run_of_two_models_that_make_images_together_is_resumed_bit_for_bit():
    asked = MixedSource(wanting([0.9, 0.2, 0.1]), wanting([0.1, 0.2, 0.9]), Mix("add", 0.5))
    done = list(steps(asked, 12))
    assert asked.phase(0.0).target_source is asked and asked.second.evaluations > 0
    *_, end = steps(asked, 12, resume=next(itertools.islice(steps(asked, 12), 7, None)).checkpoint())
    assert same_end(end, done[-1])


@pytest.mark.parametrize("mode, other", [("add", METHOD), ("alternate", METHOD), ("alternate", TARGETS)])
def test_pictures_cannot_share_a_step_with_a_gradient(mode, other):
    with raises(BadSetting, name="mode", value=repr(mode)):
        MixedSource(source(other), source(), Mix(mode, 0.5))


def test_images_are_made_by_two_models_at_most():
    two = MixedSource(source(), source(), Mix("add", 0.5))
    with raises(BadSetting, name="mode", value="'add'"):
        MixedSource(two, source(), Mix("add", 0.5))
    assert MixedSource(two, source(METHOD), Mix("sequence", 0.5)).phase(0.0).target_source is two


def test_a_full_memory_asks_about_fewer_views_for_the_same_pictures():
    whole, parts = list(steps(source(), 4)), list(steps(source(prior=FullPrior()), 4))
    assert [step.evaluations for step in parts] == [step.evaluations for step in whole]
    torch.testing.assert_close(parts[-1].splats.means, whole[-1].splats.means, rtol=0, atol=1e-4)


def test_a_broken_picture_ends_the_run_with_the_last_good_splat():
    done = []
    with raises(NotFinite, what="a picture of the model", step=13):
        done.extend(steps(source(prior=BrokenPrior())))
    last = done[-1]
    assert last.step == 12 and all(value.isfinite().all() for value in vars(last.splats).values())
    assert last.checkpoint().step == 12


def test_strength_lowers_the_noise():
    weak = TARGETS.with_strength(0.5)
    assert (weak.t, weak.t_last, weak.t_spread) == (TARGETS.t / 2, TARGETS.t_last / 2, TARGETS.t_spread / 2)
    assert TARGETS.with_strength(1.0) == TARGETS


@pytest.mark.parametrize("most, found", [(9.0, (7.5, 5.0)), (6.0, (6.0, 5.0)), (1.0, (1.0, 1.0))])
def test_guidance_scales_are_limited(most, found):
    limited = PRESETS["official"].limit_cfg(most)
    assert (limited.cfg, limited.cfg_last) == found


def test_frozen_colours_stay_whatever_the_pictures_show():
    start = PointCloud(count=300, size=1.2).splats(0)
    still = dataclasses.replace(TARGETS, grow_grad2d=NO_GROWTH)
    *_, last = steps(source(still), 8, freeze_color=True)
    assert torch.equal(last.splats.sh, start.sh)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"views": 0}, "views"),
        ({"t_last": 0.5}, "t_last"),
        ({"t_spread": 0.2}, "t_spread"),
        ({"kept": 3}, "kept"),
        ({"cfg": float("nan")}, "cfg"),
        ({"sampling_steps": 0}, "sampling_steps"),
    ],
)
def test_settings_out_of_their_meaning_are_refused_by_name(changes, name):
    with raises(BadSetting, name=name):
        ImageTargets(**changes)


def test_every_view_gets_a_picture_of_its_dtype():
    found = source().pictures(three_views(), 0.0, torch.Generator().manual_seed(0))
    assert found.shape == (3, SIZE, SIZE, 3) and found.dtype == torch.float32


def test_growth_has_a_threshold_of_its_own_while_pictures_are_fitted():
    """The run's own, for gradients of a guidance, would grow nothing; the statistic begins anew with the
    first pictures.
    """
    config = {"densify": Densify(start=0.1, stop=0.9, every=0.1, grow_grad2d=NO_GROWTH, reset_every=0.1)}
    mixed = lambda grow: MixedSource(
        source(METHOD), source(dataclasses.replace(TARGETS, grow_grad2d=grow)), Mix("sequence", 0.5)
    )
    counts = [[len(step.splats) for step in steps(mixed(grow), **config)] for grow in (1e-5, NO_GROWTH)]
    assert max(counts[0][:15]) <= 300 < counts[0][-1] and counts[1][-1] <= 300
    before, after = (
        step.splats.opacities.max() for step in itertools.islice(steps(source(), 12, **config), 1, 12, 9)
    )
    assert after > 0.5 * before  # a reset would leave none above a hundredth


def test_faint_splats_are_removed_while_pictures_are_fitted():
    config = {"densify": Densify(start=0.1, stop=0.9, every=0.3, grow_grad2d=NO_GROWTH, reset_every=0.0)}
    still = dataclasses.replace(TARGETS, grow_grad2d=NO_GROWTH)
    *_, whole = steps(source(dataclasses.replace(still, prune_opacity=0.0)), 10, **config)
    *_, pruned = steps(source(dataclasses.replace(still, prune_opacity=0.1)), 10, **config)
    assert 0 < len(pruned.splats) < len(whole.splats) == 300


def test_the_difference_is_the_sum_of_its_weighted_parts():
    error = torch.zeros(1, 4, 4, 3)
    error[:, :, :2] = 0.5  # one edge down the middle
    difference = lambda **weights: ImageTargets(**weights).difference(error, torch.zeros_like(error)).item()
    assert difference(square_weight=0.0) == pytest.approx(0.25)
    assert difference(square_weight=4.0) == pytest.approx(0.25 + 4 * 0.125)
    assert difference(square_weight=0.0, edge_weight=2.0) == pytest.approx(0.25 + 2 * 0.5 / 3)
