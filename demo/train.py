"""Train the demo prior from scratch: images, autoencoder, latents, denoiser, narrow weights file.

    python -m demo.train --out DIR

Takes about 75 minutes on two CPU cores. A stopped run resumes from its last save when it is started again
with the same DIR. To repeat a phase, remove its file and those of later phases: images.npy, vae.pt,
latents.safetensors, unet.pt. The result is DIR/prior.safetensors; convert it with `python -m demo.checkpoint
OUT --prior DIR/prior.safetensors`.
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
from torch import Tensor

from . import captions, taesd, train_unet, train_vae, unet
from .checkpoint import SD15_LATENT_SCALE, save
from .data import draw_all, pictures
from .fit import Recipe, fit


@dataclass(frozen=True)
class Config:
    images: int = 18_000
    held_out: int = 512  # how many of them are held out for the reports
    size: int = 128
    seed: int = 0
    vae_widths: tuple[int, int, int, int] = taesd.WIDTHS
    unet_widths: tuple[int, int, int] = unet.WIDTHS
    vae: Recipe = train_vae.RECIPE
    unet: Recipe = train_unet.RECIPE
    save_every_s: float = 180.0

    def __post_init__(self):
        if self.images <= self.held_out:
            raise ValueError(
                f"images is {self.images}; {self.held_out} are held out, so it must be larger than that"
            )


@dataclass(frozen=True)
class Latents:
    """values (N, 4, h, w) fp16 with mean 0 and standard deviation 1; mean, std (): those of the encoder's
    output.
    """

    values: Tensor
    mean: Tensor
    std: Tensor


def train(
    out: Path,
    config: Config = Config(),
    device: torch.device = torch.device("cpu"),  # noqa: B008
    report: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Run all phases without a result in `out`; returns the path of the narrow file. clock: see `fit`."""
    out.mkdir(parents=True, exist_ok=True)
    scenes = draw_all(config.images, config.seed)
    report(f"{config.images} pictures of {config.size} px")
    images = pictures(out / "images.npy", scenes, config.size)
    vae = fit_vae(out, config, images, device, report, clock)
    latents = encode_all(out, vae, images, device)
    report(f"latents: mean {latents.mean:.3f}, deviation {latents.std:.3f}")
    words = captions.word_vectors()
    examples = train_unet.Examples(latents.values, captions.rows(scenes), captions.encoded(words))
    denoiser = fit_unet(out, config, examples, device, report, clock)
    return export(out / "prior.safetensors", denoiser, vae, latents, words)


def fit_vae(
    out: Path,
    config: Config,
    images: np.ndarray,
    device: torch.device,
    report: Callable[[str], None],
    clock: Callable[[], float],
) -> train_vae.Autoencoder:
    torch.manual_seed(config.seed)  # initial weights
    model = train_vae.Autoencoder(config.vae_widths).to(device, memory_format=torch.channels_last)
    shown, held_out = images[: -config.held_out], images[-config.held_out :][:64]
    return fit(
        model,
        train_vae.training_loss(shown, device),
        config.vae,
        out / "vae.pt",
        seed=config.seed + 1,
        save_every_s=config.save_every_s,
        clock=clock,
        report=lambda ema, step: report(
            f"vae step {step}: PSNR {train_vae.psnr(ema, held_out, device):.2f} dB"
        ),
    )


def encode_all(out: Path, vae: train_vae.Autoencoder, images: np.ndarray, device: torch.device) -> Latents:
    path = out / "latents.safetensors"
    if not path.exists():
        raw = train_vae.encode(vae, images, device)
        mean, std = raw.mean(), raw.std()
        save(path, {"values": ((raw - mean) / std).half().contiguous(), "mean": mean, "std": std})
    return Latents(**load_file(path))


def fit_unet(
    out: Path,
    config: Config,
    examples: train_unet.Examples,
    device: torch.device,
    report: Callable[[str], None],
    clock: Callable[[], float],
) -> unet.UNet:
    torch.manual_seed(config.seed)
    model = unet.UNet(*config.unet_widths).to(device, memory_format=torch.channels_last)
    n = len(examples.latents) - config.held_out
    shown = replace(examples, latents=examples.latents[:n], rows=examples.rows[:n])
    held_out = replace(examples, latents=examples.latents[n:], rows=examples.rows[n:])
    return fit(
        model,
        train_unet.training_loss(shown),
        config.unet,
        out / "unet.pt",
        seed=config.seed + 2,
        save_every_s=config.save_every_s,
        clock=clock,
        report=lambda ema, step: report(f"unet step {step}: eps-MSE {train_unet.eps_mse(ema, held_out):.4f}"),
    )


def export(
    path: Path, denoiser: unet.UNet, vae: train_vae.Autoencoder, latents: Latents, words: Tensor
) -> Path:
    """Write the narrow file that `checkpoint.expand` takes: fp16 weights, and the VAE's scale and shift.

    The host encodes to encoder(x) / scale + shift, and decodes accordingly. Multiplied by SD15_LATENT_SCALE,
    this is our latent.
    """
    scale = latents.std * SD15_LATENT_SCALE
    tensors = {"words": words, "scale_shift": torch.stack([scale, -latents.mean / scale])}
    for prefix, network in (("unet.", denoiser), ("enc.", vae.encoder), ("dec.", vae.decoder)):
        state = network.state_dict()
        tensors |= {prefix + name: value.cpu().half().contiguous() for name, value in state.items()}
    save(path, tensors)
    return path


def main() -> None:
    config = Config()
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for images, states and the result; needs 1 GB"
    )
    parser.add_argument("--images", type=int, default=config.images)
    parser.add_argument("--minutes-vae", type=float, default=config.vae.minutes)
    parser.add_argument("--minutes-unet", type=float, default=config.unet.minutes)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    config = replace(
        config,
        images=arguments.images,
        vae=replace(config.vae, minutes=arguments.minutes_vae),
        unet=replace(config.unet, minutes=arguments.minutes_unet),
    )
    print(train(arguments.out, config, arguments.device))


if __name__ == "__main__":
    main()
