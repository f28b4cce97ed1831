"""The estimate of the time that a run needs, against runs whose times are known."""

from dataclasses import replace

import pytest

from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import GuidanceSource, Mix, MixedSource
from lucid_core.optimize.config import Budget
from lucid_core.optimize.loop import Step
from lucid_core.optimize.time_left import TimeLeft, evaluations_of, plan

TARGETS = ImageTargets(views=10, fits=50, last=0.5, inversion_steps=2, sampling_steps=4)
SHAPE, SURFACE = (GuidanceSource(None, guidance, None) for guidance in (ISM(), TARGETS))
RECIPE = MixedSource(SHAPE, SURFACE, Mix("sequence", 0.6))
BUDGET = Budget(steps=500)
COMPILE_S, GUIDED_S, FIT_S, EVALUATION_S = 20.0, 0.6, 0.03, 0.1  # three evaluations in a guided step


PER_PICTURE = evaluations_of(TARGETS)


def run_of(budget, source, per_picture=PER_PICTURE):
    """The steps of a run whose times are known; the first two compile."""
    gradients, pictures = plan(budget.steps, source)
    seconds, evaluations, steps = 0.0, 0, []
    for at in range(budget.steps):
        asked = 3 if gradients[at] else pictures[at] * per_picture
        seconds += GUIDED_S if gradients[at] else FIT_S + asked * EVALUATION_S
        seconds += COMPILE_S if at < 2 else 0
        evaluations += asked
        progress = (at + 1) / budget.steps
        steps.append(Step(at + 1, {}, None, evaluations, seconds, progress, None, None, ""))
    return steps


def estimates(budget, source, steps, first=0):
    """step -> (seconds left as estimated, in truth)."""
    time_left, found = TimeLeft(budget, source), {}
    for step in steps[first:]:
        time_left.add(step)
        found[step.step] = time_left.seconds(), steps[-1].seconds - step.seconds
    return found


def test_the_plan_of_the_recipe():
    gradients, pictures = plan(BUDGET.steps, RECIPE)
    assert gradients == [True] * 200 + [False] * 300
    assert {at: n for at, n in enumerate(pictures) if n} == {200: 10, 250: 10, 300: 10}


@pytest.mark.parametrize("source", [SHAPE, RECIPE, MixedSource(SHAPE, SURFACE, Mix("switch", 0.6))])
def test_the_estimate_is_right_from_the_fifth_step_to_the_last(source):
    """The time of compiling is not taken for that of a step, nor that of one kind of step for another's."""
    found = estimates(BUDGET, source, run_of(BUDGET, source))
    assert all(guess == pytest.approx(truth, rel=0.2, abs=1e-6) for guess, truth in list(found.values())[4:])


def test_a_round_of_targets_is_measured_once_it_was_made():
    """Before, its evaluations are guessed from its settings."""
    found = estimates(BUDGET, RECIPE, run_of(BUDGET, RECIPE, per_picture=4))
    guess, truth = found[100]
    assert truth < guess < 2.5 * truth
    assert all(
        guess == pytest.approx(truth, rel=0.05, abs=1e-6)
        for step, (guess, truth) in found.items()
        if step > 201
    )


def test_a_resumed_run_knows_nothing_at_its_first_step():
    steps = run_of(BUDGET, RECIPE)
    found = estimates(BUDGET, RECIPE, steps, first=99)
    assert found[100][0] is None
    assert found[101][0] == pytest.approx(found[101][1], rel=0.1)


def test_a_fit_to_pictures_without_a_model():
    found = estimates(BUDGET, None, run_of(BUDGET, None))
    assert found[5][0] == pytest.approx(found[5][1], rel=0.01)
    assert found[500][0] == 0


def test_a_time_limit_ends_the_run_earlier():
    steps = run_of(BUDGET, SHAPE)
    limited = replace(BUDGET, max_minutes=2.0)
    found = estimates(limited, SHAPE, steps)
    assert found[10][0] == pytest.approx(120 - steps[9].seconds)
    assert found[500][0] == 0


def test_the_pace_is_that_of_steps_of_the_same_kind():
    time_left, paces = TimeLeft(BUDGET, RECIPE), []
    for step in run_of(BUDGET, RECIPE):
        time_left.add(step)
        paces.append(time_left.seconds_per_step())
    assert paces[150] == pytest.approx(GUIDED_S) and paces[400] == pytest.approx(FIT_S)
