"""The time that a run still needs, from the time of its steps so far and from what its guidance does next.

Steps differ in cost: a gradient evaluates the model, a fit to image targets does not, except in the steps
that make new ones.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low
from typing import Any

from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import GuidanceSource, MixedSource
from .config import Budget
from .loop import Step

RECENT = 50  # steps; the first ones compile kernels
# Shares of the time of a guided step, before they are measured; the rest is the VAE's and the renderer's.
MODEL_SHARE = 0.5
FIT_SHARE = 0.05
CONDITIONINGS = 3  # evaluations per noise level in a guided step: the negative prompt and two blended views


class TimeLeft:
    """Estimates the time left in a run of `budget` with `source`; None = a fit to given pictures."""

    def __init__(self, budget: Budget, source: GuidanceSource | MixedSource | None = None) -> None:
        self.budget = budget
        self.gradients, self.pictures = plan(budget.steps, source)
        targets = [one for one in source.guidances() if isinstance(one, ImageTargets)] if source else []
        self.evaluations = max((evaluations_of(one) for one in targets), default=0)
        self.last: Step[Any] | None = None
        # Seconds and evaluations of the recent steps of each kind
        self.guided: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self.fits: deque[float] = deque(maxlen=RECENT)
        self.round: float | None = None  # seconds per image in the last round of targets

    def add(self, step: Step[Any]) -> None:
        """Take the time of `step`. The first step of a resumed run, its checkpoint, has none."""
        before, self.last = self.last, step
        if before is None and step.step > 1:
            return
        seconds = step.seconds - (before.seconds if before else 0.0)
        evaluations = step.evaluations - (before.evaluations if before else 0)
        at = self._place(step) - 1
        if self.gradients[at]:
            self.guided.append((seconds, evaluations))
        elif evaluations and self.pictures[at]:
            self.round = seconds / self.pictures[at]
        else:
            self.fits.append(seconds)

    def seconds_per_step(self) -> float | None:
        """The time of the recent steps of the kind that the last one was; None before it is known."""
        if self.last is None:
            return None
        if self.gradients[self._place(self.last) - 1]:
            return median_low(seconds for seconds, _ in self.guided) if self.guided else None
        return median_low(self.fits) if self.fits else None

    def seconds(self) -> float | None:
        """The time left, of the model and of the optimiser; None before it is known."""
        if self.last is None or not (self.guided or self.fits):
            return None
        at = self._place(self.last)
        guided = median_low(seconds for seconds, _ in self.guided) if self.guided else 0.0
        fit = median_low(self.fits) if self.fits else FIT_SHARE * guided
        gradients, pictures = sum(self.gradients[at:]), sum(self.pictures[at:])
        fits = self.budget.steps - at - gradients
        left = gradients * guided + fits * fit + pictures * self._seconds_per_picture(guided)
        if self.budget.max_minutes:
            left = min(left, max(60 * self.budget.max_minutes - self.last.seconds, 0.0))
        return left

    def _place(self, step: Step[Any]) -> int:
        """The schedule step of `step`, from 1; a time limit skips some."""
        return min(max(round(step.progress * self.budget.steps), 1), self.budget.steps)

    def _seconds_per_picture(self, guided: float) -> float:
        if self.round is not None:
            return self.round
        asked = sum(evaluations for _, evaluations in self.guided)
        return MODEL_SHARE * guided * len(self.guided) * self.evaluations / asked if asked else 0.0


def plan(steps: int, source: GuidanceSource | MixedSource | None) -> tuple[list[bool], list[int]]:
    """For each step of a run: whether it follows a gradient, and how many images it asks of the model."""
    gradients, pictures = [False] * steps, [0] * steps
    if source is None:
        return gradients, pictures
    made, of = 0, None
    for at in range(steps):
        phase = source.phase(at / steps)
        answer = phase.target_source
        gradients[at] = answer is None
        if answer is not None:
            if answer is not of:
                made, of = 0, answer
            due = answer.targets.rounds(phase.progress, max(round(phase.length * steps), 1))
            pictures[at] = answer.targets.views if due > made else 0
            made = due
    return gradients, pictures


def evaluations_of(targets: ImageTargets) -> int:
    """About how many model evaluations an image takes."""
    return targets.inversion_steps + CONDITIONINGS * targets.sampling_steps
