"""A limit on the time: the run ends in order, and its schedules with it."""

import dataclasses
import math
import random
import time

import pytest
import torch
from raising import raises

from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import BadSetting
from lucid_core.guidance.ism import ISM
from lucid_core.optimize import state as module
from lucid_core.optimize.config import Budget
from lucid_core.optimize.densify import Densifier, Densify, latest
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, WishPrior, disc, dream, normal


class Clock:
    """Each look at it takes as long as `next_step()` says."""

    def __init__(self, next_step):
        self.now, self.next_step = 1e6, next_step

    def monotonic(self):
        self.now += self.next_step()
        return self.now


@dataclasses.dataclass(frozen=True)
class Watched(ISM):
    """What the guidance hears of the progress."""

    seen: list = dataclasses.field(default_factory=list)

    def gradient(self, prior, z0, conds, progress, generator):
        self.seen.append(progress)
        return torch.zeros_like(z0)


def steps_of(minutes, next_step, monkeypatch, resume=None, **changes):
    """-> the steps of a run on a clock of ours, and the progress that the guidance heard of in each."""
    monkeypatch.setattr(module, "time", Clock(next_step))
    settings = {
        "steps": 1000,
        "views": 1,
        "densify": Densify(grow_grad2d=NO_GROWTH, reset_every=0.0),
        **changes,
    }
    config = replace_settings(CONFIG, max_minutes=minutes, **settings)
    wish = normal(disc([0.9, 0.2, 0.1]), 0.01)
    method, prompts = Watched(seen=[]), Prompts((wish,) * 4, negative=wish, inverse=wish)
    start = PointCloud(count=50, size=1.2).splats(0)
    return list(
        dream(start, WishPrior(), method, prompts, CAMERAS, config, seed=0, resume=resume)
    ), method.seen


@pytest.mark.parametrize("steady", [True, False])
def test_schedules_reach_their_end_when_the_time_is_over(monkeypatch, steady):
    """40 s at about a second a step; unsteady ones take from 0.2 to 1.8 s."""
    chance = random.Random(0)
    steps, seen = steps_of(40 / 60, lambda: 1.0 if steady else chance.uniform(0.2, 1.8), monkeypatch)
    assert abs(len(steps) - 40) <= (1 if steady else 8) and len(seen) == len(steps)
    assert seen[0] == 0 and seen[-1] > 0.95 and seen == sorted(set(seen))
    assert steps[-1].progress == 1 > steps[-2].progress
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))


def test_a_limit_that_is_not_reached_changes_nothing(monkeypatch):
    free, seen_free = steps_of(0.0, lambda: 1.0, monkeypatch, steps=12)
    limited, seen = steps_of(10.0, lambda: 1.0, monkeypatch, steps=12)
    assert seen == seen_free == [i / 12 for i in range(12)]
    assert torch.equal(free[-1].splats.means, limited[-1].splats.means)


def test_the_time_before_a_checkpoint_counts(monkeypatch):
    steps, _ = steps_of(40 / 60, lambda: 1.0, monkeypatch, resume=None)
    early = next(step for step in steps if step.step == 30)
    checkpoint = dataclasses.replace(
        steps[-1].checkpoint(), step=30, at=round(1000 * early.progress), seconds=early.seconds
    )
    first, *rest = steps_of(40 / 60, lambda: 1.0, monkeypatch, resume=checkpoint)[0]
    assert first.seconds == early.seconds and abs(len(rest) - 10) <= 1
    ended = steps_of(40 / 60, lambda: 1.0, monkeypatch, resume=steps[-1].checkpoint())[0]
    assert [step.step for step in ended] == [steps[-1].step]


def test_what_is_due_in_steps_left_out_happens_once():
    assert [
        latest(before, step, 10) for before, step in ((8, 9), (9, 10), (10, 11), (9, 14), (14, 47), (47, 48))
    ] == [
        9,
        10,
        11,
        10,
        40,
        48,
    ]
    assert latest(8, 9, 0) == 9


def test_splats_grow_as_often_on_a_short_time_as_on_a_long_one(monkeypatch):
    """Ten refinements are due in 1000 steps; of these only 40 are made."""
    times = []
    watched = lambda self, params, optimizers, state, step: times.append(step) or (0, 0)
    make = Densifier.__init__

    def made(self, config, steps):
        make(self, config, steps)
        monkeypatch.setattr(type(self.strategy), "_grow_gs", watched)

    monkeypatch.setattr(Densifier, "__init__", made)
    densify = Densify(start=0.0, stop=1.0, every=0.1, prune_opacity=0.0, reset_every=0.0)
    steps_of(40 / 60, lambda: 1.0, monkeypatch, densify=densify)
    assert times == list(range(100, 1000, 100))


def test_the_limit_is_one_of_the_clock_on_the_wall():
    begun = time.monotonic()
    wish = normal(disc([0.9, 0.2, 0.1]), 0.01)
    config = replace_settings(CONFIG, steps=1_000_000, max_minutes=0.02)
    prompts, start = Prompts((wish,) * 4, negative=wish, inverse=wish), PointCloud(count=50).splats(0)
    *_, last = dream(start, WishPrior(), ISM(inversion_steps=1), prompts, CAMERAS, config, seed=0)
    assert last.seconds >= 1.2 and time.monotonic() - begun < 5 and last.progress == 1


@pytest.mark.parametrize("minutes", [-1.0, math.nan, 1e9])
def test_bad_limits_are_refused(minutes):
    with raises(BadSetting, name="max_minutes"):
        Budget(max_minutes=minutes)
