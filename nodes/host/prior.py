"""lucid_core's Prior, implemented with a MODEL and a VAE of the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...lucid_core.diffusion.prior import Prior
from . import controlnet
from .conditioning import HostCond, blend, mean_of, parts_of
from .families import pixel_limit_of, shape_of
from .frontend import check_interrupt
from .memory import are_loaded, close_allocation_graphs, free_memory, load, load_whole, memory_errors
from .model_patches import PatchControl, add_patches
from .noise import NoiseLevels
from .vae import GradientVAE

CFG_PATCHES = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
WITHOUT_PROMPT = ("negative", "inverse")


class HostPrior(Prior):
    """lucid_core's Prior, implemented with a MODEL and a VAE of the host. Usable inside
    `sampling.with_prior`.

    `views` and `resolution` (pixels) size the memory request; `shown` has the control objects for each hint.
    Latents are float32 (B, C, h, w) in the scale of the model.
    """

    def __init__(
        self,
        guider: Any,
        model_options: dict,
        vae: Any,
        views: int,
        resolution: int,
        shown: list[controlnet.Shown],
    ) -> None:
        self.evaluations = 0
        self._shown = shown
        self._model = guider.inner_model
        self._options = model_options
        self._patcher = guider.model_patcher
        self._device = self._patcher.load_device
        self._levels = NoiseLevels(self._patcher.get_model_object("model_sampling"))
        self._without_prompt = [guider.conds[name] for name in WITHOUT_PROMPT]
        self.pixel_limit = pixel_limit_of(self._model)
        self._inverse = guider.conds["inverse"]
        self._patches = [each for nets in shown for each in nets if isinstance(each, PatchControl)]
        self._vae = GradientVAE(vae)
        nets = [each.net for each in self._patches]
        # guider.loaded_models includes the ControlNets.
        self._loaded = [self._patcher, *guider.loaded_models, self._vae.patcher, *nets]
        self._latents = copy.deepcopy(self._model.latent_format)  # the original has inference-mode tensors
        noise = shape_of(self._latents, views, resolution)
        required, least = comfy.sampler_helpers.estimate_memory(self._patcher, noise, guider.conds)
        view = self._vae.memory_required(resolution)
        self._memory = required + views * view, least + view
        self._load()
        self._vae.fit(views, resolution, free_memory(self._patcher, vae.device) - least)

    def _load(self) -> None:
        load(self._loaded, *self._memory)

    def _ready(self) -> None:
        """Reload the models if a preview or another model has unloaded them, or patched their weights: models
        with different LoRAs on one checkpoint share its weights.
        """
        if self._model.current_patcher is self._patcher and are_loaded(self._loaded):
            return
        self._load()
        self._patcher.pre_run()

    def _let_gradients_pass(self) -> None:
        """Make the VAE copy differentiable again after the host has moved it to make room for another model
        or a ControlNet's hint.

        Offloaded weights are streamed through a shared buffer that is overwritten before backward(), so the
        VAE must be loaded completely. Weights moved in inference mode do not support autograd, so they are
        cloned.
        """
        network = self._vae.patcher.model
        if network.model_lowvram:
            load_whole(self._vae.patcher, self._memory[1])
        for weight in (*network.parameters(), *network.buffers()):
            if weight.is_inference():
                weight.data = weight.data.clone()

    def release(self) -> None:
        """Drop the copy of the VAE; also called after an error."""
        self._vae.release()
        self._loaded.clear()  # an error's traceback may outlive this
        del self._model
        comfy.model_management.cleanup_models()
        comfy.model_management.soft_empty_cache()

    def encode(self, images: Tensor) -> Tensor:
        with memory_errors():
            self._ready()
            self._let_gradients_pass()
            return self._from_host(
                self._latents.process_in(self._to_host(self._vae.encode(images).to(self._device)))
            )

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(self._from_host(self._latents.process_out(self._to_host(latents))))

    def _to_host(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> the host's latents: the same, or (B, C, 1, h, w) for ONE_FRAME models."""
        return latents if self._latents.latent_dimensions == 2 else latents.unsqueeze(2)

    def _from_host(self, latents: Tensor) -> Tensor:
        """The inverse of `_to_host`."""
        return latents if self._latents.latent_dimensions == 2 else latents.squeeze(2)

    def denoise(self, z: Tensor, sigma: float, conds: list[HostCond]) -> list[Tensor]:
        check_interrupt()
        parts = [parts_of(cond) for cond in conds]
        queried = [part for some in parts for part in some]
        self.evaluations += len(z) * sum(len(part) for part in queried)
        roles = [int(any(part is other for other in self._without_prompt)) for part in queried]
        with memory_errors():
            self._ready()
            with torch.inference_mode():  # as in the host's samplers; patches expect it
                answers = iter(self._answers(queried, roles, *self._levels.to_host(self._to_host(z), sigma)))
            close_allocation_graphs()
        return [
            self._from_host(mean_of(cond, [next(answers) for _ in some])) for cond, some in zip(conds, parts)
        ]

    def _answers(self, queried: list[HostCond], roles: list[int], x: Tensor, levels: Tensor) -> list[Tensor]:
        """z0 predictions, in the host's form, for the conditionings `queried` with their `roles` (see
        `with_roles`).

        Evaluates all conditionings in one call; only the inversion prompt runs without model-patch
        ControlNets (see `controlnet.apply_controls`), which takes a second call.
        """
        options = self._options_at(levels)
        answers = {}
        unpatched = [options is self._options or part is self._inverse for part in queried]
        for own, is_unpatched in ((self._options, True), (options, False)):
            indices = [i for i, flag in enumerate(unpatched) if flag == is_unpatched]
            if indices:
                with_own_roles = with_roles(own, [roles[i] for i in indices])
                found = comfy.samplers.calc_cond_batch(
                    self._model, [queried[i] for i in indices], x, levels, with_own_roles
                )
                answers.update(zip(indices, found))
        return [answers[i] for i in range(len(queried))]

    def _options_at(self, levels: Tensor) -> dict:
        """The model options, with the patches of the ControlNets that are active at the host's `levels`."""
        held = [each for each in self._patches if each.holds_at(float(levels[0]))]
        return add_patches(self._options, held) if held else self._options

    def set_control_images(self, hints: list[Tensor]) -> None:
        for nets, hint in zip(self._shown, hints, strict=True):
            controlnet.set_hint(nets, hint)
        if self._patches:
            self._load()  # encoding the hints may have unloaded models, in part or completely

    def save_memory(self) -> None:
        self._vae.go_in_blocks()

    def sigma(self, t: float) -> float:
        return self._levels.sigma(t)

    def blend(self, conds: list[HostCond], weights: Tensor) -> HostCond:
        return blend(conds, weights.to(self._device), self._latents.latent_dimensions)

    def guide(self, z: Tensor, sigma: float, conds: list[HostCond], e: list[Tensor], cfg: float) -> Tensor:
        """Classifier-free guidance as in the host's sampler: patches of the model (Rescale CFG, Mahiro, PAG)
        may change how the two predictions are combined.

        Model evaluations by these patches are not counted in `evaluations`.
        """
        if not self._changes_cfg():
            return super().guide(z, sigma, conds, e, cfg)
        with memory_errors(), torch.inference_mode():
            x, levels = self._levels.to_host(self._to_host(z), sigma)
            answers = [self._to_host(z - sigma * noise) for noise in e]
            z0 = self._from_host(
                apply_cfg(self._model, conds, x, levels, answers, cfg, self._options_at(levels))
            )
        return (z - z0.clone()) / sigma

    def needs_negative(self, cfg: float) -> bool:
        """See Prior. Patches that combine the two predictions may use it at 1 too."""
        asked = self._changes_cfg() or self._options.get("disable_cfg1_optimization", False)
        return super().needs_negative(cfg) or asked

    def _changes_cfg(self) -> bool:
        """Whether patches of the model combine the two predictions."""
        return any(self._options.get(name) for name in CFG_PATCHES)


