"""The nodes: schemas and thin `execute`s. The maths is in lucid_core, the host's internals in host/."""

from comfy_api.latest import IO, ComfyExtension

from .cameras import LucidCameras
from .control import LucidControlNet
from .dream import LucidDream
from .export import LucidSave
from .guidance import LucidBaseline, LucidISM, LucidTargets
from .mix import LucidMix
from .optimizer import LucidOptimizer
from .pointcloud import LucidPointCloud
from .prompt import LucidPrompt, LucidPromptFromConditioning
from .render import LucidRender
from .selection import LucidSelection
from .shap_e import LucidShapE
from .starts import LucidPointsFromDepth, LucidPointsFromFile, LucidPointsFromMesh


class LucidExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[IO.ComfyNode]]:
        return [
            LucidPrompt, LucidPromptFromConditioning, LucidPointCloud, LucidISM, LucidBaseline, LucidCameras, LucidSelection,
            LucidDream, LucidRender, LucidSave, LucidShapE, LucidPointsFromMesh, LucidPointsFromDepth, LucidPointsFromFile,
            LucidControlNet, LucidMix, LucidOptimizer, LucidTargets,
        ]  # fmt: skip
