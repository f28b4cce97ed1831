import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from demo import score as scoring
from demo import shapes
from demo.score import iou, maximise, psnr, render, score, truth
from demo.words import KINDS
from demo.world import Thing, parse
from lucid_core.splats import SH_C0, Splats


@pytest.fixture(autouse=True, scope="module")
def fewer_and_smaller_views():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "VIEWS", 8)
        patch.setattr(scoring, "SIZE", 64)
        truth.cache_clear()
        yield
    truth.cache_clear()


def splat_of(thing: Thing, n: int = 3000, seed: int = 0) -> Splats:
    """The thing as small Gaussians under its surface, each in the colour that the world gives it there."""
    kind, rng = KINDS.index(thing.kind), np.random.default_rng(seed)
    points, colors = [], []
    while len(points) < n:
        for point in rng.uniform(-1, 1, (10_000, 3)).tolist():
            distance, material = shapes.surface(kind, *point)
            if (
                -0.038 < distance < -0.022
            ):  # 1.5 standard deviations deep: the silhouette is then the thing's own
                albedo = thing.rgb if material == shapes.MAIN else shapes.MATERIALS[material]
                points.append(point)
                colors.append(np.minimum(np.array(albedo) * shapes.light_at(kind, *point), 1))
    points, colors = np.array(points[:n]), np.array(colors[:n])
    return Splats(
        means=torch.tensor(points * [1, -1, -1], dtype=torch.float32),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        scales=torch.full((n, 3), 0.02),
        opacities=torch.full((n,), 0.95),
        sh=(torch.tensor(colors, dtype=torch.float32)[:, None] - 0.5) / SH_C0,
    )


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
    splats = splat_of(thing, n=200).map(lambda x: x.requires_grad_())
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
