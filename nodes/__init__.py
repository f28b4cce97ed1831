"""The nodes: schemas and short `execute` methods. The maths is in lucid_core; code that uses ComfyUI
internals is in host/.
"""

from __future__ import annotations

import logging
import platform

import torch

from .host import compat

log = logging.getLogger(__name__)

if not compat.missing_parts():
    from .bake import LucidBakeTexture, LucidSolidSplat
    from .body import LucidBody
    from .cameras import LucidCameras, LucidCloseUp
    from .compare import LucidBestOf, LucidCompare, LucidSeeds
    from .control import LucidControlNet
    from .dream import LucidDream, LucidDreamField
    from .edit import LucidEditImage
    from .export import LucidSave
    from .field import LucidField, LucidFieldToMesh, LucidFieldToSplat, LucidRenderField
    from .fit import LucidFit
    from .guidance import LucidBaseline, LucidISM, LucidTargets
    from .image_prompt import LucidImagePrompt
    from .load_views import LucidLoadViews
    from .mix import LucidMix
    from .optimizer import LucidOptimizer
    from .pointcloud import LucidPointCloud
    from .polish import LucidPolishTexture
    from .prompt import LucidPrompt, LucidPromptFromConditioning
    from .render import LucidRender
    from .score import LucidScore
    from .selection import LucidSelection
    from .shap_e import LucidShapE
    from .starts import LucidPointsFromDepth, LucidPointsFromFile, LucidPointsFromMesh


def node_list() -> list[type]:
    """All node classes of the pack.

    If this ComfyUI version lacks something that the nodes need, stand-in nodes that report the missing parts.
    Raises IncompatibleHost if it does not support the V3 node API at all.
    """
    missing = compat.missing_parts()
    if missing:
        refusal = compat.IncompatibleHost(missing)
        log.error(refusal)
        return compat.stand_ins(refusal)
    log.info(
        "Lucid ISM: ComfyUI %s, torch %s, Python %s",
        compat.host_version(),
        torch.__version__,
        platform.python_version(),
    )
    return [
        LucidPrompt,
        LucidPromptFromConditioning,
        LucidImagePrompt,
        LucidPointCloud,
        LucidISM,
        LucidBaseline,
        LucidCameras,
        LucidSelection,
        LucidDream,
        LucidRender,
        LucidSave,
        LucidSolidSplat,
        LucidBakeTexture,
        LucidPolishTexture,
        LucidShapE,
        LucidPointsFromMesh,
        LucidPointsFromDepth,
        LucidPointsFromFile,
        LucidControlNet,
        LucidMix,
        LucidOptimizer,
        LucidTargets,
        LucidEditImage,
        LucidFit,
        LucidField,
        LucidDreamField,
        LucidRenderField,
        LucidFieldToSplat,
        LucidFieldToMesh,
        LucidLoadViews,
        LucidScore,
        LucidSeeds,
        LucidBestOf,
        LucidCompare,
        LucidBody,
        LucidCloseUp,
    ]
