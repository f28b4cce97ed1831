import math
from dataclasses import replace

import pytest
import torch

from demo import score as scoring
from demo.score import iou, maximise, psnr, render, score, truth
from demo.splats import splat_of
from demo.world import parse
from lucid_core.splats import Splats


@pytest.fixture(autouse=True, scope="module")
def fewer_and_smaller_views():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "VIEWS", 8)
        patch.setattr(scoring, "SIZE", 64)
        truth.cache_clear()
        yield
    truth.cache_clear()


def rotate(splats: Splats, degrees: float) -> Splats:
    """About the vertical; the Gaussians of `splat_of` are round, so their quaternions need not follow."""
    a = math.radians(degrees)
    rotation = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    return replace(splats, means=splats.means @ rotation.T)


@pytest.mark.parametrize("prompt", ["a red mushroom", "a purple house"])
def test_a_splat_of_the_truth_scores_high(prompt):
    result = score(splat_of(parse(prompt)), parse(prompt))
    assert result.psnr > 20 and result.iou > 0.93
    assert result.scale == pytest.approx(1, abs=0.05)


def test_a_mirrored_or_turned_splat_scores_lower():
    thing = parse("an orange mug")
    splats = splat_of(thing)
    right = score(splats, thing)
    for wrong in (replace(splats, means=splats.means * torch.tensor([-1.0, 1, 1])), rotate(splats, 40)):
        other = score(wrong, thing)
        assert right.psnr > other.psnr + 5 and right.iou > other.iou + 0.05


def test_size_is_fitted_and_nothing_else():
    thing = parse("a blue snowman")
    splats = splat_of(thing)
    plain, small = score(splats, thing), score(splats.scale_by(0.7), thing)
    assert small.scale == pytest.approx(plain.scale / 0.7, rel=0.005)
    assert small.psnr == pytest.approx(plain.psnr, abs=0.05)
    moved = replace(splats, means=splats.means + torch.tensor([0.0, 0.3, 0.0]))
    assert score(moved, thing).psnr < plain.psnr - 5


def test_score_leaves_the_splat_alone_and_needs_no_gradient():
    thing = parse("a green sphere")
    splats = splat_of(thing, 200).map(lambda x: x.requires_grad_())
    before = splats.detach()
    score(splats, thing)
    assert torch.equal(splats.means, before.means) and splats.means.grad is None


def test_the_sheet_of_a_perfect_splat_looks_like_the_truth():
    thing = parse("a yellow torus")
    expected, seen = truth(thing), render(splat_of(thing), thing)
    assert seen.shape == expected.rgb.shape == (scoring.VIEWS, scoring.SIZE, scoring.SIZE, 3)
    assert psnr(seen, expected.rgb) > 20


def test_psnr_is_the_mean_of_the_views_own():
    expected = torch.full((2, 4, 4, 3), 0.5)
    images = expected + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(images, expected) == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert psnr(expected, expected) == pytest.approx(100)


def test_iou_is_the_mean_of_the_views_own():
    a, b = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    a[0, :2], b[0, 1:3] = True, True  # 4 of 12
    a[1], b[1] = True, True
    assert iou(a, b) == pytest.approx((1 / 3 + 1) / 2)


def test_maximise_finds_the_higher_of_two_hills():
    two_hills = lambda x: math.exp(-(((x - 0.3) / 0.1) ** 2)) + 0.8 * math.exp(-(((x + 0.5) / 0.1) ** 2))
    assert maximise(two_hills, -0.7, 0.7) == pytest.approx(0.3, abs=1e-3)
