"""Which backend renders: asked for by name, or the fastest that works, tried once and at first use.

A backend that cannot be used, or that fails while it renders, is out for the rest of the process; one that found no memory, for
the rest of the run.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..cameras import Cameras
from ..extras import load
from ..gaussians import Splats

log = logging.getLogger(__name__)
MODULES = {"gsplat": "cuda_gsplat", "gswarp": "cuda_warp", "numba": "cpu", "reference": "reference"}
BACKENDS = ("auto", *MODULES)
ON_CUDA = ("gsplat", "gswarp")  # fastest first
Renderer = Callable[[Splats, Cameras, int, int, int, Tensor], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]

_against: dict[str, str] = {}  # backend -> why it is out; empty = it works
_without_memory: set[str] = set()  # of those that are out
_said: set[str] = set()


def renderer(backend: str) -> Renderer:
    """The render function of `backend`, imported on first use. Raises ImportError where its package is missing."""
    if backend == "numba":
        load("numba", "numba")
    return importlib.import_module(f".{MODULES[backend]}", __package__).render


def device_for(backend: str) -> torch.device:
    """Where the splats of a new run should live for `backend`: on the CUDA device or on the CPU.

    Raises ValueError if it cannot be used.
    """
    require_backend(backend)
    while _without_memory:  # a smaller splat, or another model beside it, may leave enough
        _against[_without_memory.pop()] = ""
    if backend in ON_CUDA and reason_against(backend):
        raise ValueError(f"backend {backend} {reason_against(backend)}; choose auto or numba")
    name = next(candidates("cuda")) if backend == "auto" else backend
    return torch.device("cuda" if name in ON_CUDA else "cpu")


def require_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")


def candidates(device: str) -> Iterator[str]:
    """The backends that "auto" has left for splats on `device`, the best first; each is tried when its turn comes."""
    if device == "cuda":
        yield from (name for name in ON_CUDA if not reason_against(name))
    yield "numba"


def reason_against(backend: str) -> str:
    """Why `backend` cannot be used here, or "". The first call tries it."""
    if backend not in _against:
        _against[backend] = _probe(backend) if backend in ON_CUDA else ""
    return _against[backend]


def rule_out(backend: str, error: Exception) -> None:
    """Take no more of `backend` in this process: it failed."""
    _against[backend] = f"failed: {_first_line(error)}"
    if isinstance(error, torch.OutOfMemoryError):
        _without_memory.add(backend)
    log.warning("rasterizer %s %s; the next one takes over", backend, _against[backend])


def say(backend: str, device: str) -> None:
    """Log, once, what renders and why nothing faster does."""
    passed = ON_CUDA if backend == "numba" else ON_CUDA[: ON_CUDA.index(backend)]
    why = "; ".join(f"{name} {_against[name]}" for name in passed if _against.get(name))
    line = f"rasterizer: {backend} on {device}" + (f" ({why})" if why else "")
    if line not in _said:
        _said.add(line)
        log.info(line)


def _probe(backend: str) -> str:
    """Prepare a CUDA backend and let it render one splat, gradient included -> what went wrong, or ""."""
    if not torch.cuda.is_available():
        return "needs a CUDA GPU, and torch finds none"
    try:
        importlib.import_module(f".{MODULES[backend]}", __package__).prepare()
        _render_one(renderer(backend))
    except Exception as error:  # a compiler, a driver and two packages: whatever it is, another backend can render
        log.debug("rasterizer %s cannot be used", backend, exc_info=True)
        return f"cannot be used: {_first_line(error)}"
    return ""


@torch.enable_grad()
def _render_one(render: Renderer) -> None:
    on = lambda *shape: torch.ones(*shape, device="cuda", requires_grad=True)
    pose, K = torch.eye(4, device="cuda")[None], torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]], device="cuda")
    splats = Splats(on(1, 3), on(1, 4), on(1, 3), on(1), on(1, 1, 3))
    rgb = render(splats, Cameras(pose, K), 16, 16, 0, torch.zeros(1, 3, device="cuda"))[0]
    rgb.sum().backward()
    torch.cuda.synchronize()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
