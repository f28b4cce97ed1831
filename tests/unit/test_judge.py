"""The diffusion classifier with priors whose answers are known, its report and its pictures."""

import json
import math

import pytest
import torch
from raising import raises

from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import BadInput, BadSetting
from lucid_core.score import classifier
from lucid_core.score.chart import HEIGHT, WIDTH, chart
from lucid_core.score.classifier import NEGATIVE, WORDS, JudgeSettings, Verdict, judge, noise_levels
from lucid_core.score.report import Report
from lucid_core.score.sheet import caption, contact_sheet, side_by_side
from lucid_core.score.views import pick_views

from .priors import GaussianPrior

RED, GREEN, BLUE, GREY = (
    torch.tensor(c) for c in ([0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.1, 0.7], [0.5] * 3)
)
COLORS, SIZE, OFFSET = (RED, GREEN, BLUE), 4, 0.05
SMALL = JudgeSettings(views=12, max_evaluations=2 * 12 * 6)


def as_cond(color):
    """A conditioning of the Gaussian priors: the mean of the latents (1, 3, 4, 4)."""
    return color.reshape(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)


def prompts_of(colors=COLORS, negative=GREY):
    return Prompts((*map(as_cond, colors), as_cond(GREY)), as_cond(negative), as_cond(GREY))


def turntable(words):
    """A plain image of almost the word's colour for each view."""
    return torch.stack([(COLORS[word] + OFFSET).expand(SIZE, SIZE, 3) for word in words])


TRUE = [0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0]  # by azimuth 0, 30, ..., 330


def verdict_of(words, **options):
    return judge(GaussianPrior(), turntable(words), prompts_of(), SMALL, **options)


def test_the_errors_are_those_of_the_prior():
    """Without variance it predicts the conditioning, whatever the noise."""
    images = turntable(TRUE)
    verdict = verdict_of(TRUE)
    for i, text in enumerate((*COLORS, GREY)):
        expected = (images[:, 0, 0] - text).double().square().mean(-1).log()
        assert torch.allclose(
            verdict.log_errors[..., i], expected.expand_as(verdict.log_errors[..., i]), atol=1e-5
        )


def test_a_true_object_has_one_face_and_every_word_in_its_place():
    verdict = verdict_of(TRUE)
    assert verdict.word.tolist() == verdict.best_word.tolist() == TRUE
    assert verdict.many_faces_rate == 0 and not verdict.second_face.is_sure
    assert torch.equal(verdict.confusion(), torch.eye(3).double())


def test_the_score_is_the_guided_log_likelihood():
    verdict = verdict_of(TRUE)
    own = math.log(OFFSET**2)
    images = turntable(TRUE)
    negative = float((images[:, 0, 0] - GREY).double().square().mean(-1).log().mean())
    assert verdict.fit == pytest.approx(-own, abs=1e-4)
    assert verdict.margin_against(NEGATIVE).mean == pytest.approx(negative - own, abs=1e-4)
    assert verdict.score == pytest.approx(negative - 2 * own, abs=1e-4)
    assert verdict.margin_against(NEGATIVE).error == pytest.approx(0, abs=1e-5)


