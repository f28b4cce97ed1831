"""A diffusion model as a judge: which of several texts explains each view of an object best.

Diffusion classifier (Li et al., ICCV 2023, arXiv 2303.16203): a text explains a picture as well as the model
predicts the clean picture from a noisy one when it is told that text. All texts get the same noise, so their
errors are compared in pairs. The paper averages squared errors of the noise; here the logarithms of the
errors are averaged over the noise levels, so that each level counts the same.

code        meaning
e           mean squared error of the predicted x0 latents, by noise level, view and text
ln e        its natural logarithm; differences of it do not depend on the scale of the latents
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..conditioning.view_prompts import VIEWS, Prompts
from ..diffusion.prior import Cond, Prior
from ..errors import BadInput
from ..settings import BoundedSettings, require, setting

WORDS = VIEWS[:3]  # front, side, back: the texts that are compared for the view
NEGATIVE = len(WORDS)  # index of the negative prompt among the texts; other texts follow
LOW_T, HIGH_T = 0.1, 0.85  # range of the noise levels, as fractions of the training schedule
FEWEST_VIEWS, FEWEST_LEVELS = 4, 2
TOGETHER = 4  # views in one model call
FRONT_DEG, BACK_DEG = 45.0, 135.0  # largest angle off the front of a front view, and of a side view
AWAY_DEG = 60.0  # least angle off the front of the views where a front is a second face
EPSILON_DEG = 1e-3
SAME = 1e-5  # relative difference of errors below which two texts are the same to the model


@dataclass(frozen=True)
class JudgeSettings(BoundedSettings):
    """How often the model is asked. Raises BadSetting for a value out of bounds."""

    views: int = setting(
        12,
        FEWEST_VIEWS,
        64,
        "Number of views around the object. 12 = every 30 degrees.",
        step=1,
        advanced=False,
    )
    max_evaluations: int = setting(
        300,
        2 * FEWEST_VIEWS,
        100_000,
        "Maximum number of model evaluations: views x texts x noise levels. More = more noise levels and "
        "smaller standard errors. A prompt with regions takes more than this.",
        step=1,
        advanced=False,
    )

    def levels(self, views: int, texts: int) -> int:
        """The number of noise levels that `views` and `texts` leave. Raises BadSetting if there are too
        few.
        """
        least = FEWEST_LEVELS * views * texts
        allowed = f"at least {least}, for {views} views, {texts} texts and {FEWEST_LEVELS} noise levels"
        require(self.max_evaluations >= least, "max_evaluations", self.max_evaluations, allowed)
        return self.max_evaluations // (views * texts)


@dataclass(frozen=True)
class Margin:
    """A mean difference of ln e and its standard error over the noise levels; 0 = no difference."""

    mean: float
    error: float

    @property
    def is_sure(self) -> bool:
        """Whether the mean lies above 0 by more than its standard error."""
        return self.mean > self.error


@dataclass(frozen=True)
class Verdict:
    """The errors of a model at V views, for L noise levels and T texts.

    azimuth_deg (V,): 0 = front. log_errors (L, V, T): ln e of the texts front, side, back, negative, and the
    `others`. evaluations: number of model evaluations.
    """

    azimuth_deg: Tensor
    log_errors: Tensor
    others: tuple[str, ...]
    evaluations: int

    @property
    def off_front_deg(self) -> Tensor:
        """The angle (V,) of each view off the front, 0 to 180."""
        return ((self.azimuth_deg + 180) % 360 - 180).abs()

    @property
    def word(self) -> Tensor:
        """The index (V,) in WORDS of the word that describes each view: front within 45 degrees of the front,
        back more than 135 degrees off, else side.
        """
        off = self.off_front_deg
        return (off > FRONT_DEG + EPSILON_DEG).long() + (off > BACK_DEG + EPSILON_DEG).long()

    @property
    def best_word(self) -> Tensor:
        """The index (V,) in WORDS of the word that explains each view best."""
        return self.log_errors[..., : len(WORDS)].mean(0).argmin(-1)

    @property
    def own(self) -> Tensor:
        """ln e (L, V) of the text with the word that describes each view."""
        return self.log_errors.gather(-1, self.word.expand(len(self.log_errors), -1)[..., None])[..., 0]

    def margin_against(self, text: int) -> Margin:
        """How much better the prompt explains the views than the text with this index."""
        return margin_of((self.log_errors[..., text] - self.own).mean(1))

    @property
    def fit(self) -> float:
        """-ln e of the prompt: higher = the model predicts the views better."""
        return -float(self.own.mean())

    @property
    def score(self) -> float:
        """`fit` plus the margin against the negative prompt.

        Where -ln e stands for the log-likelihood, this is the log-likelihood under classifier-free guidance
        with scale 2: log p(x) + 2 (log p(x | text) - log p(x)).
        """
        return self.fit + self.margin_against(NEGATIVE).mean

    def confusion(self) -> Tensor:
        """(3, 3): of the views that a word (row) describes, the share that each word (column) explains
        best.
        """
        rows = torch.nn.functional.one_hot(self.best_word, len(WORDS)).double()
        masks = torch.nn.functional.one_hot(self.word, len(WORDS)).double()
        return (masks.T @ rows) / masks.sum(0)[:, None].clamp_min(1)

    def front_margins(self) -> list[Margin]:
        """By view: how much better the front text explains it than the better one of side and back."""
        front, side, back = self.log_errors[..., : len(WORDS)].unbind(-1)
        return [margin_of(column) for column in (torch.minimum(side, back) - front).T]

    @property
    def away(self) -> list[int]:
        """The views at least 60 degrees off the front."""
        return (self.off_front_deg > AWAY_DEG - EPSILON_DEG).nonzero()[:, 0].tolist()

    @property
    def many_faces_rate(self) -> float:
        """Share of the views at least 60 degrees off the front that the front text explains best, by more
        than a standard error.
        """
        margins = self.front_margins()
        return sum(margins[i].is_sure for i in self.away) / len(self.away)

    @property
    def second_face(self) -> Margin:
        """The smaller one of two margins: of the most front-like view within 45 degrees of the front, and of
        the most front-like view at least 60 degrees off. Above 0 = both look like fronts.

        An object whose only front is in a wrong place has no second face.
        """
        margins = self.front_margins()
        fronts = (self.word == 0).nonzero()[:, 0].tolist()
        by_mean = lambda margin: margin.mean
        highest = [max((margins[i] for i in views), key=by_mean) for views in (fronts, self.away)]
        return min(highest, key=by_mean)


def margin_of(differences: Tensor) -> Margin:
    """Mean and standard error of differences (L,) at L noise levels, L >= 2."""
    values = differences.double()
    return Margin(float(values.mean()), float(values.std() / math.sqrt(len(values))))


def noise_levels(levels: int) -> list[float]:
    """`levels` equally spaced times, as fractions of the training schedule."""
    return [LOW_T + (HIGH_T - LOW_T) * (i + 0.5) / levels for i in range(levels)]


@torch.no_grad()
def judge(
    prior: Prior,
    images: Tensor,
    prompts: Prompts,
    settings: JudgeSettings,
    others: dict[str, Prompts] | None = None,
    seed: int = 0,
    report: Callable[[int], None] = lambda evaluations: None,
    azimuth_deg: Tensor | None = None,
) -> Verdict:
    """Ask the model about a turntable of the object.

    images: (V, H, W, 3) in [0, 1] on a plain background, over a full turn that begins at the front. prompts:
    the texts of the views and the negative one. others: other texts by name, compared at each view by the
    word that describes it. seed: of the noise, the same for all texts; it does not depend on how many views
    are asked about together. report: called with the number of evaluations so far. azimuth_deg: of the views
    (V,); None = equally spaced.

    Raises BadInput for fewer than 4 views, images that are not finite, and prompts whose front, side and back
    texts are the same to the model; BadSetting if `settings` allow too few evaluations.
    """
    require_turntable(images)
    others = others or {}
    texts = len(WORDS) + 1 + len(others)
    times = noise_levels(settings.levels(len(images), texts))
    generator, before = Generator().manual_seed(seed), prior.evaluations
    if azimuth_deg is None:
        azimuth_deg = torch.arange(len(images)) * (360 / len(images))
    errors = []
    for part, at in zip(images.split(TOGETHER), azimuth_deg.split(TOGETHER)):
        z0 = prior.encode(part)
        noise = torch.stack([torch.randn(len(times), *z0.shape[1:], generator=generator) for _ in part], 1)
        conds = [*prompts.views[: len(WORDS)], prompts.negative]
        conds += [cond_at(prior, other, at) for other in others.values()]
        found = []
        for t, eps in zip(times, noise.to(z0)):
            found.append(errors_of(prior, z0, eps, prior.sigma(t), conds))
            report(prior.evaluations - before)
            require_words(found[0])
        errors.append(torch.stack(found))
    return Verdict(azimuth_deg, torch.cat(errors, 1), tuple(others), prior.evaluations - before)


def errors_of(prior: Prior, z0: Tensor, noise: Tensor, sigma: float, conds: list[Cond]) -> Tensor:
    """ln e (B, T) on the CPU, in float64, of T conditionings for the latents z0 (B, C, h, w)."""
    answers = prior.denoise(z0 + sigma * noise, sigma, conds)
    # on the CPU, as Apple's GPUs have no float64
    errors = [(answer - z0).cpu().double().square().mean((1, 2, 3)) for answer in answers]
    return torch.stack(errors, -1).clamp_min(1e-30).log()


def cond_at(prior: Prior, prompts: Prompts, azimuth_deg: Tensor) -> Cond:
    """The conditioning of B views (azimuths (B,) in degrees) with the word that describes each."""
    words = Verdict(azimuth_deg, torch.empty(0), (), 0).word
    weights = torch.nn.functional.one_hot(words, len(VIEWS)).float()
    return prior.blend(list(prompts.views), weights)


def require_turntable(images: Tensor) -> None:
    """Raise BadInput unless images (V, H, W, 3) are finite and at least 4."""
    if len(images) < FEWEST_VIEWS:
        raise BadInput(
            "image", f"has {len(images)} views; give a turntable of at least {FEWEST_VIEWS}, from the front"
        )
    bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
    if bad:
        raise BadInput(
            "image", f"has values that are not finite in {bad} of {len(images)} views; render it again"
        )


def require_words(log_errors: Tensor) -> None:
    """Raise BadInput if front, side and back give the same errors (B, T) at every view."""
    words = log_errors[:, : len(WORDS)]
    if float((words - words[:, :1]).abs().max()) < SAME:
        raise BadInput(
            "prompt",
            "has the same text for front, side and back, so that no view can be told from another; give it "
            "words for the views",
        )
