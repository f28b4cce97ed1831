"""The nodes: schemas and thin `execute`s. The maths is in lucid_core, the host's internals in host/."""

from comfy_api.latest import IO, ComfyExtension

from .cameras import LucidCameras
from .control import LucidControlNet
from .dream import LucidDream
from .export import LucidSave
from .guidance import LucidBaseline, LucidISM
from .mix import LucidMix
from .pointcloud import LucidPointCloud
from .prompt import LucidPrompt, LucidPromptFromConditioning
from .render import LucidRender
from .selection import LucidSelection


class LucidExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[IO.ComfyNode]]:
        return [
            LucidPrompt, LucidPromptFromConditioning, LucidControlNet, LucidPointCloud, LucidISM, LucidBaseline, LucidMix,
            LucidCameras, LucidSelection, LucidDream, LucidRender, LucidSave,
        ]  # fmt: skip
