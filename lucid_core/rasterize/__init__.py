"""Differentiable rasterization of splats, with one interface and several backends.

The image is defined by gsplat's classic mode (see limits.py). Every backend renders all views in one call, or
as many as fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from ..splats import Splats
from . import choice, parts
from .choice import BACKENDS as BACKENDS
from .choice import device_for as device_for
from .choice import require_backend
from .choice import require_usable as require_usable
from .choice import slowdown as slowdown
from .failures import RenderError as RenderError


@dataclass(frozen=True)
class Render:
    """B rendered views.

    rgb (B, H, W, 3); alpha (B, H, W, 1) in [0, 1]; depth (B, H, W, 1), the sum of weight * camera z in world
    units. info, as gsplat's strategies need it: means2d (B, N, 2) in pixels, a leaf whose `grad` is filled by
    the backward pass; radii (B, N, 2) int32 in pixels, 0 if culled; gaussian_ids None (not packed); width,
    height, n_cameras.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    info: dict


def rasterize(
    splats: Splats,
    cameras: Cameras,
    width: int,
    height: int,
    sh_degree: int | None = None,
    background: Tensor | None = None,
    backend: str = "auto",
) -> Render:
    """Render `splats` from every camera; differentiable in the five tensors of `splats` and in `background`.

    width, height: in pixels. sh_degree: highest spherical harmonics degree used, None = that of the splats.
    background: (3,) or (B, 3) in the colour space of rgb, None = black. backend: one of BACKENDS. "auto": the
    fastest one that works on the device of the splats; "numba": on the CPU, for splats on any device;
    "reference": slow, any device and float dtype.

    If the views do not fit into memory together, fewer are rendered at a time. If a single view does not fit,
    "auto" switches to the next backend, which `slowdown()` reports. The same holds for the backward pass.

    Raises ValueError for arguments that cannot be rendered, ImportError if the package of the backend is
    missing, and RenderError, with a remedy, if memory is too small or if the renderer or the GPU fails.
    """
    require_backend(backend)
    check(splats, cameras, width, height, sh_degree, background)
    sh_degree = splats.sh_degree if sh_degree is None else sh_degree
    if background is None:
        background = splats.means.new_zeros(3)
    background = background.expand(len(cameras), 3)
    arguments = (splats, cameras, width, height, sh_degree, background)
    rgb, alpha, depth, means2d, radii = _render(backend, arguments)
    info = {
        "means2d": means2d,
        "radii": radii,
        "gaussian_ids": None,
        "width": width,
        "height": height,
        "n_cameras": len(cameras),
    }
    return Render(rgb, alpha, depth, info)


def _render(backend: str, arguments: parts.Arguments) -> parts.Outputs:
    """Render `arguments` with `backend`. Raises ValueError if it does not support the dtype or device."""
    means = arguments[0].means
    if backend != "reference" and means.dtype != torch.float32:
        raise ValueError(
            f"backend {backend!r} renders float32, but means are {means.dtype}; convert the splats"
        )
    if backend in choice.ON_CUDA and means.device.type != "cuda":
        raise ValueError(
            f"backend {backend!r} renders on CUDA, but means are on {means.device}; move them there"
        )
    if not len(means):
        return choice.renderer("reference")(*arguments)  # the other backends cannot render 0 Gaussians
    return parts.render(backend, arguments)


@dataclass(frozen=True)
class Renderer:
    """`rasterize` with one backend, on the device of that backend."""

    backend: str = "auto"

    @property
    def device(self) -> torch.device:
        return device_for(self.backend)

    def __call__(
        self,
        splats: Splats,
        cameras: Cameras,
        width: int,
        height: int,
        sh_degree: int | None = None,
        background: Tensor | None = None,
    ) -> Render:
        """See `rasterize`."""
        return rasterize(splats, cameras, width, height, sh_degree, background, self.backend)


def to_device(cameras: Cameras, device: torch.device) -> Cameras:
    """The cameras with both tensors on `device`."""
    return Cameras(cameras.viewmats.to(device), cameras.Ks.to(device))


def check(
    splats: Splats,
    cameras: Cameras,
    width: int,
    height: int,
    sh_degree: int | None,
    background: Tensor | None,
) -> None:
    """Raise ValueError, naming the argument and the allowed values, unless these can be rendered."""
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of pixels, at least 1")
    _check_shapes(splats, cameras, background)
    if sh_degree is not None and not 0 <= sh_degree <= splats.sh_degree:
        raise ValueError(f"sh_degree is {sh_degree}; these splats allow 0 to {splats.sh_degree}")
    tensors = {**_tensors(splats, cameras), **({} if background is None else {"background": background})}
    for name, value in tensors.items():
        if value.dtype != splats.means.dtype or value.device != splats.means.device:
            where = f"{splats.means.dtype} on {splats.means.device}, as means"
            raise ValueError(f"{name} is {value.dtype} on {value.device}; expected {where}")
    ranges = _ranges(tensors)
    for name, (low, high) in ranges.items():
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            bad = int((~torch.isfinite(tensors[name])).sum())
            raise ValueError(f"{name} holds {bad} values that are not finite; repair or remove them first")
    low, high = ranges.get("opacities", (0.0, 1.0))
    if low < 0 or high > 1:
        raise ValueError(f"opacities span {low:g} to {high:g}; expected activated opacities in [0, 1]")
    if not (cameras.Ks.diagonal(dim1=1, dim2=2)[:, :2] > 0).all():
        raise ValueError("Ks hold a focal length that is not positive; expected fx, fy > 0 in pixels")


def _tensors(splats: Splats, cameras: Cameras) -> dict[str, Tensor]:
    names = ("means", "quats", "scales", "opacities", "sh")
    return {**{name: getattr(splats, name) for name in names}, "viewmats": cameras.viewmats, "Ks": cameras.Ks}


def _check_shapes(splats: Splats, cameras: Cameras, background: Tensor | None) -> None:
    n, views = splats.means.shape[:1].numel(), cameras.viewmats.shape[:1].numel()
    if splats.sh.ndim != 3 or splats.sh.shape[1] not in (1, 4, 9, 16):
        raise ValueError(f"sh has shape {tuple(splats.sh.shape)}; expected (N, K, 3) with K 1, 4, 9 or 16")
    if views == 0:
        raise ValueError("viewmats holds no camera; expected at least one view")
    expected = {
        "means": (n, 3),
        "quats": (n, 4),
        "scales": (n, 3),
        "opacities": (n,),
        "sh": (n, splats.sh.shape[1], 3),
        "viewmats": (views, 4, 4),
        "Ks": (views, 3, 3),
    }
    for name, value in _tensors(splats, cameras).items():
        if value.shape != expected[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected[name]}")
    if background is not None and background.shape not in ((3,), (views, 3)):
        raise ValueError(f"background has shape {tuple(background.shape)}; expected (3,) or ({views}, 3)")


def _ranges(tensors: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """(minimum, maximum) of each non-empty tensor, NaN if it has one; one device synchronisation.

    Uses numpy on the CPU: after a parallel torch operation, torch's threads keep spinning for milliseconds on
    the cores that the renderer needs next.
    """
    values = {name: value.detach() for name, value in tensors.items() if value.numel()}
    first = next(iter(values.values()))
    if first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64):
        return {
            name: (float(value.numpy().min()), float(value.numpy().max())) for name, value in values.items()
        }
    extremes = torch.stack([extreme for value in values.values() for extreme in value.aminmax()]).tolist()
    return dict(zip(values, zip(extremes[::2], extremes[1::2])))
