import math
from dataclasses import replace

import pytest
import torch
from raising import raises

from lucid_core.conditioning.view_prompts import VIEWS, Prompts, ViewBlend, without
from lucid_core.diffusion.prior import Conds, SplitPrior
from lucid_core.errors import BadSetting
from lucid_core.guidance.base import guided_eps, towards

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
    assert weights(0, 61, blend_deg=0.0, overhead_deg=60.0).tolist() == [0, 0, 0, 1]


def test_no_official_view_is_from_above_unless_asked():
    """The official code has front, side and back alone, and looks from -15 to 45 degrees."""
    assert all(weights(azimuth, 45)[VIEWS.index("overhead")] == 0 for azimuth in (0, 70, 180))
    assert weights(0, 90)[VIEWS.index("overhead")] == pytest.approx(0.5)


def test_prompts_give_a_row_per_view():
    conds = tuple(torch.full((1, 3), float(i)) for i in range(4))
    prompts = Prompts(conds, negative=conds[0], inverse=conds[0])
    at = prompts.at(GaussianPrior(), torch.tensor([0.0, math.pi / 2, math.pi]), torch.zeros(3))
    torch.testing.assert_close(at.y, torch.tensor([[0.0] * 3, [1.0] * 3, [2.0] * 3]), atol=1e-5, rtol=0)


def test_bad_blend_is_refused():
    with raises(BadSetting, name="blend_deg", value=91):
        ViewBlend(blend_deg=91)


def away(azimuth_deg, elevation_deg=0.0, **blend):
    azimuth = torch.tensor([float(azimuth_deg)]).deg2rad()
    return (
        ViewBlend(**{"perp_neg": 2.0, **blend})
        .away(azimuth, torch.tensor([float(elevation_deg)]).deg2rad())[0]
        .tolist()
    )


@pytest.mark.parametrize(
    "azimuth, front, side",
    [
        (0, 0, -2),  # r = 1: the front is cut off, exp(0) of the side
        (9, 0, -2 * math.exp(-0.1 * 10)),  # r = 0.9
        (45, -2 * math.exp(-0.5 * 2), -2 * math.exp(-0.5 * 10)),  # r = 0.5
        (81, -2 * math.exp(-0.1 * 2), 0),  # r = 0.1: the side is cut off
        (99, -2, 0),  # behind: r = 0.9
        (135, -2, -2 / 2 * math.exp(-0.5 * 10)),  # r = 0.5
        (180, -2, -2 / 2),  # r = 0
    ],
)
def test_perp_neg_weights_are_the_official_ones(azimuth, front, side):
    """LucidDreamer's negative_w -2, front decay 2, side decay 10, by hand."""
    assert away(azimuth) == pytest.approx([front, side], abs=1e-6)
    assert away(-azimuth) == pytest.approx([front, side], abs=1e-6)


def test_perp_neg_fades_overhead_and_is_off_by_default():
    assert away(180, 89, overhead_deg=30) == [0, 0]
    assert away(180, 90, overhead_deg=90) == pytest.approx([-1, -0.5], abs=1e-5)
    assert away(180, perp_neg=0.0) == [0, 0]
    conds = tuple(torch.full((1, 3), float(i)) for i in range(4))
    assert (
        Prompts(conds, conds[0], conds[0]).at(GaussianPrior(), torch.tensor([3.0]), torch.zeros(1)).others
        == ()
    )


def test_perp_neg_asks_about_front_and_side_only_where_a_view_is_pushed_away():
    conds = tuple(torch.full((1, 3), float(i)) for i in range(4))
    prompts = Prompts(conds, conds[0], conds[0], ViewBlend(perp_neg=2.0))
    at = lambda *azimuths: prompts.at(
        GaussianPrior(), torch.tensor(azimuths).deg2rad(), torch.zeros(len(azimuths))
    )
    both = at(45.0, 180.0, 0.0)
    assert [float(other[0, 0]) for other in both.others] == [0, 1] and both.weights.shape == (3, 2)
    only_side = at(0.0, 5.0)
    assert [float(other[0, 0]) for other in only_side.others] == [1] and only_side.weights.shape == (2, 1)


def test_perp_neg_on_hand_computed_vectors():
    """Per view: main + w * (other - its part along main). Two views, two others, in a plane and out of it."""
    main = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]).reshape(2, 4, 1, 1)
    first = torch.tensor([[5.0, 4.0, 0.0, 0.0], [0.0, 7.0, 0.0, 0.0]]).reshape(2, 4, 1, 1)
    second = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, -1.0, 0.0, 2.0]]).reshape(2, 4, 1, 1)
    weights = torch.tensor([[-2.0, 0.5], [-2.0, -1.0]])
    expected = torch.tensor([[3.0, -8.0, 0.5, 0.0], [-1.0, 2.0, 0.0, -2.0]]).reshape(2, 4, 1, 1)
    torch.testing.assert_close(towards(main, [first, second], weights), expected)
    assert torch.equal(towards(main, [], None), main)
    assert towards(torch.zeros(1, 4, 1, 1), [first[:1]], weights[:1, :1]).isfinite().all()


