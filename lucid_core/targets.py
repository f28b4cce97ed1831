"""Targets in image space: finished pictures of the views, which many cheap optimiser steps then fit the splat to.

The model inverts the rendered views to a noise level t without the prompt, samples down from there under it, and decodes. ISM
approximates the same end point in one step (its multi-step pseudo ground truth: LucidDreamer, arXiv 2311.11284, section 3.2).
Known as SIR in MicroDreamer (arXiv 2404.19525); a set of pictures that is renewed while it is fitted is Instruct-NeRF2NeRF's
dataset update (Haque et al., ICCV 2023, arXiv 2303.12789). No gradient passes the model or its VAE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .checks import check_bounds, require, setting
from .densify import NO_GROWTH
from .ism import inversion_times
from .prior import Conds, Prior
from .score import MIN_T, eps, gaussian, guided_eps, invert


@dataclass(frozen=True)
class ImageTargets:
    """Settings of the method. Times are fractions of the training schedule."""

    pixel_limit = math.inf

    views: int = setting(
        12, 1, 64, "Views that the model makes pictures of each time. More agree better, and cost more.", step=1, rare=False
    )
    fits: int = setting(
        100, 1, 10_000, "Steps of Lucid Dream between two times that the model is asked. More is cheaper.", step=1, rare=False
    )
    cfg: float = setting(
        7.5, 0, 1000, "Classifier-free guidance scale at first. Higher follows the prompt harder and saturates colours; 1 = "
        "the prompt alone.", step=0.5, rare=False,
    )  # fmt: skip
    cfg_last: float = setting(5.0, 0, 1000, "Classifier-free guidance scale in the end.", step=0.5)
    t: float = setting(
        0.3, MIN_T, 1, "Noise that the views get at first: how far the pictures may go from what the splat shows.", rare=False
    )
    t_last: float = setting(0.15, MIN_T, 1, "Noise that the views get in the end. Lower keeps more of the splat.", rare=False)
    t_spread: float = setting(0.04, 0, 0.5, "Random deviation from that noise to both sides; 0 = none.")
    fall: float = setting(0.6, 0, 1, "Share of these steps over which cfg and noise go to their last values; 0 = at once.")
    last: float = setting(
        0.35, 0, 0.99, "Share of these steps, at the end, that fits the last pictures without new ones; 0 = none."
    )
    inversion_steps: int = setting(
        2, 0, 50, "Steps of the DDIM inversion, which keeps the views' structure; 0 = random noise is added instead.", step=1
    )
    sampling_steps: int = setting(4, 1, 100, "Steps of the DDIM sampling from the noise to the picture.", step=1)
    kept: int = setting(48, 1, 1000, "Pictures that are fitted at a time: the newest ones.", step=1)
    rate: float = setting(2.0, 1e-3, 100, "Learning rates of these steps, as a share of those of Lucid Dream.")
    grow_grad2d: float = setting(
        2e-4, 0, NO_GROWTH, "Mean gradient, in half image widths, above which a splat is split or copied in these steps, at "
        f"the times that Lucid Dream has. Lower is sharper, with more splats; {NO_GROWTH:g} = nothing grows.", step=1e-5,
    )  # fmt: skip
    prune_opacity: float = setting(
        0.005, 0, 1, "Splats fainter than this are removed in these steps, at the same times. Higher clears fog and wisps; 0 = "
        "none are.", step=0.005,
    )  # fmt: skip
    scale_weight: float = setting(
        0.01, 0, 1e6, "Weight of the mean size of the Gaussians beside the difference of the pictures. Higher makes them "
        "smaller; 0 = none.", step=0.001,
    )  # fmt: skip
    square_weight: float = setting(
        4.0, 0, 1000, "Weight of the pixels' squared difference beside the absolute one. Higher places edges better where "
        "pictures disagree, lower keeps spots cleaner; 0 = none.", step=0.5,
    )  # fmt: skip
    edge_weight: float = setting(
        0.0, 0, 1000, "Weight of the difference of neighbouring pixels' differences: of edges; 0 = none.", step=0.1
    )
    entropy_weight: float = setting(
        0.0, 0, 1000, "Weight of the binary entropy of the views' opacity, which clears fog; 0 = none.", step=0.001
    )
    aspect_weight: float = setting(
        0.0, 0, 1000, "Weight of the Gaussians' longest axis beside their second one, where it is over twice as long: needles, "
        "which fit one view and disturb the next; 0 = none.", step=0.001,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.t_last <= self.t, "t_last", self.t_last, f"at most t ({self.t:g})")
        require(self.t_spread < self.t_last, "t_spread", self.t_spread, f"below t_last ({self.t_last:g})")
        require(self.kept >= self.views, "kept", self.kept, f"at least views ({self.views})")

    def limited(self, strength: float) -> ImageTargets:
        """These settings with only `strength` of the noise; see DreamConfig."""
        below = lambda t: max(strength * t, MIN_T)
        return replace(self, t=below(self.t), t_last=below(self.t_last), t_spread=strength * self.t_spread)

    def annealed(self, progress: float, first: float, last: float) -> float:
        """From `first` to `last` linearly over `fall`, as shares of these steps."""
        return first + (min(progress / self.fall, 1.0) if self.fall else 1.0) * (last - first)

    def asks(self, progress: float, steps: int) -> int:
        """How often the model was asked before and at `progress`, of `steps` steps."""
        end = max(round((1 - self.last) * steps), 1)
        return min(round(progress * steps), end - 1) // self.fits + 1

    @torch.no_grad()
    def pictures(self, prior: Prior, images: Tensor, conds: Conds, progress: float, generator: Generator) -> Tensor:
        """What the views (B, H, W, 3) should become, in [0, 1]."""
        u = 2 * torch.rand((), generator=generator).item() - 1
        t = min(max(self.annealed(progress, self.t, self.t_last) + self.t_spread * u, MIN_T), 1.0)
        cfg = self.annealed(progress, self.cfg, self.cfg_last)
        z0 = prior.encode(images)
        up = [prior.sigma(time) for time in inversion_times(t, t / max(self.inversion_steps, 1), self.inversion_steps)]
        z = invert(z0 + up[0] * gaussian(z0, generator), up, lambda z, sigma: eps(prior, z, sigma, [conds.inverse])[0])
        steps = self.sampling_steps
        down = [*(prior.sigma(t * (1 - i / steps)) for i in range(steps)), 0.0]
        z = invert(z, down, lambda z, sigma: guided_eps(prior, z, sigma, conds, cfg))
        return prior.decode(z).clamp(0, 1)

    def difference(self, image: Tensor, picture: Tensor) -> Tensor:
        """The loss of views (B, H, W, 3) that should be `picture`: L1 and squares of pixels, L1 of edges, by their weights."""
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
    # Few, low rounds: a small model's pictures are sure of their colours, and differ in shape where they get more noise.
    "cpu": ImageTargets(fits=155, cfg=2.0, cfg_last=1.0, t=0.2, t_last=0.08, t_spread=0.03, kept=24, prune_opacity=0.05),
}


@dataclass(frozen=True)
class Replay:
    """Pictures that the splat is fitted to, oldest first, with what they were seen by.

    viewmats (K, 4, 4), Ks (K, 3, 3), backgrounds (K, 3), pictures (K, H, W, 3) in bytes; asked: how often the model was asked.
    """

    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor
    pictures: Tensor
    asked: int = 0

    def add(self, other: Replay, kept: int) -> Replay:
        """These and those of `other`, the newest `kept` of them."""
        both = {name: torch.cat([value, vars(other)[name]])[-kept:] for name, value in self.tensors().items()}
        return Replay(**both, asked=other.asked)

    def draw(self, views: int, generator: Generator) -> Replay:
        """`views` of them at random, each at most once more often than another."""
        order = torch.cat([torch.randperm(len(self.Ks), generator=generator) for _ in range(-(-views // len(self.Ks)))])
        rows = order[:views].to(self.Ks.device)
        return Replay(**{name: value[rows] for name, value in self.tensors().items()}, asked=self.asked)

    def tensors(self) -> dict[str, Tensor]:
        return {"viewmats": self.viewmats, "Ks": self.Ks, "backgrounds": self.backgrounds, "pictures": self.pictures}
