"""MODEL, VAE and CONDITIONING of the host as lucid_core's Prior and Prompts."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, TypeVar

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.controlnet import ControlBase
from comfy.hooks import HookGroup
from torch import Tensor
from torch.nn import Parameter

from ...lucid_core.checkpoint import digest
from ...lucid_core.prior import Prior
from ...lucid_core.views import VIEWS, Prompts
from ..types import Conditioning, Control, LucidGuidanceData
from . import control
from .conds import HostCond, blend, mean_of, parts_of
from .families import pixel_limit_of, shape_of
from .memory import are_loaded, close_allocation_graphs, free_memory, load, load_whole, memory_errors
from .noise import NoiseLevels
from .page import check_interrupt
from .patches import PatchControl, added, is_patch, warn_of_fixed_patches
from .vae import GradientVAE

T = TypeVar("T")
CFG_PATCHES = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
WITHOUT_PROMPT = ("negative", "inverse")
HOOKS = ("weights", "_strength_model", "_strength_clip")  # what tells two LoRA hooks apart
EMPTY_CELL = CellType()  # of a variable that has no value yet
DEEPEST = 12  # of what is nested in a model's options and in a conditioning
IDENTITY_WEIGHTS, IDENTITY_VALUES = 32, 4096  # how many weights, and values of each, tell two models apart


def require_clip(clip: Any) -> None:
    if clip is None:
        raise ValueError("clip is missing: this checkpoint holds no text encoder; load one with CLIP Loader")


def encode_text(clip: Any, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def identity(guidance: LucidGuidanceData) -> dict[str, str]:
    """What a run depends on beside its settings: the prompt, and hashes of the encoded prompt, the model and the VAE.

    What the model's patches hold stands apart, as `patch_values` has it.
    """
    prompt = guidance.prompt
    return {
        "prompt": prompt.text,
        "conditioning": _fingerprint([prompt.views, prompt.negative, prompt.inverse, dataclasses.asdict(prompt.blend)]),
        "model": _fingerprint_of_model(guidance.model),
        "vae": _fingerprint_of_model(guidance.vae.patcher),
        **({"controls": _fingerprint([_parts_of(each) for each in prompt.controls])} if prompt.controls else {}),
        **patch_values(guidance),
    }


def patch_values(guidance: LucidGuidanceData) -> dict[str, str]:
    """Hashes of what the functions that patch the model hold in their closures: settings of their nodes, and state."""
    held: dict[str, str] = {}
    for patcher in (guidance.model, guidance.vae.patcher):
        _fingerprint([patcher.object_patches, patcher.model_options], held)
    return held


def _parts_of(one: Control) -> list:
    guide = one.hint.guide
    net = _fingerprint_of_model(one.net) if is_patch(one.net) else one.net
    return [one.hint.kind, guide and vars(guide), net, one.strength, one.start, one.end]


def _fingerprint_of_model(patcher: Any) -> str:
    """Of its weights' names and shapes, the values of a few of them, and of what patches all of them."""
    weights = patcher.get_key_patches()  # [(weight before patches, how to read it), patch, ...] by key
    few = sorted(weights)[:: max(len(weights) // IDENTITY_WEIGHTS, 1)]
    shapes = [(name, tuple(entries[0][0].shape)) for name, entries in sorted(weights.items())]
    values = [weights[name][0][0] for name in few]
    return _fingerprint([shapes, values, sorted(patcher.patches.items()), patcher.object_patches, patcher.model_options])


def _fingerprint(value: Any, held: dict[str, str] | None = None, depth: int = 0) -> str:
    """12 hex digits of nested containers of tensors, numbers, text, patches; of other objects their kind and weights count.

    Of functions the name and defaults count. The hashes of what is in their closures go into `held`, by name.
    """
    held = {} if held is None else held
    inner = lambda item: _fingerprint(item, held, depth + 1)
    if depth == DEEPEST:  # a patch that holds itself
        parts = [type(value).__name__]
    elif type(value) in (Tensor, Parameter):  # the values of others (quantised ones) are theirs to read
        flat = value.detach().flatten()
        return digest(flat[:: max(len(flat) // IDENTITY_VALUES, 1)])
    elif isinstance(value, dict):
        parts = [f"{key}={inner(item)}" for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [inner(item) for item in value]
    elif isinstance(value, (str, int, float, bool, type(None))):
        parts = [repr(value)]
    elif isinstance(value, ControlBase):
        parts = [inner(control.parts_of(value))]
    elif isinstance(value, FunctionType):
        parts = [value.__qualname__, inner(value.__defaults__), inner(value.__kwdefaults__)]
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            if cell != EMPTY_CELL:
                name = f"patch {value.__qualname__}: {name}"
                held[f"{name} {sum(key.startswith(name) for key in held) + 1}"] = inner(cell.cell_contents)
    elif isinstance(value, torch.nn.Module):  # such as a model_sampling with another shift
        numbers = {name: held for name, held in vars(value).items() if isinstance(held, (int, float))}
        parts = [inner([[kind.__qualname__ for kind in type(value).__mro__], value.state_dict(), numbers])]
    elif isinstance(value, HookGroup):
        parts = [type(hook).__name__ + inner([vars(hook).get(name) for name in HOOKS]) for hook in value.hooks]
    else:
        parts = [type(value).__name__, inner(getattr(value, "weights", None))]
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
    ratio = latents.spacial_downscale_ratio
    if resolution % ratio:
        raise ValueError(f"resolution is {resolution}; it must be a multiple of {ratio} with this model")
    noise = torch.zeros(shape_of(latents, views, resolution))
    guider = comfy.samplers.CFGGuider(guidance.model)
    prompt = guidance.prompt
    warn_of_fixed_patches(guidance.model)
    conds, shown = control.controlled(prompt.conditionings(), prompt.controls, guidance.model, guidance.vae)
    guider.inner_set_conds(conds)

    def inside(guider: comfy.samplers.CFGGuider, model_options: dict) -> T:
        conds, hints = guider.conds, tuple(each.hint for each in prompt.controls)
        prompts = Prompts(tuple(conds[view] for view in VIEWS), conds["negative"], conds["inverse"], prompt.blend, hints)
        with torch.inference_mode(False), torch.enable_grad():
            prior = HostPrior(guider, model_options, guidance.vae, views, resolution, shown)
            try:
                return body(prior, prompts)
            finally:
                prior.release()

    sampler = _Inside(inside)
    with torch.inference_mode():  # as the host's nodes have it; not so inside another guidance's
        guider.sample(noise, noise, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return sampler.result


class HostPrior(Prior):
    """lucid_core's Prior over a MODEL and VAE of the host. Lives inside `with_prior`."""

    def __init__(
        self, guider: Any, model_options: dict, vae: Any, views: int, resolution: int, shown: list[control.Shown]
    ) -> None:  # fmt: skip
        self.evaluations, self._shown = 0, shown
        self._model, self._options = guider.inner_model, model_options
        self._patcher = guider.model_patcher
        self._device = self._patcher.load_device
        self._levels = NoiseLevels(self._patcher.get_model_object("model_sampling"))
        self._without_prompt = [guider.conds[name] for name in WITHOUT_PROMPT]
        self.pixel_limit = pixel_limit_of(self._model)
        self._inverse = guider.conds["inverse"]
        self._patches = [each for nets in shown for each in nets if isinstance(each, PatchControl)]
        self._vae = GradientVAE(vae)
        nets = [each.net for each in self._patches]
        self._loaded = [self._patcher, *guider.loaded_models, self._vae.patcher, *nets]  # with its ControlNets
        self._latents = copy.deepcopy(self._model.latent_format)  # its tensors were made in inference mode
        noise = shape_of(self._latents, views, resolution)
        required, least = comfy.sampler_helpers.estimate_memory(self._patcher, noise, guider.conds)
        view = self._vae.memory_required(resolution)
        self._memory = required + views * view, least + view
        self._load()
        self._vae.fit(views, resolution, free_memory(self._patcher, vae.device) - least)

    def _load(self) -> None:
        load(self._loaded, *self._memory)

    def _ready(self) -> None:
        """Load again what a preview or another model has driven out, or patched: LoRAs on one checkpoint share its weights."""
        if self._model.current_patcher is self._patcher and are_loaded(self._loaded):
            return
        self._load()
        self._patcher.pre_run()

    def _let_gradients_pass(self) -> None:
        """Undo what the host does to the copy of the VAE to make room for another model, or for a ControlNet's hint.

        A part of it that is not on the device comes through a buffer, whose next content takes the place of what the way back
        needs. What was moved in inference mode no gradient passes.
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
            return self._ours(self._latents.process_in(self._hosts(self._vae.encode(images).to(self._device))))

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(self._ours(self._latents.process_out(self._hosts(latents))))

    def _hosts(self, latents: Tensor) -> Tensor:
        """(B, C, h, w), or (B, C, 1, h, w) for a model to which an image is a video of one frame."""
        return latents if self._latents.latent_dimensions == 2 else latents.unsqueeze(2)

    def _ours(self, latents: Tensor) -> Tensor:
        return latents if self._latents.latent_dimensions == 2 else latents.squeeze(2)

    def denoise(self, z: Tensor, sigma: float, conds: list[HostCond]) -> list[Tensor]:
        check_interrupt()
        parts = [parts_of(cond) for cond in conds]
        asked = [part for some in parts for part in some]
        self.evaluations += len(z) * sum(len(part) for part in asked)
        roles = [int(any(part is other for other in self._without_prompt)) for part in asked]
        with memory_errors():
            self._ready()
            with torch.inference_mode():  # as under the host's samplers, where every patch expects to run
                answers = iter(self._answers(asked, roles, *self._levels.to_host(self._hosts(z), sigma)))
            close_allocation_graphs()
        return [self._ours(mean_of(cond, [next(answers) for _ in some])) for cond, some in zip(conds, parts)]

    def _answers(self, asked: list[HostCond], roles: list[int], x: Tensor, levels: Tensor) -> list[Tensor]:
        """All in one call, but that what patches the model for a ControlNet has no place in the inversion: see `controlled`."""
        options, answers = self._options_at(levels), {}
        free = [options is self._options or part is self._inverse for part in asked]
        for own, of in ((self._options, True), (options, False)):
            places = [place for place, is_free in enumerate(free) if is_free == of]
            if places:
                told = with_roles(own, [roles[place] for place in places])
                found = comfy.samplers.calc_cond_batch(self._model, [asked[place] for place in places], x, levels, told)
                answers.update(zip(places, found))
        return [answers[place] for place in range(len(asked))]

    def _options_at(self, levels: Tensor) -> dict:
        """The model's, with what patches it at the host's noise `levels`."""
        held = [each for each in self._patches if each.holds_at(float(levels[0]))]
        return added(self._options, held) if held else self._options

    def show(self, hints: list[Tensor]) -> None:
        for nets, hint in zip(self._shown, hints, strict=True):
            control.show(nets, hint)
        if self._patches:
            self._load()  # what the VAE of their hints has driven out, in part or whole

    def save_memory(self) -> None:
        self._vae.go_in_blocks()

    def sigma(self, t: float) -> float:
        return self._levels.sigma(t)

    def blend(self, conds: list[HostCond], weights: Tensor) -> HostCond:
        return blend(conds, weights.to(self._device), self._latents.latent_dimensions)

    def guide(self, z: Tensor, sigma: float, conds: list[HostCond], e: list[Tensor], cfg: float) -> Tensor:
        """As the host's sampler would: patches of the model (Rescale CFG, Mahiro, PAG) may combine the two in their own way.

        What they ask the model beside is not counted.
        """
        if not any(self._options.get(name) for name in CFG_PATCHES):
            return super().guide(z, sigma, conds, e, cfg)
        with memory_errors(), torch.inference_mode():
            x, levels = self._levels.to_host(self._hosts(z), sigma)
            answers = [self._hosts(z - sigma * noise) for noise in e]
            z0 = self._ours(guided(self._model, conds, x, levels, answers, cfg, self._options_at(levels)))
        return (z - z0.clone()) / sigma


def with_roles(options: dict, roles: list[int]) -> dict:
    """Model options under which patches see which of the conditionings asked about are without the prompt (1; with it: 0).

    The host numbers them by their place, 0 the prompt and 1 the negative, which is how an IP-Adapter knows whether its image
    counts. Here there may be more than two, or the inversion's alone.
    """
    wrapped = options.get("model_function_wrapper")

    def ask(apply_model: Callable, arguments: dict) -> Tensor:
        told = [roles[place] for place in arguments["cond_or_uncond"]]
        arguments["c"]["transformer_options"]["cond_or_uncond"] = told
        if wrapped:
            return wrapped(apply_model, {**arguments, "cond_or_uncond": told})
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    return {**options, "model_function_wrapper": ask}


def guided(model: Any, conds: list[HostCond], x: Tensor, levels: Tensor, z0: list[Tensor], cfg: float, options: dict) -> Tensor:
    """The host's sampling_function after the model was asked: z0 of the prompt and of the negative one, combined by `cfg`."""
    for patch in options.get("sampler_pre_cfg_function", []):
        z0 = patch({"conds": conds, "conds_out": z0, "cond_scale": cfg, "timestep": levels, "input": x, "sigma": levels,
                    "model": model, "model_options": options})  # fmt: skip
    y, negative = conds
    return comfy.samplers.cfg_function(model, *z0, cfg, x, levels, model_options=options, cond=y, uncond=negative)