def test_guidance_with_perp_neg_is_one_model_call_over_all_views():
    """e = e_negative + cfg * (delta + w * perpendicular part of the other's delta), written out for a linear
    prior.
    """

    class Counted(GaussianPrior):
        calls = 0

        def denoise(self, z, sigma, conds):
            self.calls += 1
            return super().denoise(z, sigma, conds)

    rand = lambda seed: torch.randn(
        2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    prior, z, y, negative, other = Counted(0.5), rand(0), rand(1), rand(2), rand(3)
    weights = torch.tensor([[-2.0], [-0.3]])
    found = guided_eps(prior, z, 2.0, Conds(y, negative, negative, (other,), weights), 7.5)
    of = lambda mean: 2.0 * (z - mean) / (0.5 + 4)
    e = torch.empty_like(z)
    for i in range(2):
        delta, away_from = (of(y) - of(negative))[i].flatten(), (of(other) - of(negative))[i].flatten()
        away_from = away_from - (away_from @ delta) / (delta @ delta) * delta
        e[i] = (of(negative)[i].flatten() + 7.5 * (delta + float(weights[i, 0]) * away_from)).reshape(4, 3, 3)
    torch.testing.assert_close(found, e)
    assert prior.calls == 1 and prior.evaluations == 6


def test_without_guidance_the_negative_prompt_costs_nothing():
    """Unless a prior's own guidance uses it, or Perp-Neg does."""

    class Own(GaussianPrior):
        def needs_negative(self, cfg):
            return True

    rand = lambda seed, rows=1: torch.randn(
        rows, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    z, conds = rand(0, 2), Conds(rand(1), rand(2), rand(2))
    pushed = replace(conds, others=(rand(3),), weights=torch.zeros(2, 1))
    found = {}
    for name, prior, asked in [
        ("plain", GaussianPrior(0.5), conds),
        ("split", SplitPrior(GaussianPrior(0.5), 1), conds),
        ("own", Own(0.5), conds),
        ("own, split", SplitPrior(Own(0.5), 1), conds),
        ("perp-neg", GaussianPrior(0.5), pushed),
    ]:
        torch.testing.assert_close(guided_eps(prior, z, 2.0, asked, 1.0), 2.0 * (z - rand(1)) / (0.5 + 4))
        found[name] = prior.evaluations
    assert found == {"plain": 2, "split": 2, "own": 4, "own, split": 4, "perp-neg": 6}


@pytest.mark.parametrize("size", [0, 2])
def test_a_priors_own_guidance_takes_the_place_of_the_plain_one(size):
    """It is told the prompts, row by row also where the views are asked about in parts; Perp-Neg is in the
    prompt's noise.
    """

    class Halved(GaussianPrior):
        def guide(self, z, sigma, conds, e, cfg):
            assert all(torch.equal(x, (z - z0) / sigma) for x, z0 in zip(e, self.denoise(z, sigma, conds)))
            return super().guide(z, sigma, conds, e, cfg) / 2

    rand = lambda seed, rows=1: torch.randn(
        rows, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    own, plain = Halved(0.5), GaussianPrior(0.5)
    own = SplitPrior(own, size) if size else own
    z, weights, views = rand(0, 5), torch.rand(5, 2).double(), [rand(1), rand(2)]
    at = lambda prior: guided_eps(prior, z, 2.0, Conds(prior.blend(views, weights), rand(3), rand(3)), 7.5)
    torch.testing.assert_close(at(own), at(plain) / 2)


@pytest.mark.parametrize(
    "text, words, left",
    [
        ("a smiling red robot with blue eyes", "smiling, blue eyes", "a red robot with"),
        ("a Smiling robot, portrait, (smiling:1.3) metal", "smiling,portrait", "a robot, metal"),
        ("smile", "smile", ""),
        ("a robot (C-3PO)", "c-3po", "a robot"),
        (r"a robot \(smile\), red", "smile", "a robot, red"),
        ("big  blue eyes, boy", "blue eyes", "big, boy"),
        ("(smiling, blue eyes:1.3), a boy", "smiling, blue eyes", "a boy"),
        ("(smiling, blue eyes:1.3), a boy", "smiling", "(blue eyes:1.3), a boy"),
        ("(smiling, blue eyes:1.3), a boy", "blue eyes", "(smiling:1.3), a boy"),
        ("(a (smiling:1.2) boy:1.1)", "smiling", "(a boy:1.1)"),
        ("((smile)), a boy", "smile", "a boy"),
        ("一个微笑的男孩，蓝眼睛，红帽子", "微笑的，蓝眼睛", "一个男孩，红帽子"),
        ("笑顔の少女、青い目", "笑顔の", "少女、青い目"),
        ("เด็กชายยิ้ม", "ยิ้ม", "เด็กชาย"),
        ("улыбающийся мальчик, шляпа", "улыбающийся", "мальчик, шляпа"),
        ("赤いTシャツの少年", "Tシャツ", "赤いの少年"),
        ("人々が笑う", "人々", "が笑う"),
        ("blue eyes, eyes, a boy", "eyes, blue eyes", "a boy"),
        ("smiling boy, smiling, 1,000 men", "smiling, smiling boy", "1,000 men"),
        ("a boy, (smiling:-1.2), hat", "smiling", "a boy, hat"),
        ("a boy, (smiling:1e-1), hat", "smiling", "a boy, hat"),
        (r"boy \(smiling, blue\)", "smiling", r"boy \(blue\)"),
        ("smile, embedding:smile boy", "smile", "embedding:smile boy"),
        ("2, (hat:1.2), man", "2", "(hat:1.2), man"),
    ],
)
def test_front_words_are_left_out(text, words, left):
    assert without(text, words) == (left, [])


@pytest.mark.parametrize(
    "text, words",
    [
        ("smilingly, eyes", "smiling"),
        ("a boy", "girl"),
        ("мальчик", "маль"),
        ("रंगीन टोपी", "रंग"),
        ("a cafe\u0301 sign", "cafe"),
        ("(hat:1.2), man", "2"),
        ("1,000 men", "x"),
    ],
)
def test_front_words_that_the_text_does_not_hold_are_named(text, words):
    """Whole words only."""
    assert without(text, words) == (text, [words])
    assert without(text + ", zebra", f"{words}, zebra") == (text, [words])
