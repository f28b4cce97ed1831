"""Checkpoints of a run: one safetensors file, written atomically; other values as JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BadFile, OtherRun
from ..field.grid import Field, field_of
from ..guidance.mixing import CONSTANT
from ..io.atomic import atomic_path
from ..optional import load
from ..splats import Splats, activate
from .config import DreamConfig

FORMAT = 2  # file format version; newer versions are rejected
HEADER = "lucid_checkpoint"
CHANGES = "changes in a run"  # stands for the value of a setting that is modified during the run
SPLAT, FIELD = KINDS = ("a splat", "a field")  # what a run may optimise
NUMBERS = ("step", "at", "evaluations", "seconds", "losses")
Settings = dict[str, Any]  # name -> JSON value


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` steps; see Run.

    losses: of the last step, by name; see Step. tensors (on the CPU): "params.means", "adam.means.exp_avg",
    "densify.grad2d", "generator" and so on.
    """

    step: int
    at: int
    evaluations: int
    seconds: float
    losses: dict[str, float]
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors whose key starts with `name` and a dot, by the rest of the key."""
        return {
            key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }

    @property
    def kind(self) -> str:
        """Which of KINDS the run optimises."""
        return FIELD if "field.extent" in self.tensors else SPLAT

    def splats(self) -> Splats:
        """The optimised Gaussians in activated form, on the CPU."""
        return activate(self.group("params"))

    def field(self) -> Field:
        """The optimised field, on the CPU."""
        return field_of(self.group("params"), float(self.tensors["field.extent"]))


def checkpoint_of_field(field: Field, step: int) -> Checkpoint:
    """A checkpoint that holds `field` alone, as the start of a new run."""
    tensors = {
        "params.density0": field.grid[:1],
        "params.color0": field.grid[1:],
        "field.extent": torch.tensor(field.extent, dtype=torch.float64),
        "generator": torch.Generator().get_state(),
    }
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    return Checkpoint(step, step, 0, 0.0, {}, tensors)


def write(path: str | os.PathLike[str], checkpoint: Checkpoint, settings: Settings) -> None:
    """Write the file atomically (write, fsync, rename): after a crash it is either the old or the new one.

    Raises OSError when writing fails, MissingPackage when safetensors is missing.
    """
    safetensors = load("safetensors.torch", "safetensors")
    numbers = {name: getattr(checkpoint, name) for name in NUMBERS}
    header = json.dumps({"format": FORMAT, **numbers, "settings": settings})
    content = safetensors.save(checkpoint.tensors, {HEADER: header})
    with atomic_path(path) as part:
        part.write_bytes(content)


def read(path: str | os.PathLike[str], kind: str = SPLAT) -> tuple[Checkpoint, Settings]:
    """Read a checkpoint of a run that optimises `kind`, and the settings of its run.

    Raises BadFile if the file is damaged, not a checkpoint, of the other kind, or of a newer format.
    """
    safetensors = load("safetensors", "safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if header else {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BadFile(path, f"it is damaged or no checkpoint ({error}); use another file") from error
    if not header:
        raise BadFile(
            path,
            "it is no checkpoint of Lucid Dream, Lucid Dream Field or Lucid Fit Views; use one of theirs",
        )
    try:
        header = json.loads(header)
        version = header["format"]
        if version > FORMAT:
            raise BadFile(
                path, f"it has format {version}, this version reads up to {FORMAT}; update Lucid ISM"
            )
        if version == 1:
            header, tensors = upgrade(header, tensors)
        numbers = {name: header[name] for name in NUMBERS}
        checkpoint, settings = Checkpoint(**numbers, tensors=tensors), header["settings"]
        if checkpoint.kind != kind:
            problem = f"it is a checkpoint of {checkpoint.kind}, but this run optimises {kind}"
            raise BadFile(path, f"{problem}; resume it in the node that wrote it")
        checkpoint.splats() if kind == SPLAT else checkpoint.field()
        tensors["generator"], settings.items()
    except (KeyError, TypeError, AttributeError, RuntimeError, json.JSONDecodeError) as error:
        raise BadFile(path, f"it is damaged: {error!r}; use another checkpoint") from error
    return checkpoint, settings


def settings_of(start: Splats | Field, seed: int, *configs: Any, **others: Any) -> Settings:
    """Everything that determines the result of a run, as JSON values.

    These are a hash of the start, the extent of a field, the seed, the fields of the dataclasses `configs`,
    and `others`.
    """
    tensors = [x for x in vars(start).values() if isinstance(x, Tensor)]
    found: Settings = {"start": digest(*tensors), "seed": seed}
    if isinstance(start, Field):
        found["extent"] = start.extent
    for config in configs:
        found |= fields_of(config)
    settings: Settings = json.loads(json.dumps({**found, **others}))
    return settings


def fields_of(config: Any) -> Settings:
    """The fields of a dataclass and of those within it, keys prefixed with the class name: "ISM.cfg"."""
    found: Settings = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = f"{type(config).__name__}.{field.name}"
        found |= fields_of(value) if dataclasses.is_dataclass(value) else {key: value}
    return found


def upgrade(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of format 1, in the form of format 2.

    In format 1 all settings of the optimiser were of one dataclass, and the loss had no parts.
    """
    renamed = {}
    for key in fields_of(DreamConfig()):
        group, name = key.split(".")
        renamed["DreamConfig." + (f"densify.{name}" if group == "Densify" else name)] = key
    settings = {renamed.get(key, key): value for key, value in header["settings"].items()}
    settings |= {f"{key}_last": CONSTANT for key in settings if key.endswith("Mix.share")}
    rounds = {"replay.asked": "replay.rounds"}
    return (
        {**header, "losses": {}, "settings": settings},
        {rounds.get(name, name): value for name, value in tensors.items()},
    )


def digest(*tensors: Tensor) -> str:
    """Hash of the tensors' dtypes, shapes and bytes: 12 hex digits of SHA-256."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]


def changing(settings: Settings, now: Settings) -> Settings:
    """The initial `settings` of a run, with CHANGES as the value of each one that differs from `now`.

    A value that changes during a run is state, so it must not be compared on resume.
    """
    return settings | {
        name: CHANGES for name, value in now.items() if name in settings and settings[name] != value
    }


def require_same(saved: Settings, now: Settings) -> None:
    """Raise OtherRun that lists all settings in which two runs differ.

    Settings marked CHANGES are compared by name only.
    """
    differences = {
        name: (saved.get(name), now.get(name))
        for name in {**saved, **now}
        if saved.get(name) != now.get(name) and not (saved.get(name) == CHANGES and name in now)
    }
    if differences:
        raise OtherRun(differences)
