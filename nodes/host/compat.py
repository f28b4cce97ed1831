"""Compatibility check: the ComfyUI internals that this pack uses, and the error when one is missing.

The check runs before anything else of the host is imported. If a part is missing, the real nodes are not
imported; stand-in nodes with the same ids are registered, so that workflows still load, and their error names
the missing part.
"""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache

log = logging.getLogger(__name__)
WORKS_WITH = "0.30 to 0.33"  # the tested versions; newer ones probably work
PARTS = {  # module -> the names used; a test compares this table with the imports of the pack
    "comfy.cldm.cldm": ("ControlNet",),
    "comfy.cldm.dit_embedder": ("ControlNetEmbedder",),
    "comfy.cldm.mmdit": ("ControlNet",),
    "comfy.conds": ("CONDCrossAttn", "CONDRegular", "is_equal"),
    "comfy.controlnet": ("ControlBase", "ControlLora", "ControlNetSD35", "T2IAdapter"),
    "comfy.hooks": ("HookGroup",),
    "comfy.latent_formats": ("Flux", "Wan21"),
    "comfy.ldm.flux.controlnet": ("ControlNetFlux",),
    "comfy.ldm.krea2.model": ("SingleStreamDiT",),
    "comfy.ldm.modules.diffusionmodules.model": ("AttnBlock", "ResnetBlock"),
    "comfy.ldm.modules.diffusionmodules.openaimodel": ("UNetModel",),
    "comfy.ldm.qwen_image.controlnet": ("QwenImageControlNetModel", "QwenImageFunControlNetModel"),
    "comfy.ldm.qwen_image.model": ("QwenImageTransformer2DModel",),
    "comfy.ldm.wan.vae": ("ResidualBlock",),
    "comfy.ldm.wan.vae2_2": ("ResidualBlock",),
    "comfy.lora": ("load_lora", "model_lora_keys_unet"),
    "comfy.lora_convert": ("convert_lora",),
    "comfy.model_base": ("Anima", "Flux", "Lumina2", "QwenImage", "SD3", "SDXL", "Stable_Zero123"),
    "comfy.model_management": (
        "cleanup_models",
        "current_loaded_models",
        "get_free_memory",
        "get_torch_device",
        "get_total_memory",
        "is_oom",
        "load_models_gpu",
        "should_use_fp16",
        "soft_empty_cache",
        "throw_exception_if_processing_interrupted",
    ),
    "comfy.model_patcher": ("ModelPatcher",),
    "comfy.model_prefetch": ("cleanup_prefetch_queues",),
    "comfy.model_sampling": (
        "CONST",
        "COSMOS_RFLOW",
        "EPS",
        "IMG_TO_IMG",
        "IMG_TO_IMG_FLOW",
        "ModelSamplingDiscrete",
    ),
    "comfy.patcher_extension": ("WrappersMP",),
    "comfy.sampler_helpers": ("estimate_memory",),
    "comfy.samplers": ("CFGGuider", "Sampler", "calc_cond_batch", "cfg_function"),
    "comfy.sd": ("VAE",),
    "comfy.taesd.taehv": ("MemBlock", "TAEHV"),
    "comfy.taesd.taesd": ("Block", "TAESD"),
    "comfy.utils": ("ProgressBar", "get_attr", "load_torch_file"),
    "comfy_api.latest": ("ComfyExtension", "IO", "Types", "UI"),
    "folder_paths": (
        "exists_annotated_filepath",
        "filter_files_extensions",
        "get_annotated_filepath",
        "get_folder_paths",
        "get_full_path_or_raise",
        "get_input_directory",
        "get_output_directory",
        "get_save_image_path",
        "is_within_directory",
        "recursive_search",
    ),
}
NODES = {  # id -> display name
    "LucidBakeTexture": "Lucid Bake Texture",
    "LucidPolishTexture": "Lucid Polish Texture",
    "LucidBaseline": "Lucid Baseline",
    "LucidBestOf": "Lucid Best Of",
    "LucidBody": "Lucid Body",
    "LucidCameras": "Lucid Cameras",
    "LucidCloseUp": "Lucid Close-Up",
    "LucidCompare": "Lucid Compare",
    "LucidControlNet": "Lucid ControlNet",
    "LucidDream": "Lucid Dream",
    "LucidDreamField": "Lucid Dream Field",
    "LucidEditImage": "Lucid Edit Image",
    "LucidField": "Lucid Field",
    "LucidFieldToMesh": "Lucid Field to Mesh",
    "LucidFieldToSplat": "Lucid Field to Splat",
    "LucidFit": "Lucid Fit Views",
    "LucidISM": "Lucid ISM",
    "LucidImagePrompt": "Lucid Image Prompt (Zero123)",
    "LucidLoadViews": "Lucid Load Views",
    "LucidMix": "Lucid Mix Guidance",
    "LucidOptimizer": "Lucid Optimizer",
    "LucidPointCloud": "Lucid Point Cloud",
    "LucidPointsFromDepth": "Lucid Points from Depth",
    "LucidPointsFromFile": "Lucid Points from File",
    "LucidPointsFromMesh": "Lucid Points from Mesh",
    "LucidPrompt": "Lucid Prompt",
    "LucidPromptFromConditioning": "Lucid Prompt From Conditioning",
    "LucidRender": "Lucid Render",
    "LucidRenderField": "Lucid Render Field",
    "LucidSave": "Lucid Save",
    "LucidScore": "Lucid Score",
    "LucidSeeds": "Lucid Seeds",
    "LucidSelection": "Lucid Selection",
    "LucidShapE": "Lucid Shap-E",
    "LucidSolidSplat": "Lucid Solid Splat",
    "LucidTargets": "Lucid Image Targets",
}


@lru_cache
def missing_parts() -> tuple[str, ...]:
    """Names in PARTS that this ComfyUI lacks; empty if it is compatible."""
    found = []
    for module, names in PARTS.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            found.append(f"{module} ({error})")
            continue
        found += [f"{module}.{name}" for name in names if not hasattr(loaded, name)]
    return tuple(found)


def host_version() -> str:
    """The version of this ComfyUI, or "of an unknown version"."""
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return "of an unknown version"


class IncompatibleHost(RuntimeError):
    """This ComfyUI lacks the `missing` parts."""

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(missing)
        self.missing = missing

    def __str__(self) -> str:
        return (
            f"Lucid ISM works with ComfyUI {WORKS_WITH}; this one is {host_version()} and lacks "
            f"{', '.join(self.missing)}. Update ComfyUI, or update this pack if your ComfyUI is newer"
        )


def stand_ins(refusal: IncompatibleHost) -> list[type]:
    """Stand-ins for all NODES, which raise `refusal` and have its message as description.

    Raises it at once if the host does not support V3 nodes.
    """
    try:
        from comfy_api.latest import IO

        return [_stand_in(IO, node_id, name, refusal) for node_id, name in NODES.items()]
    except (ImportError, AttributeError) as error:
        raise refusal from error


def _stand_in(io, node_id: str, name: str, refusal: IncompatibleHost) -> type:
    class StandIn(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id=node_id,
                display_name=name,
                category="3d/splat/lucid",
                description=str(refusal),
                is_output_node=True,
                inputs=[],
                outputs=[],
            )

        @classmethod
        def execute(cls, **inputs):
            raise IncompatibleHost(refusal.missing)

    StandIn.__name__ = StandIn.__qualname__ = node_id
    return StandIn
