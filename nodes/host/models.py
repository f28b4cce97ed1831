"""MODEL, VAE and CONDITIONING of the host as lucid_core's Prior and Prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from torch.nn import Parameter

from ...lucid_core.checkpoint import digest
from ...lucid_core.views import VIEWS, Prompts
from ..types import Conditioning, LucidGuidanceData
from .memory import are_loaded, free_memory, load, memory_errors
from .page import check_interrupt
from .vae import GradientVAE

T = TypeVar("T")
HostCond = list[dict]  # a conditioning as the host's samplers hold it
IDENTITY_WEIGHTS, IDENTITY_VALUES = 32, 4096  # how many weights, and values of each, tell two models apart

def require_clip(clip: Any) -> None:
    if clip is None:
        raise ValueError("clip is missing: this checkpoint holds no text encoder; load one with CLIP Loader")


def encode_text(clip: Any, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def require_image_model(model: Any, vae: Any) -> None:
    """Raise ValueError unless `model` denoises images by noise or v prediction and `vae` makes its latents."""
    if vae is None:
        raise ValueError("vae is missing: this checkpoint holds none; load the model's VAE with Load VAE")
    name = type(model.model).__name__
    latents = model.model.latent_format
    sampling = model.get_model_object("model_sampling")
    known = isinstance(sampling, comfy.model_sampling.EPS) and isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)
    if latents.latent_dimensions != 2 or vae.latent_dim != 2:
        raise ValueError(f"model {name} does not make images; use an image model such as SD 1.5, SD 2.1 or SDXL")
    if not known:
        raise ValueError(f"model {name} is not a noise or v prediction model; use one such as SD 1.5, SD 2.1 or SDXL")
    if latents.latent_channels != vae.latent_channels:
        raise ValueError(
            f"model {name} works on {latents.latent_channels} latent channels, but this vae makes {vae.latent_channels}; "
            "use the VAE that belongs to the model"
        )


def identity(guidance: LucidGuidanceData) -> dict[str, str]:
    """What a run depends on beside its settings: the prompt, and hashes of the encoded prompt, the model and the VAE."""
    prompt = guidance.prompt
    return {
        "prompt": prompt.text,
        "conditioning": _fingerprint([prompt.views, prompt.negative, prompt.inverse, dataclasses.asdict(prompt.blend)]),
        "model": _fingerprint_of_model(guidance.model),
        "vae": _fingerprint_of_model(guidance.vae.patcher),
    }


def _fingerprint_of_model(patcher: Any) -> str:
    """Of its weights' names and shapes, the values of a few of them, and of what patches all of them."""
    weights = patcher.get_key_patches()  # [(weight before patches, how to read it), patch, ...] by key
    few = sorted(weights)[:: max(len(weights) // IDENTITY_WEIGHTS, 1)]
    shapes = [(name, tuple(entries[0][0].shape)) for name, entries in sorted(weights.items())]
    return _fingerprint([shapes, [weights[name][0][0] for name in few], sorted(patcher.patches.items())])


def _fingerprint(value: Any) -> str:
    """12 hex digits of nested containers of tensors, numbers and text; of other objects their kind and weights count."""
    if type(value) in (Tensor, Parameter):  # the values of others (quantised ones) are theirs to read
        flat = value.detach().flatten()
        return digest(flat[:: max(len(flat) // IDENTITY_VALUES, 1)])
    if isinstance(value, dict):
        parts = [f"{key}={_fingerprint(item)}" for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [_fingerprint(item) for item in value]
    elif isinstance(value, (str, int, float, bool, type(None))):
        parts = [repr(value)]
    else:
        parts = [type(value).__name__, _fingerprint(getattr(value, "weights", None))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


class _Inside(comfy.samplers.Sampler):
    """A 'sampler' whose sampling is `body`: the host sets up and cleans up around it as for its own KSampler."""

    def __init__(self, body: Callable[[comfy.samplers.CFGGuider, dict], T]) -> None:
        self.body = body

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        self.result = self.body(guider, extra_args["model_options"])
        return noise


def with_prior(guidance: LucidGuidanceData, views: int, resolution: int, body: Callable[[HostPrior, Prompts], T]) -> T:
    """Run `body` while the host holds the guidance's model ready, with a copy of the VAE that gradients can pass.

    Patches, hooks, memory and clean-up of the model are the host's own, because `body` runs inside its sampling call.
    """
    latents = guidance.model.model.latent_format
    side = resolution // latents.spacial_downscale_ratio
    noise = torch.zeros(views, latents.latent_channels, side, side)
    prompt = guidance.prompt
    guider = comfy.samplers.CFGGuider(guidance.model)
    guider.inner_set_conds({**dict(zip(VIEWS, prompt.views)), "negative": prompt.negative, "inverse": prompt.inverse})

    def inside(guider: comfy.samplers.CFGGuider, model_options: dict) -> T:
        conds = guider.conds
        prompts = Prompts(tuple(conds[view] for view in VIEWS), conds["negative"], conds["inverse"], prompt.blend)
        with torch.inference_mode(False), torch.enable_grad():
            prior = HostPrior(guider, model_options, guidance.vae, views, resolution)
            try:
                return body(prior, prompts)
            finally:
                prior.release()

    sampler = _Inside(inside)
    guider.sample(noise, noise, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return sampler.result


class HostPrior:
    """lucid_core's Prior over a MODEL and VAE of the host. Lives inside `with_prior`."""

    def __init__(self, guider: Any, model_options: dict, vae: Any, views: int, resolution: int) -> None:
        self.evaluations = 0
        self._model, self._options = guider.inner_model, model_options
        self._patcher = guider.model_patcher
        self._device = self._patcher.load_device
        self._sampling = self._patcher.get_model_object("model_sampling")
        self._vae = GradientVAE(vae)
        latents = self._model.latent_format
        noise = (views, latents.latent_channels, *(resolution // latents.spacial_downscale_ratio,) * 2)
        required, least = comfy.sampler_helpers.estimate_memory(self._patcher, noise, guider.conds)
        view = self._vae.memory_required(resolution)
        self._memory = required + views * view, least + view
        self._load()
        self._vae.fit(views, resolution, free_memory(vae.device) - least)

    def _load(self) -> None:
        load([self._patcher, self._vae.patcher], *self._memory)

    def _ready(self) -> None:
        """Load again what a preview or another model has driven out, or patched: LoRAs on one checkpoint share its weights."""
        if self._model.current_patcher is self._patcher and are_loaded([self._patcher, self._vae.patcher]):
            return
        self._load()
        self._patcher.pre_run()

    def release(self) -> None:
        """Drop the copy of the VAE; also called after an error."""
        self._vae.release()
        del self._model
        comfy.model_management.cleanup_models()
        comfy.model_management.soft_empty_cache()

    def encode(self, images: Tensor) -> Tensor:
        with memory_errors():
            self._ready()
            return self._model.process_latent_in(self._vae.encode(images).to(self._device))

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(self._model.process_latent_out(latents))

    def denoise(self, z: Tensor, sigma: float, conds: list[HostCond]) -> list[Tensor]:
        check_interrupt()
        self.evaluations += len(z) * len(conds)
        with memory_errors():
            self._ready()
            with torch.inference_mode():  # as under the host's samplers, where every patch expects to run
                sigmas = torch.full((len(z),), sigma, device=z.device)
                predictions = comfy.samplers.calc_cond_batch(self._model, conds, z, sigmas, self._options)
        return [prediction.clone() for prediction in predictions]

    def sigma(self, t: float) -> float:
        return float(self._sampling.sigma(torch.tensor(t * (len(self._sampling.sigmas) - 1))))

    def blend(self, conds: list[HostCond], weights: Tensor) -> HostCond:
        """Blend entry by entry; all of `conds` must have as many entries."""
        counts = {len(cond) for cond in conds}
        if len(counts) > 1:
            raise ValueError("the prompts of the views differ in structure (scheduled or regional prompts); use plain ones")
        return [_blend_entries(entries, weights) for entries in zip(*conds)]


def _blend_entries(entries: tuple[dict, ...], weights: Tensor) -> dict:
    """Replace the text tensors of the first entry by weighted sums with a row per view."""
    model_conds = dict(entries[0]["model_conds"])
    for name in ("c_crossattn", "y"):
        if name in model_conds:
            values = [entry["model_conds"][name].cond for entry in entries]
            model_conds[name] = model_conds[name]._copy_with(_blend_tensors(values, weights))
    return {**entries[0], "model_conds": model_conds}


def _blend_tensors(values: list[Tensor], weights: Tensor) -> Tensor:
    """V tensors (1, ...) and weights (B, V) -> (B, ...). Token sequences of unequal length are repeated to one length,
    which changes nothing in attention; the host does the same when it batches prompts."""
    if values[0].ndim == 3:
        length = math.lcm(*(value.shape[1] for value in values))
        values = [value.repeat(1, length // value.shape[1], 1) for value in values]
    stacked = torch.cat(values)  # (V, ...)
    return torch.einsum("bv,v...->b...", weights.to(stacked), stacked)