def with_roles(options: dict, roles: list[int]) -> dict:
    """Model options that tell patches the role of each evaluated conditioning: 0 = with the positive prompt,
    1 = without it (negative and inversion prompts).

    The host sets `cond_or_uncond` to the index of the conditioning, 0 for the positive and 1 for the negative
    prompt; an IP-Adapter, for example, uses it to decide whether to apply its image. Here there may be more
    than two conditionings, or only the inversion prompt.
    """
    wrapped = options.get("model_function_wrapper")

    def call_model(apply_model: Callable, arguments: dict) -> Tensor:
        own_roles = [roles[place] for place in arguments["cond_or_uncond"]]
        arguments["c"]["transformer_options"]["cond_or_uncond"] = own_roles
        if wrapped:
            return wrapped(apply_model, {**arguments, "cond_or_uncond": own_roles})
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    return {**options, "model_function_wrapper": call_model}


def apply_cfg(
    model: Any, conds: list[HostCond], x: Tensor, levels: Tensor, z0: list[Tensor], cfg: float, options: dict
) -> Tensor:
    """The part of the host's `sampling_function` after the model evaluation: combines the z0 predictions for
    the positive and the negative prompt with `cfg`.

    Latents `x` and `z0` are in the host's form, (B, C, ...); `levels` (B,) are its noise levels.
    """
    for patch in options.get("sampler_pre_cfg_function", []):
        z0 = patch(
            {
                "conds": conds,
                "conds_out": z0,
                "cond_scale": cfg,
                "timestep": levels,
                "input": x,
                "sigma": levels,
                "model": model,
                "model_options": options,
            }
        )
    y, negative = conds
    return comfy.samplers.cfg_function(
        model, *z0, cfg, x, levels, model_options=options, cond=y, uncond=negative
    )
