"""Short hashes of everything in the guidance that a run depends on. A checkpoint whose hashes differ is
refused.
"""

from __future__ import annotations

import hashlib
from types import CellType, FunctionType
from typing import Any

import torch
from comfy.controlnet import ControlBase
from comfy.hooks import HookGroup
from torch import Tensor
from torch.nn import Parameter

from ...lucid_core.optimize.checkpoint import Settings, digest, fields_of
from ..types import Control, LucidGuidanceData, LucidMixData
from . import controlnet
from .model_patches import is_patch

HOOKS = ("weights", "_strength_model", "_strength_clip")  # the attributes in which LoRA hooks differ
EMPTY_CELL = CellType()  # the closure cell of a variable without a value
DEEPEST = 12  # nesting depth at which hashing of model options and conditionings stops
IDENTITY_WEIGHTS = 32  # how many weights of a model are hashed (at most twice as many)
IDENTITY_VALUES = 4096  # how many values of a tensor are hashed (at most twice as many)


def depends_on(guidance: LucidGuidanceData | LucidMixData) -> Settings:
    """What a run depends on in its guidance: method, prompt, model and VAE, for both parts of a mix."""
    if not isinstance(guidance, LucidMixData):
        return fields_of(guidance.method) | identity(guidance)
    return fields_of(guidance.mix) | _named(depends_on(guidance.first), depends_on(guidance.second))


def held_by_patches(guidance: LucidGuidanceData | LucidMixData) -> Settings:
    """The entries of `depends_on` that the models' patches may change during a run."""
    if not isinstance(guidance, LucidMixData):
        return dict(patch_values(guidance))
    return _named(held_by_patches(guidance.first), held_by_patches(guidance.second))


def _named(first: Settings, second: Settings) -> Settings:
    parts = {"first": first, "second": second}
    return {f"{place}.{name}": value for place, part in parts.items() for name, value in part.items()}


def identity(guidance: LucidGuidanceData) -> dict[str, str]:
    """What a run depends on besides its settings: the prompt, and hashes of the encoded prompt, ControlNets,
    model and VAE.

    The state of the model's patches has separate entries, see `patch_values`.
    """
    prompt = guidance.prompt
    return {
        "prompt": prompt.text,
        "conditioning": _fingerprint(prompt.contents()),
        "model": _fingerprint_of_model(guidance.model),
        "vae": _fingerprint_of_model(guidance.vae.patcher),
        **(
            {"controls": _fingerprint([_parts_of(each) for each in prompt.controls])}
            if prompt.controls
            else {}
        ),
        **patch_values(guidance),
    }


def patch_values(guidance: LucidGuidanceData) -> dict[str, str]:
    """Hashes of the closure variables of the functions that patch the model and the VAE: settings of their
    nodes, and state.
    """
    held: dict[str, str] = {}
    for patcher in (guidance.model, guidance.vae.patcher):
        _fingerprint([patcher.object_patches, patcher.model_options], held)
    return held


def _parts_of(one: Control) -> list:
    guide = one.hint.guide
    net = _fingerprint_of_model(one.net) if is_patch(one.net) else one.net
    return [one.hint.kind, guide and vars(guide), net, one.strength, one.start, one.end]


def _fingerprint_of_model(patcher: Any) -> str:
    """Hash of the names and shapes of all weights, of the values of a few, and of all patches."""
    weights = patcher.get_key_patches()  # key -> [(unpatched weight, convert function), patch, ...]
    few = sorted(weights)[:: max(len(weights) // IDENTITY_WEIGHTS, 1)]
    shapes = [(name, tuple(entries[0][0].shape)) for name, entries in sorted(weights.items())]
    values = [weights[name][0][0] for name in few]
    return _fingerprint(
        [shapes, values, sorted(patcher.patches.items()), patcher.object_patches, patcher.model_options]
    )


def _fingerprint(value: Any, held: dict[str, str] | None = None, depth: int = 0) -> str:
    """Hash (12 hex digits) of nested containers of tensors, numbers, text and patches.

    For functions it covers name and defaults; hashes of their closure variables are added to `held`, by name.
    For other objects it covers their type and attribute `weights`.
    """
    held = {} if held is None else held
    inner = lambda item: _fingerprint(item, held, depth + 1)
    if depth == DEEPEST:  # such as a patch that refers to itself
        parts = [type(value).__name__]
    elif type(value) in (Tensor, Parameter):  # not subclasses (quantised tensors), which store other values
        flat = value.detach().flatten()
        return digest(flat[:: max(len(flat) // IDENTITY_VALUES, 1)])
    elif isinstance(value, dict):
        parts = [f"{key}={inner(item)}" for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [inner(item) for item in value]
    elif isinstance(value, (str, int, float, bool, type(None))):
        parts = [repr(value)]
    elif isinstance(value, ControlBase):
        parts = [inner(controlnet.parts_of(value))]
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
        parts = [
            type(hook).__name__ + inner([vars(hook).get(name) for name in HOOKS]) for hook in value.hooks
        ]
    else:
        parts = [type(value).__name__, inner(getattr(value, "weights", None))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
