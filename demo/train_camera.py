"""Train the demo camera model from the demo prior: pictures, latents, denoiser, narrow weights file.

    python -m demo.train_camera --out DIR

Takes about two hours on one CPU core. A stopped run resumes from its last save when it is started again with
the same DIR. The result is DIR/camera_prior.safetensors; convert it with `python -m demo.checkpoint OUT
--prior DIR/camera_prior.safetensors`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lucid_core.conditioning.picture_prompt import camera_columns

from . import camera_data, captions, unet
from .camera_unet import CameraUNet, start_from_text
from .checkpoint import PRIOR, save
from .data import Scenes, pictures
from .fit import Loss, Recipe, autocast, fit
from .prior import DemoPrior, part
from .train_unet import TIMESTEPS, alphas_cumprod, diffuse, draw_timesteps
from .words import CONCEPTS

RECIPE = Recipe(minutes=87, lr=9e-4, warmup=100, hold=0.2, final=0.01, ema=0.998, weight_decay=0.01)
BATCH = 16
WEIGHTS = (1.0, 5.0)  # of x0's squared error: the signal-to-noise ratio, clamped
NOISY = 0.5  # power of the timesteps' fraction: what the picture and the camera say matters at high noise
DROP = 0.10  # probability of no condition, for classifier-free guidance
OWN = 0.06  # share of targets that are the picture itself
FRONTAL_DEG = 35.0  # pictures of the front are drawn more often, by a Gaussian of this width and a floor
FLOOR = 0.08


@dataclass(frozen=True)
class Config:
    objects: int = 500
    held_out: int = 20  # how many of them are held out for the reports
    size: int = 128
    seed: int = 0
    recipe: Recipe = RECIPE
    save_every_s: float = 240.0

    def __post_init__(self):
        if self.objects <= self.held_out:
            raise ValueError(
                f"objects is {self.objects}; {self.held_out} are held out, so it must be larger than that"
            )


@dataclass(frozen=True)
class Examples:
    """N objects with V views each: latents (N, V, 4, h, w) with standard deviation 1; azimuth_rad,
    elevation_rad (N, V). The first `camera_data.PICTURES` views of an object may be the model's input.
    """

    latents: Tensor
    azimuth_rad: Tensor
    elevation_rad: Tensor

    def draw_pictures(self, item: Tensor, generator: torch.Generator) -> Tensor:
        """A picture (B,) of each object `item` (B,), more often one of its front."""
        angle = self.azimuth_rad[item, : camera_data.PICTURES].rad2deg()
        weights = FLOOR + (-0.5 * (angle / FRONTAL_DEG).square()).exp()
        return torch.multinomial(weights, 1, generator=generator)[:, 0]

    def part(self, objects: slice) -> Examples:
        return Examples(self.latents[objects], self.azimuth_rad[objects], self.elevation_rad[objects])

    def columns(self, item: Tensor, picture: Tensor, target: Tensor) -> Tensor:
        """Camera columns (B, 4) of view `target` from view `picture` of object `item`, indices (B,)."""
        own, other = (item, picture), (item, target)
        return camera_columns(
            self.azimuth_rad[other], self.elevation_rad[other], self.azimuth_rad[own], self.elevation_rad[own]
        )


def train(
    out: Path,
    config: Config = Config(),
    device: torch.device = torch.device("cpu"),  # noqa: B008
    report: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
    prior: Path = PRIOR,
) -> Path:
    """Run all phases without a result in `out`; returns the path of the narrow file. clock: see `fit`. prior:
    the narrow text model from which this one starts.
    """
    out.mkdir(parents=True, exist_ok=True)
    scenes = camera_data.draw(config.objects, config.seed)
    report(f"{len(scenes)} pictures of {config.size} px")
    images = pictures(out / "camera_images.npy", scenes, config.size)
    start = load_file(prior)
    examples = encode_all(out / "camera_latents.safetensors", images, scenes, prior)
    denoiser = fit_unet(out / "camera_unet.pt", config, examples, start, device, report, clock)
    return export(out / "camera_prior.safetensors", denoiser, start)


def encode_all(path: Path, images: np.ndarray, scenes: Scenes, prior: Path) -> Examples:
    """Examples of `images` (N * V, S, S, 3); their latents are made once and kept at `path`."""
    if not path.exists():
        vae = DemoPrior(prior)
        parts = [
            vae.encode(torch.from_numpy(images[i : i + 16]).float() / 255) for i in range(0, len(images), 16)
        ]
        save(path, {"values": torch.cat(parts).half().contiguous()})
    views = (-1, camera_data.VIEWS)
    angle = lambda radians: torch.from_numpy(radians).float().unflatten(0, views)
    latents = load_file(path)["values"].unflatten(0, views)
    return Examples(latents, angle(scenes.azimuth_rad), angle(scenes.elevation_rad))


def fit_unet(
    path: Path,
    config: Config,
    examples: Examples,
    start: dict[str, Tensor],
    device: torch.device,
    report: Callable[[str], None],
    clock: Callable[[], float],
) -> CameraUNet:
    torch.manual_seed(config.seed)  # the camera's projection
    text, words = part(start, "unet."), captions.encoded(start["words"])
    model = CameraUNet(*unet.widths_of(text))
    start_from_text(model, text, dict(zip(CONCEPTS, words, strict=True)))
    model.to(device, memory_format=torch.channels_last)
    n = len(examples.latents) - config.held_out
    held_out = examples.part(slice(n, None))
    return fit(
        model,
        training_loss(examples.part(slice(n))),
        config.recipe,
        path,
        seed=config.seed + 1,
        save_every_s=config.save_every_s,
        clock=clock,
        report=lambda ema, step: report(f"step {step}: {_line(held_out_errors(ema, held_out))}"),
    )


def _line(errors: dict[int, float]) -> str:
    return ", ".join(f"x0-MSE {error:.4f} at {t}" for t, error in errors.items())


def predict(
    model: nn.Module, noisy: Tensor, timesteps: Tensor, picture: Tensor, columns: Tensor, given: Tensor
) -> Tensor:
    """eps on the model's device; the arguments are those of `CameraUNet.forward`, on any device."""
    device = next(model.parameters()).device
    noisy, picture = (x.to(device).contiguous(memory_format=torch.channels_last) for x in (noisy, picture))
    with autocast(device):
        return model(noisy, timesteps.to(device), picture, columns.to(device), given.to(device)).float()


