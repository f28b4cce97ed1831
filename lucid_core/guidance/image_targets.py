"""Image targets: the model makes finished images of the views, and many cheap optimisation steps fit the
splat to them.

Noise is added to the rendered views up to a level t, by DDIM inversion with the inversion prompt or at
random. The model samples down from there with the positive prompt, and decodes. ISM approximates the same
end point in one step (its multi-step pseudo ground truth: LucidDreamer, arXiv 2311.11284, section 3.2).
MicroDreamer (arXiv 2404.19525) calls this SIR. Renewing the set of images during the fit is the dataset
update of Instruct-NeRF2NeRF (Haque et al., ICCV 2023, arXiv 2303.12789). There is no backward pass through
the model or its VAE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..diffusion.prior import Conds, Prior
from ..settings import NO_GROWTH, check_bounds, require, setting
from .base import MIN_T, ddim, eps, gaussian, guided_eps
from .ism import inversion_times

Predict = Callable[[Tensor, float], Tensor]  # z (B, C, h, w) and its sigma -> the noise in it (B, C, h, w)


@dataclass(frozen=True)
class ImageTargets:
    """Settings of image targets. Times are fractions of the training schedule.

    Raises BadSetting for a setting out of its bounds, t_last above t, t_spread not below t_last, or kept
    below views.
    """

    pixel_limit = math.inf

    views: int = setting(
        12,
        1,
        64,
        "Number of target images made per round. More views agree better and cost more.",
        step=1,
        advanced=False,
    )
    fits: int = setting(
        100,
        1,
        10_000,
        "Optimisation steps between two rounds of target images. More is cheaper.",
        step=1,
        advanced=False,
    )
    cfg: float = setting(
        7.5,
        0,
        1000,
        "Classifier-free guidance scale at the start. Higher follows the prompt more closely and saturates "
        "colours; 1 = positive prompt only.",
        step=0.5,
        advanced=False,
    )
    cfg_last: float = setting(5.0, 0, 1000, "Classifier-free guidance scale at the end.", step=0.5)
    t: float = setting(
        0.3,
        MIN_T,
        1,
        "Noise level of the target images at the start, as a fraction of the schedule. Higher changes the "
        "splat more.",
        advanced=False,
    )
    t_last: float = setting(
        0.15,
        MIN_T,
        1,
        "Noise level of the target images at the end. Lower keeps more of the splat. Not above t.",
        advanced=False,
    )
    t_spread: float = setting(
        0.04,
        0,
        0.5,
        "Largest random deviation of the noise level in either direction, below t_last. 0 = off.",
    )
    fall: float = setting(
        0.6,
        0,
        1,
        "Share of the steps with image targets over which cfg and noise level reach their end values. 0 = "
        "immediately.",
    )
    last: float = setting(
        0.35,
        0,
        0.99,
        "Share of the steps with image targets, at their end, that fit the last images without new ones. 0 = "
        "off.",
    )
    inversion_steps: int = setting(
        2,
        0,
        50,
        "Number of DDIM inversion steps, which preserve the structure of the views. 0 = add random noise "
        "instead.",
        step=1,
    )
    sampling_steps: int = setting(
        4, 1, 100, "Number of DDIM sampling steps from the noisy latents to the target image.", step=1
    )
    kept: int = setting(
        48,
        1,
        1000,
        "Number of target images kept for fitting, at least `views`; the newest ones stay.",
        step=1,
    )
    rate: float = setting(
        2.0, 1e-3, 100, "Multiplier on the learning rates while images are fitted. 1 = unchanged."
    )
    grow_grad2d: float = setting(
        2e-4,
        0,
        NO_GROWTH,
        "Densification while images are fitted: mean gradient, in half image widths, above which a Gaussian "
        f"is split or cloned. Lower is sharper with more Gaussians; {NO_GROWTH:g} = off.",
        step=1e-5,
    )
    prune_opacity: float = setting(
        0.005,
        0,
        1,
        "Opacity below which densification removes a Gaussian while images are fitted. Higher clears fog and "
        "wisps; 0 = off.",
        step=0.005,
    )
    scale_weight: float = setting(
        0.01,
        0,
        1e6,
        "Weight of the mean Gaussian scale in the loss. Higher makes the Gaussians smaller; 0 = off.",
        step=0.001,
    )
    square_weight: float = setting(
        4.0,
        0,
        1000,
        "Weight of the squared pixel error relative to the absolute error. Higher places edges better "
        "where target images disagree, lower leaves fewer specks; 0 = off.",
        step=0.5,
    )
    edge_weight: float = setting(
        0.0,
        0,
        1000,
        "Weight of the edge error, the absolute error of neighbouring pixels' differences. 0 = off.",
        step=0.1,
    )
    entropy_weight: float = setting(
        0.0,
        0,
        1000,
        "Weight of the binary entropy of the rendered opacity. Higher clears fog; 0 = off.",
        step=0.001,
    )
    aspect_weight: float = setting(
        0.0,
        0,
        1000,
        "Weight of the penalty on needle-shaped Gaussians, whose longest axis is over twice the second one. "
        "0 = off.",
        step=0.001,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_last <= self.t, "t_last", self.t_last, f"at most t ({self.t:g})")
        require(self.t_spread < self.t_last, "t_spread", self.t_spread, f"below t_last ({self.t_last:g})")
        require(self.kept >= self.views, "kept", self.kept, f"at least views ({self.views})")

    def with_strength(self, strength: float) -> ImageTargets:
        """Return these settings with the noise levels scaled by `strength` (0 to 1); see Guidance."""
        if strength == 1:
            return self
        t, t_last = (max(strength * t, MIN_T) for t in (self.t, self.t_last))
        return replace(self, t=t, t_last=t_last, t_spread=strength * self.t_spread)

    def limit_cfg(self, most: float) -> ImageTargets:
        """Return these settings with guidance scales of at most `most`."""
        return replace(self, cfg=min(self.cfg, most), cfg_last=min(self.cfg_last, most))

    def anneal(self, progress: float, first: float, last: float) -> float:
        """Interpolate linearly from `first` to `last` over `fall`, a share of the steps."""
        return first + (min(progress / self.fall, 1.0) if self.fall else 1.0) * (last - first)

    def rounds(self, progress: float, steps: int) -> int:
        """Return the number of rounds of target images up to and including `progress` (0 to 1) of `steps`."""
        end = max(round((1 - self.last) * steps), 1)
        return min(round(progress * steps), end - 1) // self.fits + 1

    def predict(self, prior: Prior, conds: Conds, progress: float) -> Predict:
        """Return the function that predicts the noise with the guidance scale at `progress`."""
        cfg = self.anneal(progress, self.cfg, self.cfg_last)
        return lambda z, sigma: guided_eps(prior, z, sigma, conds, cfg)

    @torch.no_grad()
    def pictures(
        self,
        prior: Prior,
        images: Tensor,
        conds: Conds,
        progress: float,
        generator: Generator,
        predict: Predict | None = None,
    ) -> Tensor:
        """Make the target images (B, H, W, 3) in [0, 1] of the views `images` (B, H, W, 3).

        predict: what predicts the noise on the way down, if it is not `prior` with `conds`.
        """
        u = 2 * torch.rand((), generator=generator).item() - 1
        t = min(max(self.anneal(progress, self.t, self.t_last) + self.t_spread * u, MIN_T), 1.0)
        z0 = prior.encode(images)
        up = [
            prior.sigma(time)
            for time in inversion_times(t, t / max(self.inversion_steps, 1), self.inversion_steps)
        ]
        z = ddim(
            z0 + up[0] * gaussian(z0, generator),
            up,
            lambda z, sigma: eps(prior, z, sigma, [conds.inverse])[0],
        )
        steps = self.sampling_steps
        down = [*(prior.sigma(t * (1 - i / steps)) for i in range(steps)), 0.0]
        z = ddim(z, down, predict or self.predict(prior, conds, progress))
        return prior.decode(z).clamp(0, 1)

    def difference(self, image: Tensor, picture: Tensor) -> Tensor:
        """Return the loss (scalar) between the views and the target images `picture`, both (B, H, W, 3).

        It is the L1 error, plus the weighted squared error, plus the weighted L1 error of the edges.
        """
        error = image - picture
        loss = error.abs().mean()
        if self.square_weight:
            loss = loss + self.square_weight * error.square().mean()
        if self.edge_weight:
            rows, columns = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
            loss = loss + self.edge_weight * (rows.abs().mean() + columns.abs().mean())
        return loss


PRESETS = {
    "official": ImageTargets(),
    # From much noise to little: the first images still change the shape, and their disagreement averages out.
    # Inversion and more sampling steps gain nothing with a small model (docs/lab-notes.md).
    "cpu": ImageTargets(
        fits=36,
        cfg=4.0,
        cfg_last=1.0,
        t=0.6,
        t_last=0.15,
        t_spread=0.03,
        inversion_steps=0,
        sampling_steps=3,
        kept=24,
        prune_opacity=0.05,
    ),
}
