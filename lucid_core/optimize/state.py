"""The state of a run: all that changes from step to step, and so all that a checkpoint stores."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Adam

from ..splats import Splats, parameters
from .checkpoint import Checkpoint
from .densify import Densifier, Densify
from .replay import Replay


class Run:
    """Parameters, optimisers, densification state, image targets, random generator and counters.

    All describe the state after `step` steps. `at`: schedule step; equals `step`, or is larger with a time
    limit, which skips schedule steps.
    """

    def __init__(
        self, splats: Splats, densify: Densify, steps: int, adam_betas: tuple[float, float], seed: int
    ) -> None:
        self.params = parameters(splats)
        self.optimizers = {
            name: Adam([param], lr=1.0, betas=adam_betas, eps=1e-15) for name, param in self.params.items()
        }
        self.densifier = Densifier(densify, steps)
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.at, self.loss, self.evaluations, self.seconds = 0, 0, 0.0, 0, 0.0
        self.replay: Replay | None = None  # image targets, if the guidance generates them
        # decodes the last x0 preview of the first view (H, W, 3)
        self.wanted: Callable[[], Tensor] | None = None
        self._begun, self._drawn, self._whole = time.monotonic(), self.generator.get_state(), True
        self._fitted = self.replay  # the replay buffer after the last finished step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the state to that of `checkpoint`; parameters stay on their device."""
        device = self.params["means"].device
        own = lambda x: x.to(device, copy=True)
        for name, value in checkpoint.group("params").items():
            param, optimizer = torch.nn.Parameter(own(value)), self.optimizers[name]
            self.params[name] = optimizer.param_groups[0]["params"][0] = param
            moments = checkpoint.group(f"adam.{name}")
            optimizer.state[param] = {
                key: x.clone() if key == "step" else own(x) for key, x in moments.items()
            }
        self.densifier.state.update({name: own(value) for name, value in checkpoint.group("densify").items()})
        kept = {name: own(value) for name, value in checkpoint.group("replay").items()}
        if kept:
            self.replay = self._fitted = Replay(asked=int(kept.pop("asked")), **kept)
        self.generator.set_state(checkpoint.tensors["generator"].clone())
        self.step, self.at = checkpoint.step, checkpoint.at
        self.loss, self.evaluations = checkpoint.loss, checkpoint.evaluations
        self._begun, self._drawn = time.monotonic() - checkpoint.seconds, self.generator.get_state()
        self.seconds = checkpoint.seconds

    def forget_gradients(self) -> None:
        """Reset Adam's moments and the densification statistics, for a loss of another gradient scale."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        self.densifier.forget_gradients()

    def undo(self) -> None:
        """Restore the state after the last finished step; only valid before `begin_update`."""
        self.generator.set_state(self._drawn)
        self.replay = self._fitted
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def begin_update(self) -> None:
        """Mark the parameters as partially updated, until `finish`."""
        self._whole = False

    def finish(self, at: int, loss: float, evaluations: int) -> None:
        """Mark the step as finished; `evaluations`: model evaluations of this step alone."""
        self.step += 1
        self.at = at
        self.loss = loss
        self.evaluations += evaluations
        self.seconds = time.monotonic() - self._begun
        self._drawn = self.generator.get_state()
        self._whole = True
        self._fitted = self.replay

    def checkpoint(self) -> Checkpoint:
        """A copy on the CPU of the state after the last finished step; callable during a model evaluation.

        Raises RuntimeError during an update of the parameters.
        """
        if not self._whole:
            raise RuntimeError(f"step {self.step + 1} was left half made")
        tensors: dict[str, Tensor] = {"generator": self._drawn}
        for name, param in self.params.items():
            tensors[f"params.{name}"] = param
            tensors |= {
                f"adam.{name}.{key}": value
                for key, value in self.optimizers[name].state.get(param, {}).items()
            }
        gathered = self.densifier.state.items()
        tensors |= {f"densify.{name}": value for name, value in gathered if isinstance(value, Tensor)}
        if self._fitted:
            tensors |= {f"replay.{name}": value for name, value in self._fitted.tensors().items()}
            tensors["replay.asked"] = torch.tensor(self._fitted.asked)
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        return Checkpoint(self.step, self.at, self.loss, self.evaluations, self.seconds, tensors)