def training_loss(examples: Examples) -> Loss:
    """Squared error of x0, weighted by the signal-to-noise ratio clamped to WEIGHTS: min-SNR (arXiv
    2303.09556) with a floor (arXiv 2202.00512, section 4), because at high noise, where everything comes from
    the picture and the camera, its weights are too small for a short training.
    """
    abar = alphas_cumprod()
    snr = abar / (1 - abar)
    objects, views = examples.latents.shape[:2]

    def loss(model: nn.Module, generator: torch.Generator, progress: float) -> Tensor:
        item = torch.randint(objects, (BATCH,), generator=generator)
        picture = examples.draw_pictures(item, generator)
        target = torch.randint(views, (BATCH,), generator=generator)
        target = torch.where(torch.rand(BATCH, generator=generator) < OWN, picture, target)
        given = torch.rand(BATCH, generator=generator) >= DROP
        t = draw_timesteps(BATCH, generator, NOISY)
        z0 = examples.latents[item, target].float()
        noise = torch.randn(z0.shape, generator=generator)
        columns = examples.columns(item, picture, target)
        eps = predict(
            model, diffuse(z0, t, noise), t, examples.latents[item, picture].float(), columns, given
        )
        error = (eps - noise.to(eps.device)).square().mean(dim=(1, 2, 3))  # (B,)
        weight = snr[t].clamp(*WEIGHTS) / snr[t]
        return (weight.to(eps.device) * error).mean()

    return loss


@torch.no_grad()
def held_out_errors(model: nn.Module, examples: Examples, times: tuple[int, ...] = (400, 700, 950)) -> dict:
    """Timestep -> mean squared error of x0, of each object's last views from its first picture, with the same
    noise in each call.
    """
    objects, views = examples.latents.shape[:2]
    item = torch.arange(objects).repeat_interleave(3)
    picture = torch.zeros_like(item)
    target = torch.arange(views - 3, views).repeat(objects)
    z0 = examples.latents[item, target].float()
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(7))
    columns, given = examples.columns(item, picture, target), torch.ones(len(item), dtype=torch.bool)
    pictures_ = examples.latents[item, picture].float()
    abar, errors = alphas_cumprod(), {}
    for time_ in times:
        t = torch.full((len(item),), min(time_, TIMESTEPS - 1))
        eps = predict(model, diffuse(z0, t, noise), t, pictures_, columns, given).cpu()
        errors[time_] = float((eps - noise).square().mean() * (1 - abar[time_]) / abar[time_])
    return errors


def export(path: Path, denoiser: CameraUNet, start: dict[str, Tensor]) -> Path:
    """Write the narrow file that `checkpoint.expand` takes: fp16 weights, and the autoencoder of `start`."""
    state = denoiser.state_dict()
    tensors = {name: value.cpu().half().contiguous() for name, value in state.items()}
    tensors |= {k: v for k, v in start.items() if k.startswith(("enc.", "dec.")) or k == "scale_shift"}
    save(path, tensors)
    return path


def main() -> None:
    config = Config()
    parser = argparse.ArgumentParser(prog="python -m demo.train_camera", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for images, states and the result; needs 1 GB"
    )
    parser.add_argument("--objects", type=int, default=config.objects)
    parser.add_argument("--minutes", type=float, default=config.recipe.minutes)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    config = replace(
        config, objects=arguments.objects, recipe=replace(config.recipe, minutes=arguments.minutes)
    )
    print(train(arguments.out, config, arguments.device))


if __name__ == "__main__":
    main()
