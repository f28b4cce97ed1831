"""The quality benchmark's measures, against slow second implementations, closed forms and a hand-made
two-faced object.
"""

import math

import numpy as np
import pytest
import torch

from demo.measures import color_error, faces, fog, mud, sharpness, ssim
from lucid_core.cameras import turntable
from lucid_core.rasterize import rasterize
from lucid_core.splats import SH_C0, Splats

VIEWS, SIZE = 32, 64
GREY, BLACK = 0.7, 0.05


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_ssim(x, y):
    """Equation 13 of Wang et al. 2004, window by window of one channel (H, W)."""
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (image[row : row + 11, column : column + 11] for image in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            vab = (weights * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
            )
    return np.mean(values)


def test_ssim_is_the_papers():
    x = pictures(2, 17, 14, 3)
    y = (x + 0.3 * pictures(2, 17, 14, 3, seed=1)).clamp(0, 1)
    slow = np.mean(
        [slow_ssim(x[v, ..., c].numpy(), y[v, ..., c].numpy()) for v in range(2) for c in range(3)]
    )
    assert ssim(x, y) == pytest.approx(slow, abs=1e-12)
    assert ssim(x, x) == pytest.approx(1)


def test_sharpness_is_the_share_of_the_edges_energy():
    x = pictures(3, 20, 20, 3)
    assert sharpness(x, x) == pytest.approx(1)
    assert sharpness(0.5 + 0.5 * (x - 0.5), x) == pytest.approx(
        0.25
    )  # a variance goes with the square of the contrast
    blurred = (x + x.roll(1, 1) + x.roll(1, 2) + x.roll((1, 1), (1, 2))) / 4
    assert sharpness(blurred, x) < 0.5
    speckled = x + 0.3 * pictures(3, 20, 20, 3, seed=1)
    assert sharpness(speckled, x) > 1.05


def framed(x, width):
    return torch.nn.functional.pad(x.movedim(-1, 1), (width,) * 4, value=1.0).movedim(1, -1)


def test_a_white_frame_leaves_sharpness_alone():
    x, y = framed(pictures(2, 16, 16, 3), 4), framed(0.5 + 0.5 * pictures(2, 16, 16, 3, seed=1), 4)
    assert sharpness(framed(y, 30), framed(x, 30)) == pytest.approx(sharpness(y, x), rel=0.01)


def disc(radius, color, opacity=1.0):
    """A disc on white (1, S, S, 3) and its alpha (1, S, S)."""
    at = torch.arange(SIZE) - SIZE / 2 + 0.5
    alpha = opacity * ((at[:, None] ** 2 + at[None] ** 2) < radius**2).float()[None]
    return alpha[..., None] * torch.tensor(color) + 1 - alpha[..., None], alpha


def test_color_error_sees_colour_alone():
    expected = disc(20, (0.8, 0.2, 0.1))
    assert color_error(*disc(12, (0.8, 0.2, 0.1)), *expected) == pytest.approx(0, abs=1e-5)
    assert color_error(*disc(20, (0.8, 0.2, 0.1), opacity=0.5), *expected) == pytest.approx(0, abs=1e-5)
    off = math.sqrt((0.1**2 + 0.2**2) / 3)
    assert color_error(*disc(20, (0.9, 0.0, 0.1)), *expected) == pytest.approx(off, abs=1e-5)
    assert math.isfinite(color_error(*disc(0, (0.0, 0.0, 0.0)), *expected))


def ball(*face_azimuths_deg, ink=BLACK, grey=GREY, n=6000):
    """A grey ball with two eyes and a mouth towards each of the azimuths; its turntable and silhouettes."""
    means = torch.nn.functional.normalize(
        torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    color = torch.full((n,), grey)
    for azimuth in face_azimuths_deg:
        for side, up, radius in ((-22, 22, 0.2), (22, 22, 0.2), (0, -20, 0.28)):
            a, e = math.radians(azimuth + side), math.radians(up)
            centre = torch.tensor([math.cos(e) * math.sin(a), -math.sin(e), -math.cos(e) * math.cos(a)])
            color[(means - centre).norm(dim=-1) < radius] = ink
    splats = Splats(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        scales=torch.full((n, 3), 0.03),
        opacities=torch.full((n,), 0.99),
        sh=((color[:, None, None] - 0.5) / SH_C0).repeat(1, 1, 3),
    )
    render = rasterize(
        splats, turntable(VIEWS, 15.0, 5.0, 30.0, SIZE, SIZE), SIZE, SIZE, background=torch.ones(3)
    )
    return render.rgb, render.alpha[..., 0]


def test_a_two_faced_object_scores_1_and_its_truth_0():
    truth, mask = ball(0)
    assert faces(truth, truth, mask) == pytest.approx(0, abs=1e-6)
    assert faces(ball(0, 180)[0], truth, mask) == pytest.approx(1, abs=0.05)
    assert faces(ball(0, 180, ink=(BLACK + GREY) / 2)[0], truth, mask) == pytest.approx(0.5, abs=0.05)


def test_what_is_no_second_face_counts_little():
    truth, mask = ball(0)
    nothing, faceless, darker, pale = (
        torch.ones_like(truth),
        ball()[0],
        ball(0, grey=0.4)[0],
        ball(0, ink=0.4)[0],
    )
    for other in (nothing, faceless, darker, pale):
        assert faces(other, truth, mask) == pytest.approx(0, abs=0.03)


def test_faces_needs_opposite_views():
    truth, mask = ball(0)
    with pytest.raises(ValueError, match="images has 31 views; it must be an even number"):
        faces(truth[:31], truth[:31], mask[:31])


@pytest.fixture
def square():
    """Two views of a square of 20 pixels in the middle of white: its silhouette, and it in red with a darker
    side.
    """
    mask = torch.zeros(2, 40, 40)
    mask[:, 10:30, 10:30] = 1
    picture = torch.ones(2, 40, 40, 3)
    picture[:, 10:30, 10:30] = torch.tensor([0.8, 0.1, 0.1])
    picture[:, 10:30, 20:30] = torch.tensor([0.4, 0.05, 0.05])
    return mask, picture


def test_mud_is_the_share_of_the_pixels_of_a_foreign_hue(square):
    """Of the 14 x 14 that lie 3 pixels inside the splat's outline."""
    mask, picture = square
    assert mud(picture, mask, picture, mask) == 0
    assert mud(picture.flip(2), mask, picture, mask) == 0  # a true colour in the wrong place is none
    spotted = picture.clone()
    spotted[0, 13:20, 13:27] = torch.tensor([0.1, 0.7, 0.1])
    assert mud(spotted, mask, picture, mask) == pytest.approx(0.25)
    spotted[0, 10:13], spotted[1, :10] = 0.0, 0.5  # on the rim and outside
    assert mud(spotted, mask, picture, mask) == pytest.approx(0.25)
    assert mud(spotted, torch.zeros_like(mask), picture, mask) == 0


def test_what_the_eye_takes_for_the_same_hue_is_no_mud(square):
    """CIELAB of the red is a, b = (65, 48); blue of 0.12 moves b by 2, of 0.25 by 21."""
    mask, picture = square
    for blue, share in ((0.12, 0.0), (0.25, 1.0)):
        other = torch.where(mask[..., None] > 0, torch.tensor([0.8, 0.1, blue]), picture)
        assert mud(other, mask, picture, mask) == share


def test_fog_is_the_mean_darkening_of_the_white_around(square):
    """Beyond 3 pixels from the silhouette: 40 x 40 without 26 x 26."""
    mask, picture = square
    assert fog(picture, mask) == 0
    foggy = picture.clone()
    foggy[:, 0] -= 0.1
    assert fog(foggy, mask) == pytest.approx(255 * 0.1 * 40 / (40 * 40 - 26 * 26), rel=1e-5)
    near = picture.clone()
    near[:, 7:33, 7:10] = 0.5
    assert fog(near, mask) == 0
