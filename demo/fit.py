"""The training loop of both networks: AdamW, cosine decay over a budget of minutes, EMA, resumable."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lucid_core.io.atomic import atomic_path


@dataclass(frozen=True)
class Recipe:
    minutes: float  # training time of all runs together; schedules depend on the fraction that is spent
    lr: float
    warmup: int  # steps
    hold: float  # fraction of the budget before the learning rate begins to decay
    final: float  # learning rate at the end, as a fraction of `lr`
    ema: float  # highest decay of the averaged weights
    weight_decay: float

    def lr_at(self, step: int, progress: float) -> float:
        falling = max(0.0, (progress - self.hold) / (1 - self.hold))
        cosine = 0.5 * (1 + math.cos(math.pi * min(falling, 1.0)))
        return self.lr * min(1.0, (step + 1) / self.warmup) * (self.final + (1 - self.final) * cosine)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where it is faster than float32: not on CPUs without AVX-512, which emulate it."""
    slow = device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=not slow)


Loss = Callable[
    [nn.Module, torch.Generator, float], Tensor
]  # (model, generator, progress in [0, 1)) -> scalar


def fit(
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    path: Path,
    *,
    seed: int = 0,
    save_every_s: float = 180.0,
    clock: Callable[[], float] = time.monotonic,
    report: Callable[[nn.Module, int], None] = lambda ema, step: None,
) -> nn.Module:
    """Train `model` and return a copy with averaged weights (EMA). Resumes from the state in `path`, which is
    saved every `save_every_s` seconds.

    clock: returns seconds; only differences count. report: called after every save with the averaged model
    and the step.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))
    ema = copy.deepcopy(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    owners = {"model": model, "ema": ema, "optimizer": optimizer}
    step, spent = _load(path, owners, generator)

    budget, last, saved_at = recipe.minutes * 60, clock(), spent
    while spent < budget:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step, spent / budget)
        value = loss(model, generator, spent / budget)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(recipe.ema, (step + 1) / (step + 12))  # a shorter average at the start
        torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
        step += 1

        now = clock()
        spent, last = spent + now - last, now
        if spent >= budget or spent - saved_at >= save_every_s:
            _save(path, owners, generator, step, spent)
            report(ema, step)
            saved_at, last = spent, clock()  # the time of saving and reporting does not count
    return ema


def _save(path: Path, owners: dict, generator: torch.Generator, step: int, spent: float) -> None:
    state = {name: owner.state_dict() for name, owner in owners.items()}
    state |= {"generator": generator.get_state(), "step": step, "spent": spent}
    with atomic_path(path) as part:
        torch.save(state, part)


def _load(path: Path, owners: dict, generator: torch.Generator) -> tuple[int, float]:
    """Load the state in `path`, if it exists, into all owners; returns (step, seconds spent)."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, owner in owners.items():
        owner.load_state_dict(state[name])
    generator.set_state(state["generator"])
    return state["step"], state["spent"]
