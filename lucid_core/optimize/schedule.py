"""Learning rate schedule."""

from __future__ import annotations

from torch.optim import Adam

from .config import DreamConfig

# factor on the initial colour learning rate with locked geometry: colours may have to change completely
REPAINT = 10


def set_learning_rates(
    optimizers: dict[str, Adam], config: DreamConfig, progress: float, share: float = 1.0
) -> None:
    """Set exponentially decaying learning rates for `progress` in [0, 1].

    Higher SH bands use 1/20 of the initial colour rate (3DGS). All rates are multiplied by `config.strength`
    and `share`; locked parameters get 0.
    """
    sh0 = (REPAINT * config.lr_sh[0], config.lr_sh[1]) if config.freeze_geometry else config.lr_sh
    # constant, as in the official code, which only decays the rate of the base colours
    shN = (
        config.lr_sh[0] / 20,
        config.lr_sh[0] / 20,
    )
    ranges = {
        "means": config.lr_means,
        "quats": config.lr_quats,
        "scales": config.lr_scales,
        "opacities": config.lr_opacities,
        "sh0": sh0,
        "shN": shN,
    }
    for name, (first, last) in ranges.items():
        still = config.freeze_color if name.startswith("sh") else config.freeze_geometry
        optimizers[name].param_groups[0]["lr"] = (
            0.0 if still else share * config.strength * first * (last / first) ** progress
        )
