"""The widgets that Lucid Dream and Lucid Fit Views have in common."""

from __future__ import annotations

from comfy_api.latest import IO

from ..types import LucidCamerasType, LucidGuidanceType, LucidOptimizerType, LucidSelectionType


def guidance_inputs() -> list[IO.Input]:
    """What guides a run, and from where."""
    return [
        # lazy, so that `check_lazy_status` can check the settings before a model is loaded
        LucidGuidanceType.Input(
            "guidance",
            lazy=True,
            tooltip="Guidance method with its model and prompt, from Lucid ISM, Lucid Image Targets, Lucid "
            "Baseline or Lucid Mix Guidance.",
        ),
        LucidCamerasType.Input(
            "cameras", optional=True, tooltip="Training cameras. Empty = the official ranges."
        ),
    ]


def setting_inputs() -> list[IO.Input]:
    """Sockets for settings of the optimiser and for the region that may change."""
    return [
        LucidOptimizerType.Input(
            "optimizer",
            optional=True,
            tooltip="Settings from Lucid Optimizer, which replace those of `preset`. Empty = use the preset.",
        ),
        LucidSelectionType.Input(
            "selection",
            optional=True,
            tooltip="Region that may change, from Lucid Selection. Empty = the whole splat.",
        ),
    ]


def resume_inputs(noun: str = "splat") -> list[IO.Input]:
    """What to resume, and how often checkpoints are written; `noun`: what the run optimises."""
    return [
        IO.String.Input(
            "resume",
            default="",
            optional=True,
            advanced=True,
            tooltip="Checkpoint to resume from, under the output folder, e.g. "
            "lucid/run_00001_.safetensors (see the log); all other inputs must be unchanged. Empty "
            "= start a new run.",
        ),
        IO.Boolean.Input(
            f"resume_{noun}_only",
            default=False,
            optional=True,
            advanced=True,
            tooltip=f"Start a new run from the {noun} of the checkpoint instead of the connected "
            f"{noun}; all settings may differ. Off = resume the run.",
        ),
        IO.Float.Input(
            "checkpoint_minutes",
            default=5.0,
            min=0.0,
            max=1440.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="Minutes between checkpoints; each overwrites the previous one. 0 = only when "
            "the run ends.",
        ),
    ]


def preview_input() -> IO.Input:
    """Time between previews."""
    return IO.Float.Input(
        "preview_seconds",
        default=2.0,
        min=0.0,
        max=3600.0,
        step=0.5,
        optional=True,
        advanced=True,
        tooltip="Seconds between previews on the node; longer if previews would take over 3% "
        "of the time. 0 = only at the end.",
    )


def checkpoint_inputs(stopped: str = "saves only its splat") -> list[IO.Input]:
    """Whether checkpoints are written, and how many are kept; `stopped`: what a run does without them."""
    return [
        IO.Boolean.Input(
            "save_checkpoint",
            default=True,
            optional=True,
            advanced=True,
            tooltip=f"Write checkpoints from which a run can be resumed. Off = a stopped run {stopped}.",
        ),
        IO.Int.Input(
            "checkpoints_kept",
            default=10,
            min=1,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Number of newest checkpoints lucid/run_... to keep in the output folder; "
            "older ones are deleted when a run ends. Renamed files are never deleted.",
        ),
    ]


def x0_preview_input(shown: str) -> IO.Input:
    """Whether previews show the model's prediction beside `shown`."""
    return IO.Boolean.Input(
        "preview_wanted",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Also show the x0 prediction of the model for one view, to find problems with the prompt. "
        f"Off = show the {shown} only.",
    )
