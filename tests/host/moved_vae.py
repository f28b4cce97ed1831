"""What gradients pass the VAE after the host has moved its weights about, which on a CPU it never does.

    python tests/host/moved_vae.py COMFYUI_DIR CHECKPOINT

prints as JSON the largest difference to the gradient before, and its unit (see rounding.py): after the
weights were made anew in inference mode, as the host moves them to a GPU for a ControlNet's hint, and after
most of them were let go; and whether all are loaded then. And how many of the host's prefetch queues are left
after a model call that ran out of memory, and after one that left an allocation graph open.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from families import ROOT, become_the_host  # run as a script, this lies beside it

sys.path.append(str(ROOT / "tests" / "support"))
from rounding import difference, rounding_of


def main() -> None:
    become_the_host(Path(sys.argv[1]).resolve())
    import comfy.model_prefetch
    import comfy.sd
    import torch

    spec = importlib.util.spec_from_file_location(
        "lucid_ism", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["lucid_ism"] = importlib.util.module_from_spec(spec)
    host = importlib.import_module("lucid_ism.nodes.host")
    types = importlib.import_module("lucid_ism.nodes.types")
    OutOfMemory = importlib.import_module("lucid_ism.lucid_core.errors").OutOfMemory

    def body(prior, prompts):
        images, patcher = (
            torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)),
            prior._vae.patcher,
        )

        def gradient():
            pixels = images.clone().requires_grad_()
            prior.encode(pixels).sin().sum().backward()
            return pixels.grad

        whole = gradient()
        with torch.inference_mode():
            patcher.model.to(torch.float64).to(torch.float32)
        moved = gradient()
        patcher.detach()
        patcher.partially_load(patcher.load_device, 1.0)
        held = patcher.loaded_size()
        low = gradient()
        all_held = held < patcher.loaded_size() == patcher.model_size()
        differences = {"moved": difference(moved, whole), "low": difference(low, whole)}
        rounding = rounding_of(gradient, whole)
        return {**differences, "rounding": rounding, "loaded again": all_held, **queues_left(prior, prompts)}

    def queues_left(prior, prompts):
        queues, answers = comfy.model_prefetch, prior._answers

        def full(*asked):
            queues.PREFETCH_QUEUES.append([None])
            raise torch.OutOfMemoryError("on purpose")

        z = torch.zeros(1, 4, 8, 8)
        prior._answers = full
        try:
            prior.denoise(z, 1.0, [prompts.negative])
        except OutOfMemory:
            after_error = len(queues.PREFETCH_QUEUES)
        prior._answers = answers
        queues.PREFETCH_QUEUES.append([None])
        prior.denoise(z, 1.0, [prompts.negative])
        without = len(queues.PREFETCH_QUEUES)
        queues.MALLOC_GRAPHS = {0: "open"}  # as a ComfyUI of 0.34 and newer has it
        prior.denoise(z, 1.0, [prompts.negative])
        return {
            "after an error": after_error,
            "without a graph": without,
            "with a graph": len(queues.PREFETCH_QUEUES),
        }

    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(sys.argv[2])
        text = host.encode_text(clip, "a mug")
        prompt = types.LucidPromptData("a mug", (text,) * 4, text, text, None)
        print(json.dumps(host.with_prior(SimpleNamespace(model=model, vae=vae, prompt=prompt), 1, 64, body)))


if __name__ == "__main__":
    main()
