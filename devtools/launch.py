"""Run ComfyUI: `python devtools/launch.py COMFYUI_DIR [arguments of its main.py]`.

It must be run as a script, not with `-m devtools.launch`: with the repository root on sys.path, our nodes/
would hide ComfyUI's nodes.py.
"""

from __future__ import annotations

import runpy
import sys
import types
from importlib import metadata
from pathlib import Path

_KEEP_ALIVE = []  # operators are removed when the Library object that defines them is freed


def needs_repair() -> bool:
    """Whether torch is a CPU build while torchvision and torchaudio are built for CUDA.

    Package registries offer the latter two in only one build. False if torch is a CUDA build.
    """
    return "+cpu" in metadata.version("torch") and "+cpu" not in metadata.version("torchvision")


def repair_cpu_torch() -> None:
    """Make `import torchvision` and `import torchaudio` work although their compiled parts cannot be loaded.

    ComfyUI imports both at its start, but uses only their pure torch functions.
    """
    import torch

    if _KEEP_ALIVE:
        return  # done before
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # torchvision registers fake kernels for these operators, which must exist
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
