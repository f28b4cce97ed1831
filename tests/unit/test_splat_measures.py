"""Measures without a model, on splats and pictures whose answers are known."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from lucid_core.rasterize import Renderer
from lucid_core.score.measures import (
    floaters,
    fog,
    high_frequency,
    measure_splats,
    measure_views,
    silhouette_of,
    similarity,
)
from lucid_core.score.views import turntable_views
from lucid_core.splats import SH_C0, Splats


def ball(count, centre=(0.0, 0.0, 0.0), radius=1.0, opacity=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    direction = normalize(torch.randn(count, 3, generator=generator), dim=-1)
    reach = torch.rand(count, 1, generator=generator) ** (1 / 3)
    return Splats(
        radius * reach * direction + torch.tensor(centre),
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.tensor([0.01, 0.02, 0.06]).repeat(count, 1),
        torch.full((count,), opacity),
        torch.zeros(count, 1, 3),
    )


def join(*parts):
    return Splats(*(torch.cat([getattr(p, name) for p in parts]) for name in Splats.__dataclass_fields__))


def test_floaters_are_the_opacity_outside_the_largest_part():
    body = ball(20_000)
    assert floaters(body) == 0
    away = ball(100, (5.0, 0, 0), 0.01)
    assert floaters(join(body, away)) == pytest.approx(100 / 20_100, rel=1e-6)
    assert floaters(join(body, ball(100, (5.0, 0, 0), 0.01, 0.25))) == pytest.approx(
        50 / 20_100 * 2 / 2.005, rel=0.01
    )
    unseen = ball(100, (5.0, 0, 0), 0.01, 0.001)
    assert floaters(join(body, unseen)) == 0
    moved = join(body, away)
    scaled = Splats(7 * moved.means + 100, moved.quats, moved.scales, moved.opacities, moved.sh)
    assert floaters(scaled) == pytest.approx(100 / 20_100, rel=1e-6)
    assert floaters(ball(1)) == 0 == floaters(ball(5, opacity=0.0))


def test_splats_are_counted_and_their_aspect_is_longest_by_middle():
    found = measure_splats(ball(500), torch.zeros(1, 8, 8))
    assert found["splats"] == 500 and found["aspect"] == pytest.approx([3, 3])


def test_fog_is_the_mean_darkening_outside():
    alpha = torch.zeros(2, 32, 32)
    alpha[:, 10:20, 10:20] = 1
    assert fog(1 - alpha[..., None], alpha) == 0
    thin = torch.where(alpha > 0, alpha, 2 / 255)
    assert fog(1 - thin[..., None], thin) == pytest.approx(2, rel=1e-4)
    assert fog(torch.zeros(1, 8, 8, 1), torch.ones(1, 8, 8)) == 0  # nothing is outside


def test_colours_of_the_object_alone():
    images, alpha = torch.ones(1, 16, 16, 3), torch.zeros(1, 16, 16)
    images[:, :8], alpha[:, :8] = torch.tensor([0.8, 0.4, 0.2]), 1
    found = measure_views(images, alpha)
    assert found["saturation"] == pytest.approx([0.75] * 3) and found["brightness"] == pytest.approx(
        [0.8] * 3
    )
    assert "fog" not in found  # a silhouette of pictures has none
    empty = measure_views(images, torch.zeros_like(alpha))
    assert empty["saturation"] == [0, 0, 0]


@pytest.mark.parametrize("period, share", [(2, 1.0), (16, 0.0)])
def test_high_frequency_of_a_wave(period, share):
    wave = 0.5 + 0.4 * torch.cos(2 * math.pi * torch.arange(32) / period)
    assert high_frequency(wave.reshape(1, 1, 32, 1).expand(1, 32, 32, 3)) == pytest.approx(share, abs=1e-6)


def test_the_silhouette_on_a_plain_background():
    images = torch.full((1, 16, 16, 3), 0.3)
    images[:, 4:9, 5:12] = torch.tensor([0.3, 0.35, 0.3])
    expected = torch.zeros(1, 16, 16)
    expected[:, 4:9, 5:12] = 1
    assert torch.equal(silhouette_of(images), expected)


def test_similarity_is_the_cosine_with_the_first():
    found = similarity(torch.tensor([[2.0, 0], [1, 1], [0, 3]]))
    assert found.tolist() == pytest.approx([1, math.sqrt(0.5), 0])


def test_a_turntable_begins_at_the_front_and_goes_to_the_viewers_right():
    """Red before, green at +x; the front looks at -z."""
    red, green = ball(400, (0, 0, -1.0), 0.2, 0.9), ball(400, (1.0, 0, 0), 0.2, 0.9)
    color = lambda part, rgb: Splats(
        part.means,
        part.quats,
        part.scales,
        part.opacities,
        ((torch.tensor(rgb) - 0.5) / SH_C0).expand(400, 1, 3),
    )
    one = join(color(red, [1.0, 0, 0]), color(green, [0, 1.0, 0]))
    rgb, alpha = turntable_views(one, 4, 64, 0.0, Renderer("numba"))
    assert rgb.shape == (4, 64, 64, 3) and alpha.shape == (4, 64, 64)
    is_red = lambda image: ((image[..., 0] - image[..., 1]) > 0.5).float().nonzero()[:, 1].float().mean()
    is_green = lambda image: ((image[..., 1] - image[..., 0]) > 0.5).float().nonzero()[:, 1].float().mean()
    assert is_green(rgb[0]) > is_red(rgb[0]) + 10  # at azimuth 0, +x is on the right
    assert is_red(rgb[1]) < is_green(rgb[1]) - 10  # at azimuth 90, the front is on the left
