"""The copy of the VAE on a host with dynamic VRAM, whose VAEs keep their weights in the dtype of their file.

    python tests/host/dynamic_vae.py COMFYUI_DIR CHECKPOINT FOLDER [VAE_FILE ...]

Dynamic VRAM itself needs an NVIDIA GPU. Here the host's own loaders run with `is_dynamic()` forced, which is
what decides how they load weights. Prints as JSON, for the checkpoint's VAE in files of several dtypes and
for each VAE_FILE, for each dtype of the VAE and each way of copying: the dtypes of the copy's weights, and
how far the gradient of the pixels is from that on a host without dynamic VRAM, and from that in float32.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path

from families import ROOT, become_the_host  # run as a script, this lies beside it

VAE_FLAGS = {"float32": "fp32_vae", "bfloat16": "bf16_vae", "float16": "fp16_vae"}
FILES = ("float32", "bfloat16", "float16", "float8_e4m3fn")
PREFIX = "first_stage_model."


def main() -> None:
    become_the_host(Path(sys.argv[1]).resolve())
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd
    import comfy.utils
    import torch
    from comfy.cli_args import args
    from safetensors.torch import load_file, save_file

    spec = importlib.util.spec_from_file_location(
        "lucid_ism", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["lucid_ism"] = importlib.util.module_from_spec(spec)
    vaes = importlib.import_module("lucid_ism.nodes.host.vae")
    weights = {
        name.removeprefix(PREFIX): x for name, x in load_file(sys.argv[2]).items() if name.startswith(PREFIX)
    }
    images = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    forced = []
    comfy.model_patcher.ModelPatcher.is_dynamic = lambda self: bool(forced)

    def vae_of(path: str, dtype: str, has_file: bool, is_dynamic: bool):
        """As the host's VAELoader makes one; without a file as another pack does."""
        for name in VAE_FLAGS.values():
            setattr(args, name, name == VAE_FLAGS[dtype])
        forced[:] = [True] if is_dynamic else []
        state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        vae = comfy.sd.VAE(sd=state, metadata=metadata)
        if has_file:
            vae.patcher.cached_patcher_init = (comfy.sd.load_vae_patcher, (path, metadata, None))
        return vae

    def gradient(path: str, dtype: str, has_file: bool, is_dynamic: bool):
        with torch.inference_mode():  # as the host's nodes run
            vae = vae_of(path, dtype, has_file, is_dynamic)
        with torch.inference_mode(False), torch.enable_grad():
            copy = vaes.GradientVAE(vae)
            forced.clear()  # the copy is a plain patcher
            comfy.model_management.load_models_gpu([copy.patcher])
            pixels = images.clone().requires_grad_()
            copy.encode(pixels).sin().sum().backward()
            dtypes = {str(x.dtype).removeprefix("torch.") for x in copy.patcher.model.parameters()}
            copy.release()
        return pixels.grad, sorted(dtypes)

    @functools.cache
    def plain_gradient(path: str, dtype: str):
        return gradient(path, dtype, has_file=True, is_dynamic=False)[0]

    def row(path: str, dtype: str, has_file: bool) -> dict:
        plain, exact = plain_gradient(path, dtype), plain_gradient(path, "float32")
        facts = {"file": Path(path).stem, "vae": dtype, "has file": has_file}
        try:
            found, dtypes = gradient(path, dtype, has_file, is_dynamic=True)
        except RuntimeError as error:
            return facts | {"error": str(error)[:200]}
        far = lambda from_: float((found - from_).norm() / from_.norm())
        return facts | {"weights": dtypes, "from plain": far(plain), "from float32": far(exact)}

    rows = []
    for file in FILES:
        path = str(Path(sys.argv[3]) / f"{file}.safetensors")
        save_file({name: x.to(getattr(torch, file)) for name, x in weights.items()}, path)
        rows += [row(path, dtype, has_file=True) for dtype in VAE_FLAGS]
    rows += [row(path, dtype, has_file=False) for dtype in VAE_FLAGS]
    rows += [row(path, "float32", has_file=True) for path in sys.argv[4:]]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
