from __future__ import annotations

from typing import Any

from comfy_api.latest import IO

from ..lucid_core.optimize.config import PRESETS, OptimizerConfig
from .inputs import CATEGORY, chosen_of, errors_of, inputs_of, replace_from_widgets
from .types import LucidOptimizerType

PREFIXES = {"densify": "densify_"}  # of the widgets of a group of settings


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
                        IO.DynamicCombo.Option(name, inputs_of_all(config.optimizer))
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


def inputs_of_all(config: OptimizerConfig) -> list[IO.Input]:
    """Widgets for all settings of a preset; advanced ones last."""
    groups = vars(config).items()
    widgets = [widget for name, group in groups for widget in inputs_of(group, prefix=PREFIXES.get(name, ""))]
    return sorted(widgets, key=lambda widget: bool(widget.advanced))


def config_of(chosen: dict[str, Any] | None) -> OptimizerConfig:
    """The preset with the widget values. Raises BadSetting, with the widget's name, if one is invalid."""
    chosen = chosen_of("preset", PRESETS, chosen)
    groups = vars(PRESETS[chosen["preset"]].optimizer).items()
    return OptimizerConfig(
        **{name: replace_from_widgets(group, chosen, PREFIXES.get(name, "")) for name, group in groups}
    )