def test_a_front_on_the_back_is_a_second_face():
    words = [0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    verdict = verdict_of(words)
    assert verdict.many_faces_rate == pytest.approx(3 / 9)
    assert verdict.second_face.is_sure
    image = turntable([0])[0, 0, 0]
    better = min(float((image - color).square().mean().log()) for color in (GREEN, BLUE)) - math.log(
        OFFSET**2
    )
    assert verdict.second_face.mean == pytest.approx(better, abs=1e-4)
    assert verdict.confusion()[2].tolist() == [1, 0, 0]


def test_a_turned_object_has_its_front_away_but_no_second_face():
    verdict = verdict_of(TRUE[-3:] + TRUE[:-3])  # the front looks to azimuth 90
    assert verdict.many_faces_rate > 0 and not verdict.second_face.is_sure


def test_errors_are_paired_and_do_not_depend_on_the_batch(monkeypatch):
    prior, images = GaussianPrior(variance=0.3), turntable(TRUE)
    together = judge(prior, images, prompts_of(), SMALL, seed=3)
    monkeypatch.setattr(classifier, "TOGETHER", 1)
    alone = judge(prior, images, prompts_of(), SMALL, seed=3)
    assert torch.allclose(together.log_errors, alone.log_errors, atol=1e-5)
    other = judge(prior, images, prompts_of(), SMALL, seed=4)
    assert not torch.allclose(together.log_errors, other.log_errors, atol=1e-3)
    twice = judge(prior, images, prompts_of((RED, RED, BLUE)), SMALL, seed=3)
    assert torch.equal(twice.log_errors[..., 0], twice.log_errors[..., 1])  # the same text, the same noise


def test_other_texts_are_compared_by_the_word_of_each_view():
    better = prompts_of(tuple(color + OFFSET for color in COLORS))
    worse = prompts_of((GREY, GREY, GREY))
    verdict = verdict_of(TRUE, others={"a cup": better, "a bowl": worse})
    assert verdict.margin_against(NEGATIVE + 1).mean < -10  # its error is 0
    assert verdict.margin_against(NEGATIVE + 2).mean == pytest.approx(
        verdict.margin_against(NEGATIVE).mean, abs=1e-5
    )


def test_transparent_pictures_are_put_on_white():
    clear = torch.cat([torch.full((4, 8, 8, 3), 0.2), torch.full((4, 8, 8, 1), 0.25)], -1)
    pictures, azimuth_deg = pick_views(clear, 4, 8)
    assert pictures.shape == (4, 8, 8, 3) and torch.allclose(pictures, torch.tensor(0.25 * 0.2 + 0.75))
    assert azimuth_deg.tolist() == [0, 90, 180, 270]


def test_views_may_be_spaced_unequally():
    azimuth_deg = torch.tensor([0.0, 72, 144, 288])
    verdict = judge(GaussianPrior(), turntable([0, 1, 2, 1]), prompts_of(), SMALL, azimuth_deg=azimuth_deg)
    assert verdict.word.tolist() == verdict.best_word.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("views, most, texts, levels", [(12, 300, 4, 6), (12, 300, 7, 3), (4, 32, 4, 2)])
def test_evaluations_are_limited(views, most, texts, levels):
    settings, prior, seen = JudgeSettings(views, most), GaussianPrior(), []
    assert settings.levels(views, texts) == levels
    others = {str(i): prompts_of() for i in range(texts - NEGATIVE - 1)}
    verdict = judge(prior, turntable(TRUE[:views]), prompts_of(), settings, others, report=seen.append)
    assert verdict.evaluations == prior.evaluations == seen[-1] == views * texts * levels <= most
    assert len(verdict.log_errors) == len(noise_levels(levels)) == levels


def test_bad_input_is_refused():
    with raises(BadSetting, name="max_evaluations", value=95):
        JudgeSettings(12, 95).levels(12, 4)
    with raises(BadInput, name="image"):
        verdict_of(TRUE[:3])
    images = turntable(TRUE)
    images[4, 0, 0, 0] = math.nan
    with raises(BadInput, name="image"):
        judge(GaussianPrior(), images, prompts_of(), SMALL)
    prior = GaussianPrior()
    with raises(BadInput, name="prompt"):
        judge(prior, turntable(TRUE), prompts_of((RED, RED, RED)), SMALL)
    assert prior.evaluations <= classifier.TOGETHER * 4  # noticed at the first call


def test_views_are_named_by_their_angle():
    verdict = Verdict(torch.tensor([0.0, 45, 46, 135, 136, 180, 224, 225, 314, 315]), torch.empty(0), (), 0)
    assert [WORDS[i] for i in verdict.word] == [
        "front", "front", "side", "side", "back", "back", "back", "side", "side", "front",
    ]  # fmt: skip


MEASURES = {
    "fog": 0.5,
    "saturation": [0.1, 0.5, 0.9],
    "brightness": [0.1, 0.5, 0.9],
    "high_frequency": 0.1,
    "splats": 1000,
    "aspect": [1.0, 2.0],
    "floaters": 0.01,
}


def test_the_report_is_json_and_its_chart_shows_a_second_face():
    true, false = verdict_of(TRUE), verdict_of([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0])
    reports = [Report(verdict, "a mug", MEASURES, [1.0] * 12) for verdict in (true, false)]
    found = [json.loads(json.dumps(report.contents())) for report in reports]
    assert [one["has_second_face"] for one in found] == [False, True]
    assert found[0]["score"] == pytest.approx(true.score, abs=1e-4)
    assert [view["azimuth_deg"] for view in found[0]["views"]] == [30 * i for i in range(12)]
    assert found[1]["views"][6]["best_word"] == "front" and found[1]["views"][6]["similarity"] == 1
    pictures = [chart(report) for report in reports]
    assert all(picture.shape == (HEIGHT, WIDTH, 3) for picture in pictures)
    assert not torch.equal(*pictures) and pictures[0].min() >= 0 and pictures[0].max() <= 1
    of_pictures = {name: MEASURES[name] for name in ("saturation", "brightness", "high_frequency")}
    assert not torch.equal(chart(Report(true, "a mug", of_pictures)), pictures[0])
    assert "no second face" in reports[0].lines()[0] and "a second face" in reports[1].lines()[0]


def test_captions_and_sheets():
    views = torch.zeros(3, 64, 96, 3)
    low, high = caption(views, ["A"]), caption(views, ["B   preferred", "score 1", "fog 0.1"], True)
    assert torch.equal(low[:, :64], views) and low[:, 64:].min() < 0.7 < low[:, 64:].max()
    both = side_by_side([low, high])
    assert both.shape == (3, high.shape[1], 192, 3)
    assert (both[:, low.shape[1] :, :96] == 1).all()
    assert contact_sheet([low[:1], low[:1]]).shape == (1, 2 * low.shape[1], 96, 3)
