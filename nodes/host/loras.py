"""Check for LoRAs of which no weight fits the model. The host itself only logs a warning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths

from ...lucid_core.errors import BadFile
from .families import family_of

LOADERS = ("LoraLoader", "LoraLoaderModelOnly")
STACK = "LoadLoraModel"  # since ComfyUI 0.34: inputs loras.0.lora_name, .strength, .enabled and so on
CLONEOFSIMO = r"(unet|text_encoder\w*):\d+:(up|down|alpha)"  # the format of LucidDreamer's LoRAs
OF_TEXT = ("lora_te", "text_encoder", "text_model")  # parts of the names of text encoder weights


def require_loras(model: Any, prompt: Any, node_id: str | None) -> None:
    """Raise BadFile if a LoRA between the checkpoint and the input `model` of the node `node_id` fits no
    weight of the model, or has a format that the host does not read.

    `prompt` is the host's DynamicPrompt: the queued graph, including expanded nodes.
    """
    graph = {name: prompt.get_node(name) for name in prompt.all_node_ids()} if prompt else {}
    for name in _loras_before(graph, node_id):
        lora = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name), safe_load=True)
        if any(re.fullmatch(CLONEOFSIMO, key) for key in lora):
            raise BadFile(
                name,
                "this LoRA is in the format of cloneofsimo/lora (weights such as unet:0:up), which ComfyUI "
                "does not read; convert it to the format of kohya-ss or diffusers",
            )
        names = comfy.lora.model_lora_keys_unet(model.model, {})
        fits = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), names, log_missing=False)
        if not fits and not any(part in key for key in lora for part in OF_TEXT):
            raise BadFile(
                name,
                f"this LoRA fits no weight of model {family_of(model.model)}: its weights have names such as "
                f"{min(lora, default='none at all')}; use a LoRA that was made for this family",
            )


def _loras_before(graph: dict[str, dict], node_id: str | None) -> Iterator[str]:
    """File names of the LoRAs with nonzero strength, from the node back to the checkpoint."""
    link = graph.get(str(node_id), {}).get("inputs", {}).get("model")
    while isinstance(link, list) and link[0] in graph:
        node = graph[link[0]]
        inputs = node["inputs"]
        if (
            node["class_type"] in LOADERS
            and inputs.get("strength_model")
            and isinstance(inputs.get("lora_name"), str)
        ):
            yield inputs["lora_name"]
        if node["class_type"] == STACK:
            yield from _loras_of_stack(inputs)
        link = inputs.get("model")


def _loras_of_stack(inputs: dict[str, Any]) -> Iterator[str]:
    for name, value in inputs.items():
        place = name.removesuffix(".lora_name")
        is_used = inputs.get(f"{place}.strength", 1.0) and inputs.get(f"{place}.enabled", True)
        if place != name and isinstance(value, str) and is_used:
            yield value
