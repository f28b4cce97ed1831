import math

import pytest
import torch

from lucid_core.views import VIEWS, Prompts, ViewBlend

from .priors import GaussianPrior


def weights(azimuth_deg, elevation_deg=0.0, **blend):
    azimuth = torch.tensor([float(azimuth_deg)]).deg2rad()
    return ViewBlend(**blend).weights(azimuth, torch.tensor([float(elevation_deg)]).deg2rad())[0]


@pytest.mark.parametrize(
    "azimuth, view", [(0, "front"), (90, "side"), (-90, "side"), (180, "back"), (-180, "back"), (270, "side")]
)
def test_cardinal_directions_are_pure(azimuth, view):
    assert weights(azimuth)[VIEWS.index(view)] == pytest.approx(1, abs=1e-5)
    assert weights(azimuth, 90, overhead_deg=45)[VIEWS.index("overhead")] == pytest.approx(1)


def test_official_blend_is_linear_between_them():
    assert weights(30) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-5)
    assert weights(-120) == pytest.approx([0, 2 / 3, 1 / 3, 0], abs=1e-5)


def test_weights_sum_to_one_and_are_symmetric_about_the_front():
    azimuth = torch.linspace(-math.pi, math.pi, 181)
    for blend in (ViewBlend(), ViewBlend(0.0), ViewBlend(20.0, 50.0)):
        for elevation in (-0.2, 0.5, 1.0, 1.5):
            w = blend.weights(azimuth, torch.full_like(azimuth, elevation))
            torch.testing.assert_close(w.sum(-1), torch.ones(181))
            assert (w >= 0).all()
            torch.testing.assert_close(w[1:-1], w.flip(0)[1:-1])


def test_hard_switch():
    assert weights(44, blend_deg=0.0).tolist() == [1, 0, 0, 0]
    assert weights(46, blend_deg=0.0).tolist() == [0, 1, 0, 0]
    assert weights(136, blend_deg=0.0).tolist() == [0, 0, 1, 0]
    assert weights(0, 61, blend_deg=0.0).tolist() == [0, 0, 0, 1]


def test_prompts_give_a_row_per_view():
    conds = tuple(torch.full((1, 3), float(i)) for i in range(4))
    prompts = Prompts(conds, negative=conds[0], inverse=conds[0])
    at = prompts.at(GaussianPrior(), torch.tensor([0.0, math.pi / 2, math.pi]), torch.zeros(3))
    torch.testing.assert_close(at.y, torch.tensor([[0.0] * 3, [1.0] * 3, [2.0] * 3]), atol=1e-5, rtol=0)


def test_bad_blend_is_refused():
    with pytest.raises(ValueError, match="blend_deg is 91"):
        ViewBlend(blend_deg=91)
