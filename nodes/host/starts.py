"""What a splat can start from: the host's meshes, files of its input folder, and models of the diffusers library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import Types
from torch import Tensor

from ...lucid_core import pointfile, shap_e
from ...lucid_core.checks import require
from ...lucid_core.mesh import Mesh
from .splats import FLIP


def to_mesh(mesh: Types.MESH) -> Mesh:
    """The one mesh of a batch on the CPU, in its own axes (glTF: y up). The host's tensors are shared: these are copies."""
    require(len(mesh.vertices) == 1, "mesh", f"a batch of {len(mesh.vertices)}", "one mesh")
    v = int(mesh.vertex_counts[0]) if mesh.vertex_counts is not None else mesh.vertices.shape[1]
    f = int(mesh.face_counts[0]) if mesh.face_counts is not None else mesh.faces.shape[1]
    with torch.inference_mode(False):
        take = lambda x, n: torch.clone(x[0, :n].cpu().float()) if x is not None else None
        vertices, colors = take(mesh.vertices, v), take(mesh.vertex_colors, v)
        colors = None if colors is None else colors[:, :3]
        factor = (getattr(mesh, "material", None) or {}).get("base_color_factor")  # 0.33 has it; linear, multiplies the others
        if factor is not None:
            colors = (torch.ones_like(vertices) if colors is None else colors) * torch.tensor(factor[:3])
        faces = torch.clone(mesh.faces[0, :f].cpu().long())
        return Mesh(vertices, faces, colors, take(mesh.uvs, v), take(mesh.texture, None))


def camera_info_of(position: Tensor, distance: float, fov_deg: float) -> dict:
    """The host's camera_info of a camera at `position` (3,) in the splat frame that looks along +z at a point so far off."""
    point = lambda at: dict(zip("xyz", (at * FLIP).tolist()))
    target = position + torch.tensor([0.0, 0.0, distance])
    return {"position": point(position), "target": point(target), "fov": fov_deg, "zoom": 1, "cameraType": "perspective"}


def point_files() -> list[str]:
    """Files of points in the input folder and under its folder 3d, where Load 3D puts what is uploaded."""
    folder = folder_paths.get_input_directory()
    below, _ = folder_paths.recursive_search(os.path.join(folder, "3d"))
    names = [*os.listdir(folder), *("3d/" + name.replace(os.sep, "/") for name in below)]
    return folder_paths.filter_files_extensions(names, pointfile.SUFFIXES)


def input_exists(name: str) -> bool:
    return folder_paths.exists_annotated_filepath(name)


def input_file(name: str) -> str:
    return folder_paths.get_annotated_filepath(name)


def input_stamp(name: str) -> str:
    """Changes when a file of the input folder does."""
    if not input_exists(name):
        return ""
    stat = os.stat(input_file(name))
    return f"{stat.st_mtime_ns} {stat.st_size}"


def shap_e_models() -> list[str]:
    """Shap-E's folders in the host's folders of diffusers models, then its name on the hub."""
    found = [
        Path(where).relative_to(root).as_posix()
        for root in folder_paths.get_folder_paths("diffusers")
        for where, _, files in os.walk(root, followlinks=True)
        if "model_index.json" in files and shap_e.is_pipeline(Path(where))
    ]
    return [*sorted(found), shap_e.REPOSITORY]


def shap_e_folder(name: str) -> Path:
    """Where the model is. Raises ValueError that says how to get it."""
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    if name == shap_e.REPOSITORY:
        folder = shap_e.in_hub_cache()
        if folder is None:
            place = roots[0] / "shap-e"
            raise ValueError(
                f"model {name} is not on this machine, and nothing is downloaded unasked. To get it into the cache of the "
                f"Hugging Face hub run: hf download {name}  Or put its files into {place}: hf download {name} --local-dir "
                f'"{place}"  and choose shap-e as model'
            )
        return folder
    folder = next((root / name for root in roots if shap_e.is_pipeline(root / name)), None)
    require(folder is not None, "model", repr(name), f"a Shap-E folder under {roots[0]}")
    return folder


@contextmanager
def on_device(networks: list[torch.nn.Module], working_bytes: int) -> Iterator[None]:
    """Networks that are not the host's on its device, after it has made room for them; on the CPU again afterwards."""
    management = comfy.model_management
    device = management.get_torch_device()
    management.free_memory(sum(management.module_size(network) for network in networks) + working_bytes, device)
    try:
        for network in networks:
            network.to(device)
        yield
    finally:
        for network in networks:
            network.to("cpu")
        management.soft_empty_cache()


def half_is_faster() -> bool:
    """Does the host run models of its own in float16 on its device?"""
    return comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device())
