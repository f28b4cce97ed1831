"""Polish of a texture: image targets of a textured mesh, whose texels are optimised and whose shape is not.

As in a run of image targets (guidance/image_targets.py), the model makes pictures of the rendered views, and
cheap steps fit to them what was rendered. A render is linear in the texels (bake/shade.py). What is optimised
is a change of the colours, on a grid over the surface whose cells are as large as a pixel of the views: the
pictures say nothing about smaller parts, which would become noise, and the texture keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from ..bake.fill import nearest_texels
from ..bake.shade import Footprint, footprint
from ..bake.surface import points_in_texels, require_uvs
from ..cameras import CameraRanges, Cameras, Views
from ..conditioning.control_images import RenderedBatch
from ..diffusion.prior import is_out_of_memory
from ..errors import BadInput
from ..frames import RADIUS, Frame
from ..guidance.image_targets import ImageTargets
from ..guidance.mixing import GuidanceSource
from ..rasterize import Render, Renderer, to_device
from ..settings import check_bounds, require, setting
from ..starts.mesh import Mesh, validate
from .config import Budget
from .guards import require_finite
from .loop import GuidedSteps

CELL = 4.0  # side of a cell: CELL * radius / resolution, about a pixel of a view
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

    The mesh is moved into the cameras' view; the result has its vertices, UVs and faces. Texels farther than
    a pixel from what target images show stay as they are. Colours of vertices are left out. Where a batch of
    views does not fit into memory, the model is evaluated on fewer at a time. All random numbers follow from
    `seed`, drawn on the CPU. The device of `backend` does the fit.

    Raises BadSetting or BadInput for a mesh that cannot be textured, TypeError for a guidance that makes no
    targets, NotFinite for a picture that is not finite, OutOfMemory for a view that does not fit.
    """
    targets = source.targets
    mesh = require_textured(mesh)
    frame = Frame.of_points(mesh.vertices)
    scene = replace(mesh, vertices=frame.enter_points(mesh.vertices))
    asked = GuidedSteps(source.move_to_frame(frame), Budget(config.steps, config.views, config.resolution))
    renderer, generator = Renderer(backend), Generator().manual_seed(seed)
    texels = Texels(scene, CELL * RADIUS / config.resolution, renderer.device)
    # The weight of one pixel: a cell that is hardly seen moves little, and not as fast as the others.
    one_pixel = 1 / (3 * config.views * config.resolution**2)
    optimizer = torch.optim.Adam([texels.change], lr=config.rate, eps=one_pixel)
    shots: list[Shot] = []
    rounds = 0
    for step in range(config.steps):
        progress = step / config.steps
        if rounds < (due := targets.rounds(progress, config.steps)):
            views = cameras.sample(targets.views, 1.0, config.resolution, config.resolution, generator)
            batch, seen = render(scene, texels.final(), views, config.resolution, renderer)
            pictures = make_targets(asked, batch, progress, generator)
            require_finite({"a picture of the model": pictures}, step + 1, config.steps)
            shots, rounds = [*shots, *map(Shot, seen, pictures)][-targets.kept :], due
        optimizer.param_groups[0]["lr"] = config.rate * (1 - progress)
        drawn = [shots[i] for i in torch.randperm(len(shots), generator=generator)[: config.views].tolist()]
        colors = texels.colors().requires_grad_()
        loss, picture = compare(drawn, texels.texture(colors), targets)
        loss.backward()
        texels.pass_back(colors)
        optimizer.step()
        polished = lambda: replace(mesh, texture=texels.final().cpu())
        yield Polished(step + 1, float(loss.detach()), source.evaluations, picture.cpu(), polished)


