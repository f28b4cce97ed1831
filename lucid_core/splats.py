"""3D Gaussian splats: activated values, used in all interfaces, and the raw parameters that are optimised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import Parameter

from .errors import BadSplats

SH_C0 = 0.28209479177387814  # SH band-0 basis; colour = 0.5 + SH_C0 * sh0 (3DGS, Kerbl et al. 2023)
NO_ROTATION = 1e-12  # quaternions shorter than this are treated as 0
MIN_SCALE, MAX_OPACITY = 1e-8, 1 - 1e-6  # keep log scale and logit opacity finite


@dataclass(frozen=True)
class Splats:
    """N activated Gaussians in the world frame (3DGS / OpenCV: x right, y down, z forward; up is -y).

    means (N, 3) world units; quats (N, 4) wxyz, any non-zero length; scales (N, 3) linear standard
    deviations; opacities (N,) in [0, 1]; sh (N, K, 3) coefficients, K = (degree + 1)**2, degree 0 to 3.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Spherical harmonics degree, 0 to 3."""
        return round(math.sqrt(self.sh.shape[1])) - 1

    def map(self, f: Callable[[Tensor], Tensor]) -> Splats:
        """Apply `f` to each of the five tensors."""
        return Splats(*(f(getattr(self, field.name)) for field in fields(self)))

    def detach(self) -> Splats:
        """A copy without autograd history."""
        return self.map(lambda x: x.detach().clone())

    def with_sh_degree(self, degree: int) -> Splats:
        """The same splat with SH bands up to `degree` at least; new coefficients are 0."""
        missing = (degree + 1) ** 2 - self.sh.shape[1]
        return replace(self, sh=torch.nn.functional.pad(self.sh, (0, 0, 0, max(missing, 0))))

    def scale_by(self, factor: float) -> Splats:
        """Scale positions and scales by `factor` about the origin."""
        return replace(self, means=self.means * factor, scales=self.scales * factor)


def round_splats(points: Tensor, scales: Tensor | float, opacity: float, colors: Tensor) -> Splats:
    """Round Gaussians of SH degree 0 at points (N, 3).

    scales: standard deviations (N,) or one for all. opacity: in [0, 1]. colors: sRGB (N, 3) in [0, 1].
    """
    n = len(points)
    return Splats(
        points,
        points.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        torch.as_tensor(scales).to(points).expand(n)[:, None].repeat(1, 3),
        points.new_full((n,), opacity),
        ((colors - 0.5) / SH_C0)[:, None],
    )


def validate(splats: Splats) -> None:
    """Raise BadSplats unless `splats` is non-empty, finite and of consistent shapes."""
    validate_shapes(splats)
    n = len(splats)
    if n == 0:
        raise BadSplats("number of Gaussians", "is 0; use a splat that has some")
    for name, value in vars(splats).items():
        bad = int((~torch.isfinite(value)).reshape(n, -1).any(dim=1).sum())
        if bad:
            raise BadSplats(name, f"are not finite in {bad} of {n} Gaussians; repair or remove these first")
    length = splats.quats.norm(dim=1)
    still = int(((length < NO_ROTATION) | (length == math.inf)).sum())
    if still:
        raise BadSplats(
            "quats",
            f"are 0 or overflow in {still} of {n} Gaussians (no rotation); repair or remove these first",
        )


def validate_shapes(splats: Splats) -> None:
    """Raise BadSplats unless the shapes are those that `Splats` states; N may be 0."""
    n = splats.means.shape[:1].numel()
    k = splats.sh.shape[1] if splats.sh.ndim == 3 else -1
    if k not in (1, 4, 9, 16):
        raise BadSplats("sh", f"have shape {tuple(splats.sh.shape)}; give (N, K, 3) with K 1, 4, 9 or 16")
    shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh": (n, k, 3)}
    for name, shape in shapes.items():
        value = getattr(splats, name)
        if value.shape != shape:
            raise BadSplats(name, f"have shape {tuple(value.shape)}; give {shape}")


def repair(splats: Splats) -> tuple[Splats, str]:
    """Remove all-zero rows and replace zero quaternions by the identity; returns (splat, message or "").

    A zero quaternion (or one whose length overflows) defines no rotation, gets no gradient, and renders
    differently in every viewer.
    """
    shapes = [tuple(getattr(splats, name).shape[1:]) for name in ("means", "quats", "scales")]
    same_length = {x.shape[:1] for x in vars(splats).values()} == {splats.quats.shape[:1]}
    if not same_length or shapes != [(3,), (4,), (3,)]:
        return splats, ""  # invalid shapes are left to `validate`
    length = splats.quats.norm(dim=1)
    still = (length < NO_ROTATION) | (length == math.inf)
    empty = still & (splats.scales == 0).all(1) & (splats.means == 0).all(1)
    if not still.any():
        return splats, ""
    quats = torch.where(still[:, None], splats.quats.new_tensor([1.0, 0.0, 0.0, 0.0]), splats.quats)
    done = []
    if empty.any():
        done += [f"{int(empty.sum())} of {len(splats)} Gaussians are all zero and were removed"]
    unrotated = int((still & ~empty).sum())
    done += [f"the rotation of {unrotated} Gaussians was 0 and was set to the identity"] if unrotated else []
    return replace(splats, quats=quats).map(lambda x: x[~empty]), "; ".join(done)


def parameters(splats: Splats) -> dict[str, Parameter]:
    """Activated splats -> raw parameters, as copies, with the keys and activations of gsplat's strategies.

    means (N, 3), unit quats (N, 4) wxyz, log scales (N, 3), logit opacities (N,), sh0 (N, 1, 3), shN
    (N, K-1, 3).
    """
    raw = {
        "means": splats.means,
        "quats": torch.nn.functional.normalize(splats.quats, dim=-1),
        "scales": splats.scales.clamp_min(MIN_SCALE).log(),
        "opacities": splats.opacities.clamp(1 - MAX_OPACITY, MAX_OPACITY).logit(),
        "sh0": splats.sh[:, :1],
        "shN": splats.sh[:, 1:],
    }
    return {name: Parameter(value.detach().clone()) for name, value in raw.items()}


def activate(params: Mapping[str, Tensor]) -> Splats:
    """Raw parameters -> activated splats; inverse of `parameters`, differentiable."""
    return Splats(
        means=params["means"],
        quats=params["quats"],
        scales=params["scales"].exp(),
        opacities=params["opacities"].sigmoid(),
        sh=torch.cat([params["sh0"], params["shN"]], dim=1),
    )
