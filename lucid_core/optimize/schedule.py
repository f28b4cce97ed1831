"""Learning rate schedule."""

from __future__ import annotations

from torch.optim import Adam

from .config import LearningRates, Task

# factor on the initial colour learning rate with locked geometry: colours may have to change completely
REPAINT = 10


def set_learning_rates(
    optimizers: dict[str, Adam], rates: LearningRates, task: Task, progress: float, multiplier: float = 1.0
) -> None:
    """Set exponentially decaying learning rates for `progress` in [0, 1].

    Higher SH bands use 1/20 of the initial colour rate (3DGS), constant, as in the official code, which
    decays the rate of the base colours alone. All rates are multiplied by `task.strength` and `multiplier`.
    """
    first, last = rates.lr_sh
    ranges = {
        "means": rates.lr_means,
        "quats": rates.lr_quats,
        "scales": rates.lr_scales,
        "opacities": rates.lr_opacities,
        "sh0": (REPAINT * first, last) if task.freeze_geometry else (first, last),
        "shN": (first / 20, first / 20),
    }
    for name, optimizer in optimizers.items():
        first, last = ranges[name]
        optimizer.param_groups[0]["lr"] = multiplier * task.strength * first * (last / first) ** progress
