"""Run ComfyUI: `python demo/launch.py COMFYUI_DIR [arguments of its main.py]`.

A script and not `-m demo.launch`: with the repository root on sys.path, our nodes/ would hide the host's nodes.py.
"""

from __future__ import annotations

import runpy
import sys
import types
from importlib import metadata
from pathlib import Path

_KEEP_ALIVE = []  # operators vanish with the Library object that defines them


def needs_repair() -> bool:
    """Is a CPU build of torch beside a torchvision and torchaudio that were built for CUDA?

    Package registries offer the latter in one build only. Where torch is a CUDA build this is False.
    """
    return "+cpu" in metadata.version("torch") and "+cpu" not in metadata.version("torchvision")


def repair_cpu_torch() -> None:
    """Let `import torchvision` and `import torchaudio` work although their compiled parts cannot be loaded.

    The host imports both at its start; their pure torch functions are all that it uses.
    """
    import torch

    if _KEEP_ALIVE:
        return  # done before
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # torchvision registers fakes for these, which must exist by then
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP_ALIVE.append(library)

    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    sys.modules[extension.__name__] = extension


def main() -> None:
    script = Path(sys.argv[1]).resolve() / "main.py"
    sys.path[0] = str(script.parent)  # in place of this file's folder
    sys.argv = [str(script), *sys.argv[2:]]
    if needs_repair():
        repair_cpu_torch()
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
