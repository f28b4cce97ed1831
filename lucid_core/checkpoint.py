"""Checkpoints of a run: one safetensors file, written whole or not at all, with what is not a tensor as JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .extras import load
from .gaussians import Splats, activate

FORMAT = 1  # of the file; a newer one is refused
HEADER = "lucid_checkpoint"
CHANGES = "changes in a run"  # the value of a setting that does
NUMBERS = ("step", "at", "loss", "evaluations", "seconds")
Settings = dict[str, Any]  # name -> what JSON can hold


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps; see Run.

    tensors, on the CPU: "params.means", "adam.means.exp_avg", "densify.grad2d", "generator" and so on.
    """

    step: int
    at: int
    loss: float
    evaluations: int
    seconds: float
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name`, without it."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}

    def splats(self) -> Splats:
        return activate(self.group("params"))


def write(path: str | os.PathLike, checkpoint: Checkpoint, settings: Settings) -> None:
    """Write, flush to the disk, then rename: after a crash at any moment the file is the old or the new one. Raises OSError."""
    safetensors = load("safetensors.torch", "safetensors")
    numbers = {name: getattr(checkpoint, name) for name in NUMBERS}
    header = json.dumps({"format": FORMAT, **numbers, "settings": settings})
    content = safetensors.save(checkpoint.tensors, {HEADER: header})
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name, too, must outlast a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | os.PathLike) -> tuple[Checkpoint, Settings]:
    """A checkpoint and the settings of its run. Raises ValueError where the file is damaged, foreign or too new."""
    safetensors = load("safetensors", "safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if header else {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({error}); take another one") from error
    if not header:
        raise ValueError(f"{path} is a safetensors file, but no checkpoint of Lucid Dream; take one that it wrote")
    try:
        header = json.loads(header)
        version = header["format"]
        if version > FORMAT:
            raise ValueError(f"{path} has format {version}, this version reads up to {FORMAT}; update Lucid ISM")
        numbers = {name: header[name] for name in NUMBERS}
        checkpoint, settings = Checkpoint(**numbers, tensors=tensors), header["settings"]
        checkpoint.splats(), tensors["generator"], settings.items()
    except (KeyError, TypeError, AttributeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; take another checkpoint") from error
    return checkpoint, settings


def settings_of(splats: Splats, seed: int, *configs: Any, **others: Any) -> Settings:
    """What the result of a run depends on: a hash of its start, the seed, the fields of the dataclasses `configs`, `others`."""
    found = {"start": digest(*vars(splats).values()), "seed": seed}
    for config in configs:
        found |= fields_of(config)
    return json.loads(json.dumps({**found, **others}))


def fields_of(config: Any) -> Settings:
    """The fields of a dataclass under its name: "ISM.cfg"."""
    return {f"{type(config).__name__}.{name}": value for name, value in _flat(dataclasses.asdict(config))}


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def digest(*tensors: Tensor) -> str:
    """12 hex digits that follow from the tensors' shapes and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]


def changing(settings: Settings, now: Settings) -> Settings:
    """`settings` of a run's begin. What is another `now` is marked: it changes in a run, so it is state and no setting."""
    return settings | {name: CHANGES for name, value in now.items() if name in settings and settings[name] != value}


def require_same(saved: Settings, now: Settings) -> None:
    """Raise ValueError that lists every setting in which two runs differ; what changes in a run has no value to compare."""
    alike = lambda name: saved.get(name) == now.get(name) or (saved.get(name) == CHANGES and name in now)
    names = [name for name in {**saved, **now} if not alike(name)]
    if names:
        listed = "; ".join(f"{name} was {saved.get(name)}, is {now.get(name)}" for name in names)
        raise ValueError(f"the checkpoint is of another run: {listed}. Set them as they were, or take only its splat")
