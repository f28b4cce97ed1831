"""Text -> coloured mesh with Shap-E (Jun & Nichol 2023, arXiv 2305.02463), via diffusers (optional)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from ..errors import BadFile
from ..optional import load as load_package
from ..settings import check_bounds, require, setting
from .mesh import Mesh
from .points import AXES

REPOSITORY = "openai/shap-e"
PIPELINE = "ShapEPipeline"
BATCH = 4096  # points per evaluation of diffusers' decoder
BYTES_EACH = 640  # memory per grid point of the surface extraction; measured: 565


@dataclass(frozen=True)
class ShapE:
    """Sampling and surface extraction settings of Shap-E."""

    steps: int = setting(
        64, 1, 1000, "Sampling steps. Fewer steps are faster and less detailed.", step=1, advanced=False
    )
    guidance_scale: float = setting(
        15.0, 1, 100, "Classifier-free guidance scale; 1 = off.", step=0.5, advanced=False
    )
    grid: int = setting(
        128,
        16,
        256,
        "Resolution of the surface extraction grid per axis. Memory grows with the cube: 1.3 GB at 128.",
        step=16,
    )

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def evaluations(self) -> int:
        """Number of network evaluations: 2 per Heun step (1 in the last), 1 per batch of grid points."""
        return 2 * self.steps - 1 + -(-(self.grid**3) // BATCH)

    @property
    def working_bytes(self) -> int:
        """Memory in bytes needed in addition to the network weights."""
        return BYTES_EACH * self.grid**3

    def mesh(self, pipeline: Any, text: str, seed: int, on_progress: Callable[[int], None]) -> Mesh:
        """Generate a mesh for `text` in the world frame, at Shap-E's own scale (within [-1, 1]^3).

        The pipeline runs and stays on its current device. `on_progress(done)` is called after each of the
        `evaluations` and may raise to stop. Raises BadSetting if the text or the surface is empty.
        """
        require(bool(text.strip()), "text", "empty", "a description of the object")
        pipeline.set_progress_bar_config(disable=True)
        renderer, device = pipeline.shap_e_renderer, pipeline.device
        done = 0

        def advance(*_: Any) -> None:
            nonlocal done
            done += 1
            on_progress(min(done, self.evaluations))  # colour queries need a few more

        with ExitStack() as hooks, torch.no_grad():
            for network in (pipeline.prior, renderer.mlp):
                hooks.callback(network.register_forward_hook(advance).remove)
            hooks.callback(renderer.mesh_decoder.register_forward_hook(_require_surface).remove)
            latents = pipeline(
                text,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).images
            found = renderer.decode_to_mesh(
                latents.to(renderer.dtype), device, grid_size=self.grid, query_batch_size=BATCH
            )
        # already linear RGB in diffusers
        colors = torch.stack([found.vertex_channels[name] for name in "RGB"], -1)
        return Mesh(found.verts.float().cpu(), found.faces.cpu(), colors.float().cpu()).rotate(AXES["z up"])


def _require_surface(decoder: Any, arguments: Any, mesh: Any) -> None:
    require(len(mesh.faces) > 0, "the shape for this text", "empty", "another: change the seed or the text")


def in_hub_cache() -> Path | None:
    """The folder of the model in the local Hugging Face cache, or None. Downloads nothing."""
    hub = load_package("huggingface_hub", "huggingface_hub")
    try:
        return Path(hub.snapshot_download(REPOSITORY, local_files_only=True))
    except (OSError, ValueError):
        return None


def is_pipeline(folder: Path) -> bool:
    """Whether `folder` holds a text-to-3D Shap-E pipeline in diffusers format."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return bool(index["_class_name"] == PIPELINE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(folder: Path, half: bool) -> Any:
    """Load the pipeline from `folder` to the CPU; `half`: text encoder and prior in float16.

    The surface decoder stays in float32, because its positional encoding uses frequencies up to 2**14.
    Downloads nothing. Raises MissingPackage if diffusers is missing and BadFile if the folder is incomplete.
    """
    diffusers = load_package("diffusers", "diffusers")
    load_package("transformers", "transformers")
    if not is_pipeline(folder):
        raise BadFile(
            folder, f"it has no model_index.json that names {PIPELINE}; use a text-to-3D Shap-E model"
        )
    weights = [path.name for path in (folder / "prior").glob("*") if path.suffix in (".safetensors", ".bin")]
    variant = "fp16" if weights and all(".fp16." in name for name in weights) else None
    try:
        pipeline = diffusers.ShapEPipeline.from_pretrained(folder, local_files_only=True, variant=variant)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadFile(folder, f"the model is not complete: {error}; download it again") from error
    for network in networks_of(pipeline):
        network.float()
    if half:
        pipeline.prior.half()
        pipeline.text_encoder.half()
    return pipeline


def networks_of(pipeline: Any) -> list[Module]:
    """All networks of the pipeline, to be moved to a device together."""
    return [part for part in pipeline.components.values() if isinstance(part, Module)]
