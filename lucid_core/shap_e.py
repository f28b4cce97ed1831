"""Text -> a coloured mesh by Shap-E (Jun & Nichol 2023, arXiv 2305.02463), by diffusers' pipeline (optional)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from .checks import check_bounds, require, setting
from .extras import load as load_package
from .mesh import Mesh
from .starts import AXES

REPOSITORY = "openai/shap-e"
PIPELINE = "ShapEPipeline"
BATCH = 4096  # points that diffusers' decoder asks about at a time
BYTES_EACH = 640  # that reading the surface takes at a point of its grid; measured: 565


@dataclass(frozen=True)
class ShapE:
    """How Shap-E is sampled and its surface read."""

    steps: int = setting(64, 1, 1000, "Sampling steps. Fewer are faster and rougher.", step=1, rare=False)
    guidance_scale: float = setting(15.0, 1, 100, "How strongly the text is followed; 1 = no guidance.", step=0.5, rare=False)
    grid: int = setting(128, 16, 256, "Points along each side of the grid that the surface is read from. Memory grows with its "
                        "cube: 1.3 GB for 128.", step=16)  # fmt: skip

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def evaluations(self) -> int:
        """Of its two networks: Heun's method asks twice a step but for the last, the surface once for each batch of points."""
        return 2 * self.steps - 1 + -(-(self.grid**3) // BATCH)

    @property
    def working_bytes(self) -> int:
        """Memory that it takes beside the networks."""
        return BYTES_EACH * self.grid**3

    def mesh(self, pipeline: Any, text: str, seed: int, on_progress: Callable[[int], None]) -> Mesh:
        """The surface for `text` in the world frame, as large as Shap-E makes it (within [-1, 1]^3).

        The pipeline runs on its own device and is left there. `on_progress(done)` is called after each of the
        `evaluations` and may raise to stop. Raises ValueError where the text is empty or the surface is.
        """
        require(bool(text.strip()), "text", "empty", "a description of the object")
        pipeline.set_progress_bar_config(disable=True)
        renderer, device = pipeline.shap_e_renderer, pipeline.device
        done = 0

        def advance(*_: Any) -> None:
            nonlocal done
            done += 1
            on_progress(min(done, self.evaluations))  # the colours take a few more

        with ExitStack() as hooks, torch.no_grad():
            for network in (pipeline.prior, renderer.mlp):
                hooks.callback(network.register_forward_hook(advance).remove)
            hooks.callback(renderer.mesh_decoder.register_forward_hook(_require_surface).remove)
            latents = pipeline(
                text, num_inference_steps=self.steps, guidance_scale=self.guidance_scale,
                generator=torch.Generator().manual_seed(seed), output_type="latent",
            ).images  # fmt: skip
            found = renderer.decode_to_mesh(latents.to(renderer.dtype), device, grid_size=self.grid, query_batch_size=BATCH)
        colors = torch.stack([found.vertex_channels[name] for name in "RGB"], -1)  # diffusers has made them linear
        return Mesh(found.verts.float().cpu(), found.faces.cpu(), colors.float().cpu()).turned(AXES["z up"])


def _require_surface(decoder: Any, arguments: Any, mesh: Any) -> None:
    require(len(mesh.faces) > 0, "the shape for this text", "empty", "another: change the seed or the text")


def in_hub_cache() -> Path | None:
    """The folder of the model in the user's cache of the Hugging Face hub, if it is there. Nothing is downloaded."""
    hub = load_package("huggingface_hub", "huggingface_hub")
    try:
        return Path(hub.snapshot_download(REPOSITORY, local_files_only=True))
    except (OSError, ValueError):
        return None


def is_pipeline(folder: Path) -> bool:
    """Does `folder` hold a text-to-3D Shap-E as diffusers saves it?"""
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"] == PIPELINE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(folder: Path, half: bool) -> Any:
    """The pipeline in `folder` on the CPU; with `half` its text encoder and prior in float16. Nothing is downloaded.

    What decodes the surface stays in float32, because it tells apart positions by frequencies up to 2**14. Raises
    ImportError where diffusers is missing and ValueError where the folder is not whole.
    """
    diffusers = load_package("diffusers", "diffusers")
    load_package("transformers", "transformers")
    require(is_pipeline(folder), "model", repr(str(folder)), f"a folder whose model_index.json names {PIPELINE}")
    weights = [path.name for path in (folder / "prior").glob("*") if path.suffix in (".safetensors", ".bin")]
    variant = "fp16" if weights and all(".fp16." in name for name in weights) else None
    try:
        pipeline = diffusers.ShapEPipeline.from_pretrained(folder, local_files_only=True, variant=variant)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"the model in {folder} is not whole: {error}") from error
    for network in networks_of(pipeline):
        network.float()
    if half:
        pipeline.prior.half()
        pipeline.text_encoder.half()
    return pipeline


def networks_of(pipeline: Any) -> list[Module]:
    """What of it takes memory, to be moved to a device together."""
    return [part for part in pipeline.components.values() if isinstance(part, Module)]
