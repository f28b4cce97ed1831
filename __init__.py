"""Lucid ISM: text to 3D splats in ComfyUI. V3 entry point; nothing is imported before the host asks for the nodes."""


async def comfy_entrypoint():
    from .nodes import LucidExtension

    return LucidExtension()
