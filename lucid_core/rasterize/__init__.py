"""Differentiable rasterization of splats, with one interface and several backends.

The image is defined by gsplat's classic mode (see limits.py). Every backend renders all views in one call, or
as many as fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import BadInput, BadSplats
from ..settings import require
from ..splats import Splats, validate_shapes
from . import choice, parts
from .choice import BACKENDS as BACKENDS
from .choice import device_for as device_for
from .choice import require_backend
from .choice import require_usable as require_usable
from .choice import slowdown as slowdown
from .contract import Arguments, Outputs


class RenderInfo(TypedDict):
    """What gsplat's strategies read of a render of B views.

    means2d (B, N, 2) in pixels, a leaf whose `grad` is filled by the backward pass; radii (B, N, 2) int32 in
    pixels, 0 if culled; gaussian_ids None (not packed); width and height in pixels.
    """

    means2d: Tensor
    radii: Tensor
    gaussian_ids: None
    width: int
    height: int
    n_cameras: int


@dataclass(frozen=True)
class Render:
    """B rendered views.

    rgb (B, H, W, 3); alpha (B, H, W, 1) in [0, 1]; depth (B, H, W, 1), the sum of weight * camera z in world
    units. info: what the densification of splats reads; None for what has none.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    info: RenderInfo | None = None


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

    Raises BadSplats, BadInput or BadSetting (all are ValueErrors) for arguments that cannot be rendered,
    MissingPackage if the package of the backend is missing, and RenderError, with a remedy, if memory is too
    small or if the renderer or the GPU fails.
    """
    require_backend(backend)
    check(splats, cameras, width, height, sh_degree, background)
    sh_degree = splats.sh_degree if sh_degree is None else sh_degree
    if background is None:
        background = splats.means.new_zeros(3)
    background = background.expand(len(cameras), 3)
    arguments = (splats, cameras, width, height, sh_degree, background)
    rgb, alpha, depth, means2d, radii = _render(backend, arguments)
    info: RenderInfo = {
        "means2d": means2d,
        "radii": radii,
        "gaussian_ids": None,
        "width": width,
        "height": height,
        "n_cameras": len(cameras),
    }
    return Render(rgb, alpha, depth, info)


def _render(backend: str, arguments: Arguments) -> Outputs:
    """Render `arguments` with `backend`. Raises BadSplats if it does not support the dtype or device."""
    means = arguments[0].means
    if backend != "reference" and means.dtype != torch.float32:
        raise BadSplats("means", f"are {means.dtype}; convert the splat to float32 for backend {backend}")
    if backend in choice.ON_CUDA and means.device.type != "cuda":
        raise BadSplats("means", f"are on {means.device}; move the splat to CUDA for backend {backend}")
    if not len(means):
        return choice.renderer("reference")(*arguments)  # the other backends cannot render 0 Gaussians
    return parts.render(backend, arguments)


@dataclass(frozen=True)
class Renderer:
    """`rasterize` with one backend, on the device of that backend; one for each run, see `device_for`."""

    backend: str = "auto"

    @cached_property
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
    """Raise BadSplats, BadInput or BadSetting, which name the argument, unless these can be rendered."""
    for name, pixels in (("width", width), ("height", height)):
        ok = isinstance(pixels, int) and pixels >= 1
        require(ok, name, repr(pixels), "a whole number of pixels, at least 1")
    validate_shapes(splats)
    _check_shapes(cameras, background)
    ok = sh_degree is None or 0 <= sh_degree <= splats.sh_degree
    require(ok, "sh_degree", sh_degree, f"0 to {splats.sh_degree}, the degree of the splat")
    tensors = {**_tensors(splats, cameras), **({} if background is None else {"background": background})}
    for name, value in tensors.items():
        if value.dtype != splats.means.dtype or value.device != splats.means.device:
            where = f"{splats.means.dtype} on {splats.means.device}, as the means"
            raise _refusal(name, f"are {value.dtype} on {value.device}; give {where}")
    ranges = _ranges(tensors)
    for name, (low, high) in ranges.items():
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            bad = int((~torch.isfinite(tensors[name])).sum())
            raise _refusal(name, f"have {bad} values that are not finite; repair or remove them first")
    low, high = ranges.get("opacities", (0.0, 1.0))
    if low < 0 or high > 1:
        raise BadSplats("opacities", f"span {low:g} to {high:g}; give activated opacities in [0, 1]")
    if not (cameras.Ks.diagonal(dim1=1, dim2=2)[:, :2] > 0).all():
        raise BadInput("Ks", "have a focal length that is not positive; give fx, fy > 0 in pixels")


def _tensors(splats: Splats, cameras: Cameras) -> dict[str, Tensor]:
    return {**vars(splats), **vars(cameras)}


def _refusal(name: str, problem: str) -> BadInput:
    kind = BadSplats if name in Splats.__dataclass_fields__ else BadInput
    return kind(name, problem)


def _check_shapes(cameras: Cameras, background: Tensor | None) -> None:
    views = cameras.viewmats.shape[:1].numel()
    if views == 0:
        raise BadInput("viewmats", "have no camera; give at least one view")
    for name, shape in (("viewmats", (views, 4, 4)), ("Ks", (views, 3, 3))):
        value = getattr(cameras, name)
        if value.shape != shape:
            raise BadInput(name, f"have shape {tuple(value.shape)}; give {shape}")
    if background is not None and background.shape not in ((3,), (views, 3)):
        raise BadInput("background", f"has shape {tuple(background.shape)}; give (3,) or ({views}, 3)")


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