def compare(shots: list[Shot], texture: Tensor, targets: ImageTargets) -> tuple[Tensor, Tensor]:
    """The loss of the texture (h, w, 3), and the first view as it is now (H, W, 3).

    Pixels that the mesh does not cover wholly do not count: the outline of a target image may differ.
    """
    images = torch.stack([on_white(shot.seen, texture) for shot in shots])
    wanted = torch.stack([shot.picture for shot in shots])
    whole = torch.stack([shot.seen.alpha for shot in shots]) >= WHOLE
    return targets.difference(torch.where(whole, images, wanted), wanted), images[0].detach()


class Texels:
    """The colours of a textured mesh and their `change` (M, 3), which is optimised.

    The change of a texel is interpolated trilinearly between the corners of its cell. cell: side of a cell.
    Gaps between charts take the colour of the nearest texel in a face.
    """

    def __init__(self, mesh: Mesh, cell: float, device: torch.device) -> None:
        assert mesh.texture is not None
        self.shape = height, width, _ = mesh.texture.shape
        index, points = points_in_texels(mesh, width, height)
        corners, weights = corners_of(points, cell)
        self.start = mesh.texture.reshape(-1, 3)[index].float().to(device)
        self.owner = nearest_texels(index, width, height).to(device)
        self.mean = matrix_of(corners, weights).to(device)
        self.transposed = self.mean.to_sparse_coo().T.to_sparse_csr()
        self.change = Parameter(torch.zeros(self.mean.shape[1], 3, device=device))

    @torch.no_grad()
    def colors(self) -> Tensor:
        """The colours (T, 3), which may leave [0, 1] a little."""
        return self.start + self.mean @ self.change

    def pass_back(self, colors: Tensor) -> None:
        """Give the gradient of `colors` (T, 3) to the change. Autograd's own way is 20 times as slow."""
        self.change.grad = self.transposed @ colors.grad

    def texture(self, colors: Tensor) -> Tensor:
        """The texture (h, w, 3) of colours (T, 3); differentiable."""
        return colors.index_select(0, self.owner).reshape(self.shape)

    def final(self) -> Tensor:
        """The texture (h, w, 3) in [0, 1]."""
        return self.texture(self.colors().clamp(0, 1))


def matrix_of(columns: Tensor, values: Tensor) -> Tensor:
    """The sparse matrix (T, M) whose rows have `values` (T, K) in `columns` (T, K)."""
    count, each = columns.shape
    rows, width = torch.arange(0, count * each + 1, each), int(columns.max()) + 1
    return torch.sparse_csr_tensor(
        rows, columns.flatten(), values.flatten(), (count, width), check_invariants=True
    )


def corners_of(points: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """The corners of the cells around points (T, 3): their numbers (T, 8), from 0, and weights (T, 8)."""
    scaled = (points - points.amin(0)) / cell
    low = scaled.floor()
    part = scaled - low
    steps = torch.cartesian_prod(*[torch.arange(2)] * 3)  # (8, 3)
    weights = torch.where(steps == 1, part[:, None], 1 - part[:, None]).prod(-1)
    place = low.long()[:, None] + steps
    side = int(place.max()) + 1
    key = (place[..., 0] * side + place[..., 1]) * side + place[..., 2]
    return torch.unique(key, return_inverse=True)[1], weights


def require_textured(mesh: Mesh) -> Mesh:
    """The mesh without colours of its vertices. Raises BadSetting or BadInput if it has no valid texture."""
    validate(mesh)
    if mesh.uvs is None or mesh.texture is None:
        raise BadInput("the mesh", "has no texture; connect the mesh of Lucid Bake Texture")
    return replace(mesh, vertices=mesh.vertices.float(), uvs=require_uvs(mesh.uvs), colors=None)


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


def make_targets(steps: GuidedSteps, batch: RenderedBatch, progress: float, generator: Generator) -> Tensor:
    """The target images (B, H, W, 3), made of fewer views at a time while memory is too small."""
    state = generator.get_state()
    while True:
        try:
            source = steps.active
            assert isinstance(source, GuidanceSource)
            return source.pictures(batch, progress, generator)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            steps.save_memory(error)
            generator.set_state(state)
