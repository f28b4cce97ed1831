"""Choice of the backend: given by name, or the fastest that works, tested once at first use.

A backend that cannot run here is excluded for the rest of the process. One that has too little memory for a
single view is excluded for the rest of the run.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator

import torch

from ..cameras import Cameras
from ..errors import BackendUnavailable
from ..optional import load
from ..settings import require
from ..splats import Splats
from .contract import Backend
from .failures import as_render_error, cannot_run, first_line, gpu_is_lost, is_out_of_memory

log = logging.getLogger(__name__)
MODULES = {"gsplat": "cuda_gsplat", "gswarp": "cuda_warp", "numba": "cpu", "reference": "reference"}
BACKENDS = ("auto", *MODULES)
ON_CUDA = ("gsplat", "gswarp")  # fastest first

_against: dict[str, str] = {}  # backend -> reason why it is excluded; "" = it works
_without_memory: set[str] = set()  # excluded backends whose reason is memory
_views: dict[str, int] = {}  # backend -> views at a time that fit into memory, in this run
_left: dict[str, str] = {}  # backend -> reason why this run switched to another one
_said: set[str] = set()


def renderer(backend: str) -> Backend:
    """The render function of `backend`, imported on first use.

    Raises MissingPackage if its package is missing.
    """
    if backend == "numba":
        load("numba", "numba")
    render: Backend = importlib.import_module(f".{MODULES[backend]}", __package__).render
    return render


def device_for(backend: str) -> torch.device:
    """The device for the splats of a new run with `backend`: CUDA or CPU.

    Call it at the start of each run. It tests backends that were not used before, which compiles their
    kernels, and tests those again that ran out of memory in the last run. Raises
    BackendUnavailable if `backend` cannot be used.
    """
    require_backend(backend)
    for name in _without_memory:  # a smaller splat or diffusion model may fit
        del _against[name]
    for of_the_run in (_without_memory, _views, _left):
        of_the_run.clear()
    if backend in ON_CUDA and reason_against(backend):
        raise BackendUnavailable(backend, reason_against(backend))
    name = next(candidates("cuda")) if backend == "auto" else backend
    return torch.device("cuda" if name in ON_CUDA else "cpu")


def require_usable(backend: str) -> None:
    """Raise BackendUnavailable if `backend` obviously cannot be used; loads, compiles and changes nothing."""
    require_backend(backend)
    if backend not in ON_CUDA:
        return
    reason = "" if backend in _without_memory else _against.get(backend) or _lacks(backend)
    if reason:
        raise BackendUnavailable(backend, reason)


def _lacks(backend: str) -> str:
    """The obviously missing requirement of a CUDA backend (GPU or package), or ""."""
    if not torch.cuda.is_available():
        return "needs a CUDA GPU, and torch finds none"
    if importlib.util.find_spec(backend) is None:
        return f"needs the package {backend}: python -m pip install {backend}"
    return ""


def require_backend(backend: str) -> None:
    """Raise BadSetting if there is no backend of this name."""
    require(backend in BACKENDS, "backend", repr(backend), f"one of {', '.join(BACKENDS)}")


def candidates(device: str) -> Iterator[str]:
    """The usable backends for "auto" with splats on `device`, fastest first; each is tested when reached."""
    if device == "cuda":
        yield from (name for name in ON_CUDA if not reason_against(name))
    yield "numba"


def reason_against(backend: str) -> str:
    """The reason why `backend` cannot be used here, or "". The first call tests it."""
    if backend not in _against:
        _against[backend] = _probe(backend) if backend in ON_CUDA else ""
    return _against[backend]


def views_at_a_time(backend: str) -> int:
    """The number of views that `backend` can render at a time in this run; unlimited at first."""
    return _views.get(backend, sys.maxsize)


def after_failure(backend: str, size: int, error: Exception, last: bool) -> int:
    """Views to render at a time after `error` with `size` of them; 0 = switch to the next backend.

    Raises RenderError if `backend` is the `last` one, and for errors other than out of memory or a backend
    that cannot run.
    """
    full = is_out_of_memory(error)
    if full and size > 1:
        _views[backend] = half = (size + 1) // 2
        log.warning(
            "rasterizer %s has no memory for %d views at a time; continuing with %d, which is slower",
            backend,
            size,
            half,
        )
        return half
    if last or not (full or cannot_run(error)):
        raise as_render_error(backend, error) from error
    _leave(backend, "has no memory for one view" if full else f"failed: {first_line(error)}", full)
    return 0


def _leave(backend: str, reason: str, full: bool) -> None:
    _against[backend] = _left[backend] = reason
    if full:
        _without_memory.add(backend)
    log.warning("rasterizer %s %s; switching to the next backend", backend, reason)


def slowdown() -> str:
    """A message for the user if this run had to switch to a slower backend, else ""."""
    if not _left:
        return ""
    reasons = "; ".join(f"{name} {reason}" for name, reason in _left.items())
    remedy = " Fewer Gaussians or pixels may help." if _without_memory else ""
    return f"{next(candidates('cuda'))} renders now, more slowly: {reasons}.{remedy}"


def say(backend: str, device: str) -> None:
    """Log once which backend renders splats on `device`, and why no faster one does."""
    device = "cpu" if backend == "numba" else device
    passed = ON_CUDA if backend == "numba" else ON_CUDA[: ON_CUDA.index(backend)]
    why = "; ".join(f"{name} {_against[name]}" for name in passed if _against.get(name))
    line = f"rasterizer: {backend} on {device}" + (f" ({why})" if why else "")
    if line not in _said:
        _said.add(line)
        log.info(line)


def _probe(backend: str) -> str:
    """Prepare a CUDA backend and render one Gaussian with gradients -> reason of failure, or ""."""
    if _lacks(backend):
        return _lacks(backend)
    try:
        importlib.import_module(f".{MODULES[backend]}", __package__).prepare()
        _render_one(renderer(backend))
    except Exception as error:  # compiler, driver or packages may raise anything; another backend can render
        log.debug("rasterizer %s cannot be used", backend, exc_info=True)
        if gpu_is_lost(error):
            raise as_render_error(backend, error) from error
        if is_out_of_memory(error):
            _leave(backend, "has no memory for one Gaussian", full=True)
            return _against[backend]
        return f"cannot be used: {first_line(error)}"
    return ""


@torch.enable_grad()
def _render_one(render: Backend) -> None:
    pose = torch.eye(4, device="cuda")[None]
    K = torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]], device="cuda")
    shapes = ((1, 3), (1, 4), (1, 3), (1,), (1, 1, 3))
    splats = Splats(*(torch.ones(shape, device="cuda", requires_grad=True) for shape in shapes))
    rgb = render(splats, Cameras(pose, K), 16, 16, 0, torch.zeros(1, 3, device="cuda"))[0]
    rgb.sum().backward()
    torch.cuda.synchronize()
