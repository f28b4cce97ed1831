from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import IO

from ..lucid_core.optimize.config import PRESETS, DreamConfig
from ..lucid_core.settings import bounds_of
from .inputs import CATEGORY, chosen_of, errors_of, inputs_of, settings_of
from .types import LucidOptimizerType

OF_LUCID_DREAM = ("steps", "views", "resolution")  # settings that are widgets of Lucid Dream
ADVANCED_OF_LUCID_DREAM = ("max_minutes", "strength", "freeze_geometry", "freeze_color")
GROWTH = "densify_"


class LucidOptimizer(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidOptimizer",
            display_name="Lucid Optimizer",
            category=CATEGORY,
            search_aliases=[
                "learning rate",
                "densification",
                "mcmc",
                "spherical harmonics",
                "regulariser",
                "augmentation",
            ],
            description="Sets the learning rates, densification, regularisers and augmentations of Lucid "
            "Dream.",
            inputs=[
                IO.DynamicCombo.Input(
                    "preset",
                    options=[
                        IO.DynamicCombo.Option(name, inputs_of_all(config))
                        for name, config in PRESETS.items()
                    ],
                    tooltip="Sets all values below, which can then be edited. official: values of the "
                    "paper. cpu: fewer steps with higher learning rates.",
                )
            ],
            outputs=[
                LucidOptimizerType.Output(
                    display_name="optimizer",
                    tooltip="Settings for Lucid Dream; they replace those of its preset.",
                )
            ],
        )

    @classmethod
    def execute(cls, preset) -> IO.NodeOutput:
        with errors_of(cls):
            return IO.NodeOutput(config_of(preset))


def inputs_of_all(config: DreamConfig) -> list[IO.Input]:
    """Widgets for all settings of a preset except those on Lucid Dream itself; advanced ones last."""
    own = [name for name in bounds_of(config) if name not in OF_LUCID_DREAM + ADVANCED_OF_LUCID_DREAM]
    widgets = [*inputs_of(config, *own), *inputs_of(config.densify, prefix=GROWTH)]
    return sorted(widgets, key=lambda widget: bool(widget.advanced))


def config_of(chosen: dict[str, Any] | None) -> DreamConfig:
    """The preset with the widget values. Raises ValueError, with the widget's name, if one is invalid."""
    chosen = chosen_of("preset", PRESETS, chosen)
    base = PRESETS[chosen["preset"]]
    try:
        densify = dataclasses.replace(base.densify, **settings_of(base.densify, chosen, GROWTH))
    except ValueError as error:
        raise ValueError(f"{GROWTH}{error}") from error
    return dataclasses.replace(base, densify=densify, **settings_of(base, chosen))
