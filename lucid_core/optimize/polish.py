"""Polish of a texture: image targets of a textured mesh, whose texels are optimised and whose shape is not.

As in a run of image targets (guidance/image_targets.py), the model makes pictures of the rendered views, and
cheap steps fit to them what was rendered. A render is linear in the texels (bake/shade.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from ..bake.fill import nearest_texels
from ..bake.shade import Footprint, footprint
from ..bake.surface import require_uvs, texels_in_faces
from ..cameras import CameraRanges, Cameras, Views
from ..conditioning.control_images import RenderedBatch
from ..diffusion.prior import is_out_of_memory
from ..errors import BadInput
from ..frames import Frame
from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import GuidanceSource
from ..rasterize import Render, Renderer, to_device
from ..settings import check_bounds, require, setting
from ..starts.mesh import Mesh, validate
from .config import Budget
from .guards import require_finite
from .loop import GuidedSteps

WHOLE = 1 - 1e-4  # alpha of a pixel that lies on the mesh alone


@dataclass(frozen=True)
class Polish:
    """Settings of a polish. Raises BadSetting for a value out of bounds."""

    steps: int = setting(300, 1, 100_000, "Number of optimisation steps.", step=1, advanced=False)
    views: int = setting(4, 1, 64, "Target images compared per step.", step=1, advanced=False)
    resolution: int = setting(
        512,
        64,
        2048,
        "Width and height of the views in pixels. Use the native resolution of the model.",
        step=8,
        advanced=False,
    )
    rate: float = setting(
        0.02,
        1e-4,
        1,
        "Learning rate of the texels' colours, which lie in 0 to 1. It falls linearly to 0. Higher follows "
        "the target images faster.",
        step=0.001,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        require(self.resolution % 8 == 0, "resolution", self.resolution, "a multiple of 8")


@dataclass(frozen=True)
class Polished:
    """One finished step, from 1. loss: of its views. picture (H, W, 3): its first view, on the CPU."""

    step: int
    loss: float
    evaluations: int
    picture: Tensor
    mesh: Callable[[], Mesh]  # the mesh with the texture of this step; valid until the next step begins


@dataclass(frozen=True)
class Shot:
    """A target image (H, W, 3) of one view, on white, and where the view sees the texture."""

    seen: Footprint
    picture: Tensor


def polish(
    mesh: Mesh,
    source: GuidanceSource,
    cameras: CameraRanges,
    config: Polish,
    seed: int,
    backend: str = "auto",
) -> Iterator[Polished]:
    """Optimise the texture of `mesh`, which has UVs, by image targets; yields after every step.

    The mesh is moved into the cameras' view; the result has its vertices, UVs and faces. Texels that no
    target image shows stay as they are. Colours of vertices are left out. Where a batch of views does not fit
    into memory, the model is evaluated on fewer at a time. All random numbers follow from `seed`, drawn on
    the CPU. The device of `backend` does the fit.

    Raises BadSetting or BadInput for a mesh that cannot be textured, TypeError for a guidance that makes no
    targets, NotFinite for a picture that is not finite, OutOfMemory for a view that does not fit.
    """
    targets = source.targets
    mesh = require_textured(mesh)
    frame = frame_of(mesh)
    scene = replace(mesh, vertices=frame.enter_points(mesh.vertices))
    asked = GuidedSteps(source.move_to_frame(frame), Budget(config.steps, config.views, config.resolution))
    renderer, generator = Renderer(backend), Generator().manual_seed(seed)
    texels = Texels(mesh, renderer.device)
    optimizer = torch.optim.Adam([texels.colors], lr=config.rate)
    shots: list[Shot] = []
    rounds = 0
    for step in range(config.steps):
        progress = step / config.steps
        if rounds < (due := targets.rounds(progress, config.steps)):
            views = cameras.sample(targets.views, 1.0, config.resolution, config.resolution, generator)
            batch, seen = render(scene, texels.texture().detach(), views, config.resolution, renderer)
            pictures = ask(asked, batch, progress, generator)
            require_finite({"a picture of the model": pictures}, step + 1, config.steps)
            shots, rounds = [*shots, *map(Shot, seen, pictures)][-targets.kept :], due
        optimizer.param_groups[0]["lr"] = config.rate * (1 - progress)
        drawn = [shots[i] for i in torch.randperm(len(shots), generator=generator)[: config.views].tolist()]
        loss, picture = compare(drawn, texels.texture(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        texels.clamp()
        yield Polished(step + 1, float(loss.detach()), source.evaluations, picture.cpu(), texels.mesh)


def compare(shots: list[Shot], texture: Tensor, targets: ImageTargets) -> tuple[Tensor, Tensor]:
    """The loss of the texture (h, w, 3), and the first view as it is now (H, W, 3).

    Pixels that the mesh does not cover wholly do not count: the outline of a target image may differ.
    """
    images = torch.stack([on_white(shot.seen, texture) for shot in shots])
    wanted = torch.stack([shot.picture for shot in shots])
    whole = torch.stack([shot.seen.alpha for shot in shots]) >= WHOLE
    return targets.difference(torch.where(whole, images, wanted), wanted), images[0].detach()


class Texels:
    """The texels of a mesh as parameters: `colors` (T, 3) of those in its faces; gaps take the nearest."""

    def __init__(self, mesh: Mesh, device: torch.device) -> None:
        assert mesh.texture is not None
        self.start, (height, width) = mesh, mesh.texture.shape[:2]
        index, _ = texels_in_faces(mesh, width, height)
        self.owner = nearest_texels(index, width, height).to(device)
        self.colors = Parameter(mesh.texture.reshape(-1, 3)[index].float().clone().to(device))

    def texture(self) -> Tensor:
        """The texture (h, w, 3); differentiable."""
        assert self.start.texture is not None
        return self.colors[self.owner].reshape(self.start.texture.shape)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the colours in [0, 1]."""
        self.colors.clamp_(0, 1)

    def mesh(self) -> Mesh:
        """The mesh with this texture, on the CPU."""
        return replace(self.start, texture=self.texture().detach().cpu())


