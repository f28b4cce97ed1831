"""Lucid ISM: text to 3D splats in ComfyUI. V3 entry point; nothing is imported before the host asks for the
nodes.
"""

WEB_DIRECTORY = "./nodes/web"  # served by the host; docs/<node_id>.md in it are the nodes' help pages


async def comfy_entrypoint():
    from .nodes import node_list

    nodes = node_list()
    from comfy_api.latest import ComfyExtension

    class LucidExtension(ComfyExtension):
        async def get_node_list(self):
            return nodes

    return LucidExtension()
