"""Difference between a splat's gradients through a tiny VAE and through one of Stable Diffusion's
architecture.

TAESD is a small network, trained to reproduce the latents of Stable Diffusion's VAE. Weights of these two are
not available, so demo networks replace them: the demo's encoder has TAESD's architecture, and an encoder of
Stable Diffusion's architecture is trained here to give the same latents. A second tiny encoder, with the same
architecture and another seed, shows which part of the difference is due to training.

Cosines compare gradients of the same ISM loss on the same latents, for the pixels, for blocks of pixels and
for the splat's parameters. x: norm of the other encoder's gradient divided by that of the demo's encoder, for
the pixels and for the means. All values are averages over views of a splat after half of its steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import avg_pool2d, cosine_similarity

from demo import taesd, train_vae, world
from demo.data import draw_all, pictures
from demo.fit import Recipe, fit
from demo.prior import DemoPrior
from demo.score import score as score_of
from devtools.launch import needs_repair, repair_cpu_torch
from devtools.tree import Tree
from lucid_core.guidance.base import MIN_T
from lucid_core.guidance.ism import interval_score
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.optimize.loop import distil
from lucid_core.optional import load
from lucid_core.rasterize import rasterize
from lucid_core.settings import replace_settings
from lucid_core.splats import Splats, activate, parameters

from .quality.cases import Case, workflow

TREE = Tree(Path(__file__).resolve().parents[1])
PICTURES, HELD_OUT, SIZE = 4000, 64, 128
LARGE = {  # Stable Diffusion's VAE at a quarter of its width
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
TIMES, BATCHES = (0.05, 0.2, 0.5, 0.8), 4
OF = ("pixels", "blocks of 8x8", "means", "scales", "opacities", "colours")
Encode = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> (B, 4, h, w), as the demo's encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument(
        "--minutes",
        type=float,
        default=20.0,
        help="training time of the large encoder; the tiny one gets half",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=TREE.root / "output" / "taesd",
        help="folder for images and trained networks",
    )
    parser.add_argument("--prompt", default="a red mushroom")


def main(as_json: bool, minutes: float, folder: Path, prompt: str) -> None:
    if needs_repair():
        repair_cpu_torch()
    folder.mkdir(parents=True, exist_ok=True)
    prior, images = DemoPrior(), pictures(folder / "pictures.npy", draw_all(PICTURES, seed=1), SIZE)
    torch.manual_seed(0)
    networks = {"large": (Large(), minutes), "tiny": (taesd.encoder(), minutes / 2)}
    encoders = {
        name: trained(network, prior.encoder, images, spent, folder / f"{name}.pt")
        for name, (network, spent) in networks.items()
    }
    errors = {name: error_of(encoder, prior.encoder, images) for name, encoder in encoders.items()}
    case = replace(workflow(), prompt=prompt)
    half_made = made(
        DemoPrior(), replace(case, config=replace_settings(case.config, steps=case.config.budget.steps // 2))
    )
    rows = [
        {"encoder": name, "t": t, **compared(prior, encoder, half_made, case, t)}
        for name, encoder in encoders.items()
        for t in TIMES
    ]
    ends = {
        name: judged(with_encoder(encoder), case)
        for name, encoder in {"demo": prior.encoder, **encoders}.items()
    }
    if as_json:
        print(json.dumps({"errors": errors, "rows": rows, "ends": ends}))
        return
    print(
        "\n".join(f"{name}: latents off by {error:.1%} of their deviation" for name, error in errors.items())
    )
    print(f"\n| encoder | t | {' | '.join(OF)} | x, pixels | x, means |\n|---|---:|{'---:|' * (len(OF) + 2)}")
    for row in rows:
        numbers = " | ".join(f"{row[of]:.2f}" for of in (*OF, "x", "x_means"))
        print(f"| {row['encoder']} | {row['t']} | {numbers} |")
    print("\n| splat through | psnr | iou |\n|---|---:|---:|")
    print("\n".join(f"| {name} | {psnr:.2f} | {iou:.3f} |" for name, (psnr, iou) in ends.items()))


class Large(nn.Module):
    """An encoder of Stable Diffusion's architecture; its latents are the means of the VAE's distribution."""

    def __init__(self) -> None:
        super().__init__()
        vae = load("diffusers", "diffusers").AutoencoderKL(**LARGE)
        self.encoder, self.last = vae.encoder, vae.quant_conv

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.encoder(2 * pixels - 1)).chunk(2, 1)[0]


def trained(model: nn.Module, teacher: Encode, images: np.ndarray, minutes: float, path: Path) -> nn.Module:
    """`model`, trained to reproduce the latents of `teacher`; its state is saved in `path`."""
    recipe = Recipe(minutes=minutes, lr=1e-3, warmup=100, hold=0.2, final=0.02, ema=0.998, weight_decay=1e-4)

    def loss(model: nn.Module, generator: torch.Generator, progress: float) -> Tensor:
        whole = progress > train_vae.WHOLE_FROM
        x = train_vae.as_input(train_vae.batch(images[:-HELD_OUT], whole, generator), torch.device("cpu"))
        with torch.no_grad():
            wanted = teacher(x)
        with torch.autocast("cpu", torch.bfloat16):
            return (model(x).float() - wanted).square().mean()

    told = lambda ema, step: print(
        f"{path.stem} step {step}: off by {error_of(ema, teacher, images):.1%}", flush=True
    )
    return fit(model.to(memory_format=torch.channels_last), loss, recipe, path, report=told).eval()


@torch.no_grad()
def error_of(model: Encode, teacher: Encode, images: np.ndarray) -> float:
    """Root mean square error of the latents of held-out images, divided by their standard deviation."""
    x = train_vae.as_input(images[-HELD_OUT:], torch.device("cpu"))
    wanted = teacher(x)
    return float((model(x) - wanted).square().mean().sqrt() / wanted.std())


def with_encoder(encoder: nn.Module) -> DemoPrior:
    prior = DemoPrior()
    prior.encoder = encoder
    return prior


def made(prior: DemoPrior, case: Case) -> Splats:
    source = GuidanceSource(prior, case.guidance, prior.prompts(case.prompt, blend=case.blend))
    start = case.start.splats(case.start_seed)
    *_, last = distil(start, source, case.cameras, case.config, case.seed, "numba")
    return last.splats


def judged(prior: DemoPrior, case: Case) -> tuple[float, float]:
    """PSNR in dB and silhouette IoU of the splat made with `prior`."""
    score = score_of(made(prior, case), world.parse(case.prompt))
    return score.psnr, score.iou


def compared(prior: DemoPrior, other: nn.Module, splats: Splats, case: Case, t: float) -> dict[str, float]:
    """The demo's encoder compared with `other`: cosines of the gradients in OF, and the ratios of their
    norms for pixels and means.
    """
    found, generator = [], torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        params, views = parameters(splats), case.cameras.sample(4, 0.5, SIZE, SIZE, generator)
        images = rasterize(activate(params), views.cameras, SIZE, SIZE, 0, torch.ones(3), "numba").rgb
        conds = prior.prompts(case.prompt, blend=case.blend).at(prior, views.azimuth_rad, views.elevation_rad)
        with torch.no_grad():
            z0 = prior.encode(images)
            noise = torch.randn(z0.shape, generator=generator)
            ism = case.guidance.at(0.5)
            g = interval_score(ism, prior, z0, noise, t, max(t - ism.delta_t, MIN_T), conds, generator)
        through = lambda one, g=g, images=images, params=params: gradients(
            with_encoder(one), images, g, params
        )
        ours, theirs = through(prior.encoder), through(other)
        cosines = {
            of: float(cosine_similarity(a.flatten(), b.flatten(), 0)) for of, a, b in zip(OF, ours, theirs)
        }
        lengths = {
            "x": float(theirs[0].norm() / ours[0].norm()),
            "x_means": float(theirs[2].norm() / ours[2].norm()),
        }
        found.append(cosines | lengths)
    return {name: sum(row[name] for row in found) / BATCHES for name in found[0]}


def gradients(prior: DemoPrior, images: Tensor, g: Tensor, params: dict[str, Parameter]) -> list[Tensor]:
    """Gradients of (latents * g).sum(), in the order of OF; `images` (B, H, W, 3), `g` (B, 4, h, w)."""
    pixels = images.detach().requires_grad_()
    (of_pixels,) = torch.autograd.grad((prior.encode(pixels) * g).sum(), pixels)
    of_params = torch.autograd.grad(
        images, [params[name] for name in ("means", "scales", "opacities", "sh0")], of_pixels, True
    )
    return [of_pixels, avg_pool2d(of_pixels.movedim(-1, 1), 8), *of_params]
