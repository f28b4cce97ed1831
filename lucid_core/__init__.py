"""The method: Interval Score Matching on 3D Gaussians. Knows torch and numpy, never the host or its nodes.

The public API. Each name is imported on first use, so that importing the package costs nothing:

    from lucid_core import ISM, CameraRanges, GuidanceSource, PointCloud, distil
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "errors": ["LucidError", "OutOfMemory"],
    "splats": ["Splats"],
    "cameras": ["CameraRanges", "Cameras", "CloseUp", "orbit", "turntable"],
    "diffusion.prior": ["Conds", "Prior"],
    "diffusion.diffusers_prior": ["DiffusersPrior"],
    "guidance.base": ["Guidance"],
    "guidance.ism": ["ISM", "ISM_PRESETS"],
    "guidance.baselines": ["METHODS"],
    "guidance.image_targets": ["ImageTargets"],
    "guidance.mixing": ["GuidanceSource", "Mix", "MixedSource"],
    "conditioning.picture": ["Picture", "PictureView", "frame_picture"],
    "conditioning.picture_prompt": ["PicturePrompt"],
    "conditioning.view_prompts": ["Prompts", "ViewBlend"],
    "optimize.config": ["DREAM_PRESETS", "DreamConfig"],
    "settings": ["replace_settings"],
    "optimize.loop": ["Step", "distil"],
    "optimize.densify": ["Densify"],
    "optimize.views": ["VIEW_PRESETS", "PosedImages", "ViewFit", "fit_views", "score_views"],
    "score.classifier": ["JudgeSettings", "Verdict", "judge"],
    "score.report": ["Report"],
    "score.views": ["turntable_views"],
    "optimize.radiance": ["FieldConfig", "distil_field", "fit_field"],
    "field.grid": ["Field", "FieldStart"],
    "starts.shapes": ["PointCloud"],
    "starts.body": ["Body"],
    "starts.points": ["Start"],
    "io.ply": ["read_ply", "write_ply"],
}
_ALIASES = {
    "ISM_PRESETS": "PRESETS",
    "DREAM_PRESETS": "PRESETS",
    "VIEW_PRESETS": "PRESETS",
    "read_ply": "read",
    "write_ply": "write",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), _ALIASES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