def require_textured(mesh: Mesh) -> Mesh:
    """The mesh without colours of its vertices. Raises BadSetting or BadInput if it has no valid texture."""
    validate(mesh)
    if mesh.uvs is None or mesh.texture is None:
        raise BadInput("the mesh", "has no texture; connect the mesh of Lucid Bake Texture")
    return replace(mesh, vertices=mesh.vertices.float(), uvs=require_uvs(mesh.uvs), colors=None)


def frame_of(mesh: Mesh) -> Frame:
    """The frame in which the cameras see the whole mesh, its box about the origin."""
    centre = (mesh.vertices.amin(0) + mesh.vertices.amax(0)).double() / 2
    radius = float((mesh.vertices - centre).norm(dim=-1).max())
    return Frame(tuple(centre.tolist()), max(radius, 1e-12))


@torch.no_grad()
def render(
    mesh: Mesh, texture: Tensor, views: Views, size: int, renderer: Renderer
) -> tuple[RenderedBatch, list[Footprint]]:
    """The views (B, size, size, 3) of the mesh on white, and where each sees the texture (h, w, 3)."""
    cameras, device = views.cameras, renderer.device
    each = zip(cameras.viewmats, cameras.Ks, strict=True)
    seen = [footprint(mesh, Cameras(pose[None], K[None]), size, size).to(device) for pose, K in each]
    images = torch.stack([on_white(one, texture) for one in seen])
    alpha, depth = (torch.stack([getattr(one, name) for one in seen]) for name in ("alpha", "depth"))
    views = replace(views, cameras=to_device(cameras, device))
    shown = Render(images, alpha, depth, None)  # a mesh has no Gaussians
    return RenderedBatch(images, views, shown, renderer), seen


def on_white(seen: Footprint, texture: Tensor) -> Tensor:
    """One view (H, W, 3) of the texture (h, w, 3) on white; differentiable."""
    return seen.look_up(texture) + 1 - seen.alpha


def ask(asked: GuidedSteps, batch: RenderedBatch, progress: float, generator: Generator) -> Tensor:
    """The target images (B, H, W, 3), made of fewer views at a time while memory is too small."""
    state = generator.get_state()
    while True:
        try:
            source = asked.active
            assert isinstance(source, GuidanceSource)
            return source.pictures(batch, progress, generator)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            asked.save_memory(error)
            generator.set_state(state)
