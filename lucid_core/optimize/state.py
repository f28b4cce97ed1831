"""The state of a run: all that changes from step to step, and so all that a checkpoint stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import UnfinishedStep
from .checkpoint import Checkpoint
from .replay import Replay
from .representation import Representation

OF_RUN = ("params", "adam", "replay", "generator", "rest")  # groups of tensors in a checkpoint


class Counted(Protocol):
    """What counts its model evaluations."""

    @property
    def evaluations(self) -> int: ...


class Run:
    """A representation, image targets, random generator and counters.

    All describe the state after `step` steps. `at`: schedule step; equals `step`, or is larger with a time
    limit, which skips schedule steps.
    """

    def __init__(self, representation: Representation[Any], seed: int) -> None:
        self.representation = representation
        self.params, self.optimizers = representation.params, representation.optimizers
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.at, self.evaluations, self.seconds = 0, 0, 0, 0.0
        self.losses: dict[str, float] = {}  # of the last step; see Step
        self.replay: Replay | None = None  # image targets, if the guidance generates them
        # decodes the last x0 prediction of the first view (H, W, 3)
        self.x0_preview: Callable[[], Tensor] | None = None
        self._begun, self._drawn, self._whole = time.monotonic(), self.generator.get_state(), True
        self._fitted: Replay | None = None  # the replay buffer after the last finished step

    @property
    def device(self) -> torch.device:
        return self.representation.device

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the state to that of `checkpoint`; parameters stay on their device."""
        device = self.device

        def own(x: Tensor) -> Tensor:
            return x.to(device, copy=True)

        for name, value in checkpoint.group("params").items():
            param = self.params[name] = Parameter(own(value), self.params[name].requires_grad)
            if name in self.optimizers:
                optimizer = self.optimizers[name]
                optimizer.param_groups[0]["params"][0] = param
                moments = checkpoint.group(f"adam.{name}")
                optimizer.state[param] = {
                    key: x.clone() if key == "step" else own(x) for key, x in moments.items()
                }
        others = checkpoint.tensors.items()
        state = {name: own(value) for name, value in others if name.split(".")[0] not in OF_RUN}
        self.representation.restore_state(state)
        kept: dict[str, Any] = {name: own(value) for name, value in checkpoint.group("replay").items()}
        if kept:
            self.replay = self._fitted = Replay(rounds=int(kept.pop("rounds")), **kept)
        self.generator.set_state(checkpoint.tensors["generator"].clone())
        self.step, self.at = checkpoint.step, checkpoint.at
        self.losses, self.evaluations = checkpoint.losses, checkpoint.evaluations
        self._begun, self._drawn = time.monotonic() - checkpoint.seconds, self.generator.get_state()
        self.seconds = checkpoint.seconds

    def forget_gradients(self) -> None:
        """Reset Adam's moments and the densification statistics, for a loss of another gradient scale."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        self.representation.forget_gradients()

    @contextmanager
    def next_step(self, at: int, source: Counted) -> Iterator[None]:
        """The step to schedule step `at`: counts it and the evaluations of `source` when it is finished.

        If it fails before `begin_update`, the state after the last finished step is restored.
        """
        evaluations = source.evaluations
        try:
            yield
        except BaseException:
            if self._whole:
                self._undo()
            raise
        self.step, self.at = self.step + 1, at
        self.evaluations += source.evaluations - evaluations
        self.seconds = time.monotonic() - self._begun
        self._drawn, self._fitted, self._whole = self.generator.get_state(), self.replay, True

    @property
    def is_whole(self) -> bool:
        """Whether the parameters are those of a finished step, not partially updated."""
        return self._whole

    def begin_update(self) -> None:
        """Mark the parameters as partially updated, until the step ends."""
        self._whole = False

    def _undo(self) -> None:
        self.generator.set_state(self._drawn)
        self.replay = self._fitted
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def checkpoint(self) -> Checkpoint:
        """A copy on the CPU of the state after the last finished step; callable during a model evaluation.

        Raises UnfinishedStep during an update of the parameters.
        """
        if not self._whole:
            raise UnfinishedStep(self.step + 1)
        tensors: dict[str, Tensor] = {"generator": self._drawn}
        tensors |= {f"params.{name}": param for name, param in self.params.items()}
        for name, optimizer in self.optimizers.items():
            moments = optimizer.state.get(self.params[name], {})
            tensors |= {f"adam.{name}.{key}": value for key, value in moments.items()}
        tensors |= self.representation.state()
        if self._fitted:
            tensors |= {f"replay.{name}": value for name, value in self._fitted.tensors().items()}
            tensors["replay.rounds"] = torch.tensor(self._fitted.rounds)
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        return Checkpoint(self.step, self.at, self.evaluations, self.seconds, self.losses, tensors)
