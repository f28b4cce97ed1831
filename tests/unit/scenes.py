"""Scenes that several tests share: runs of the loop with a prior whose wish is known, and splats to
render.
"""

from dataclasses import replace

import torch
from same import same

from lucid_core.cameras import CameraRanges, Cameras, turntable
from lucid_core.conditioning.control_images import RenderedBatch
from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import OutOfMemory
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.optimize.config import DreamConfig
from lucid_core.optimize.densify import Densify
from lucid_core.optimize.loop import distil
from lucid_core.rasterize import Render, Renderer, rasterize
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.splats import Splats
from lucid_core.starts.shapes import PointCloud

from .priors import GaussianPrior

# ---- runs of the loop

SIZE = 64
CONFIG = replace_settings(
    DreamConfig(),
    steps=60,
    views=2,
    resolution=SIZE,
    lr_means=(5e-3, 1e-3),
    lr_quats=(1e-2, 2e-3),
    lr_scales=(1e-2, 3e-3),
    lr_opacities=(1e-1, 3e-2),
    lr_sh=(5e-2, 1e-2),
    adam_betas=(0.9, 0.99),
    tv_weight=0.0,
    scale_weight=0.0,
    disparity_share=0.0,
    background_share=0.0,
    flip_share=0.0,
    densify=Densify(grow_grad2d=NO_GROWTH, reset_every=0.0),
)
METHOD = ISM(cfg=1.0, delta_s=0.5, inversion_steps=1)
CAMERAS = CameraRanges(
    radius_min=5.3,
    radius_max=5.3,
    fovy_min_deg=26,
    fovy_max_deg=26,
    widen=1.0,
    radius_min_end=5.3,
    radius_max_end=5.3,
    fovy_min_end_deg=26,
    fovy_max_end_deg=26,
)
GROWING = Densify(
    start=0.0,
    stop=0.9,
    every=0.15,
    grow_grad2d=1e-6,
    grow_scale3d=0.05,
    prune_opacity=0.03,
    reset_every=0.4,
    max_splats=1500,
)
MCMC = Densify(strategy="mcmc", start=0.1, stop=1.0, every=0.2, prune_opacity=0.02, reset_every=0.0)


def dream(splats, prior, guidance, prompts, cameras, config, seed, *more, **others):
    """`distil` with one guidance."""
    return distil(splats, GuidanceSource(prior, guidance, prompts), cameras, config, seed, *more, **others)


class WishPrior(GaussianPrior):
    """Images ~ N(mean, variance), both from the conditioning: (1, 4, H, W), three channels of mean and one of
    variance.
    """

    def denoise(self, z, sigma, conds):
        self.evaluations += len(z) * len(conds)
        split = [(cond[:, :3], cond[:, 3:]) for cond in conds]
        return [(v * z + sigma**2 * mean) / (v + sigma**2) for mean, v in split]


def normal(mean, variance):
    return torch.cat([mean, torch.full_like(mean[:, :1], variance)], 1)


def disc(color):
    """(1, 3, SIZE, SIZE) a coloured disc on white: what a ball looks like from everywhere."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    inside = (axis[:, None] ** 2 + axis[None] ** 2 < 0.6**2)[None, None].float()
    return torch.tensor(color)[None, :, None, None] * inside + (1 - inside)


def prompts_of_a_disc():
    """For WishPrior: a red disc from everywhere."""
    wish, anything = normal(disc([0.9, 0.2, 0.1]), 0.01), normal(disc([0.5, 0.5, 0.5]), 1.0)
    return Prompts((wish,) * 4, negative=anything, inverse=anything)


def run(config=CONFIG, seed=0, start=None):
    start = splats(600) if start is None else start
    return list(dream(start, WishPrior(), METHOD, prompts_of_a_disc(), CAMERAS, config, seed))


def splats(count=200):
    return PointCloud(count=count, size=1.2).splats(0)


def arguments(config):
    return {
        "splats": splats(),
        "prior": WishPrior(),
        "guidance": METHOD,
        "prompts": prompts_of_a_disc(),
        "cameras": CAMERAS,
        "config": replace_settings(config, steps=10),
        "seed": 0,
    }


def batch_of(images, views):
    """These images as they would be rendered; nothing but the colours is looked at."""
    return RenderedBatch(
        images, views, Render(images, images[..., :1], images[..., :1], {}), Renderer("numba")
    )


class SmallMemory(WishPrior):
    """Fails above `views` at a time; its encoder mixes the pixels of a view, so that gradients have to pass
    it.
    """

    def __init__(self, views=1000, fails_in_backward=False):
        super().__init__()
        self.views, self.fails_in_backward, self.seen = views, fails_in_backward, []

    def encode(self, images):
        if self.fails_in_backward:
            images = images.clone()
            if images.requires_grad:
                images.register_hook(lambda grad: self.require(len(grad), torch.cuda.OutOfMemoryError))
        else:
            self.require(len(images), OutOfMemory)
        kernel = torch.linspace(-1, 1, 81).reshape(3, 3, 3, 3)
        return torch.nn.functional.conv2d(super().encode(images), kernel, padding=1).tanh()

    def denoise(self, z, sigma, conds):
        if not self.fails_in_backward:
            self.require(len(z), OutOfMemory)
        self.seen.append(len(z))
        return super().denoise(z, sigma, conds)

    def require(self, views, error):
        if views > self.views:
            raise error("on purpose")


def same_end(a, b):
    return (a.step, a.losses, a.evaluations) == (b.step, b.losses, b.evaluations) and same(a.splats, b.splats)


# ---- splats to render

FIELDS = ("means", "quats", "scales", "opacities", "sh")
W, H = 50, 37  # neither a multiple of the tile


def random_splats(n=120, seed=0, spread=0.5, scale=0.15, sh_degree=0) -> Splats:
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(n, 3, generator=g) * spread,
        quats=torch.randn(n, 4, generator=g),
        scales=torch.rand(n, 3, generator=g) * scale + 0.01,
        opacities=torch.rand(n, generator=g),
        sh=torch.randn(n, (sh_degree + 1) ** 2, 3, generator=g) * 0.5,
    )


def needles() -> Splats:
    splats = random_splats(seed=1)
    return replace(splats, scales=splats.scales * torch.tensor([8.0, 0.05, 0.05]))


def off_center() -> Splats:
    splats = random_splats(seed=2)
    return replace(splats, means=splats.means + torch.tensor([1.3, 0.9, 0.0]))


def around_the_camera() -> Splats:
    """Behind, beside and hard against the camera, with the Jacobian's clamp at work."""
    return random_splats(n=200, seed=3, spread=3.0, scale=0.4)


def wall() -> Splats:
    """Opaque layers over part of the image: pixels stop early, their tiles do not."""
    splats = random_splats(n=60, seed=4, spread=0.3, scale=0.5)
    return replace(splats, opacities=torch.ones(60), means=splats.means - torch.tensor([0.6, 0.0, 0.0]))


def faint_and_opaque() -> Splats:
    splats = random_splats(seed=5)
    values = torch.tensor([0.0, 1e-6, 0.0035, 0.0045, 0.9985, 0.9995, 1.0, 0.5])
    return replace(splats, opacities=values.repeat(15))


SCENES = {
    "random": random_splats,
    "needles": needles,
    "off_center": off_center,
    "around_the_camera": around_the_camera,
    "wall": wall,
    "faint_and_opaque": faint_and_opaque,
    "one_pixel": lambda: random_splats(seed=6, scale=0.001),
    "huge": lambda: random_splats(seed=7, scale=20.0, n=12),
    "one_splat": lambda: random_splats(n=1, seed=11, scale=0.5, spread=0.1),
    "no_splats": lambda: random_splats(n=0),
    "sh_degree_1": lambda: random_splats(seed=8, sh_degree=1),
    "sh_degree_2": lambda: random_splats(seed=9, sh_degree=2),
    "sh_degree_3": lambda: random_splats(seed=10, sh_degree=3),
}


def as_dtype(cameras: Cameras, dtype) -> Cameras:
    return Cameras(cameras.viewmats.to(dtype), cameras.Ks.to(dtype))


def three_views(width=W, height=H, dtype=torch.float32) -> Cameras:
    return as_dtype(turntable(3, 20.0, 3.0, 50.0, width, height), dtype)


def relative_error(value, truth) -> float:
    value, truth = value.double(), truth.double()
    return ((value - truth).norm() / truth.norm().clamp_min(1e-12)).item()


def render_and_gradients(splats, cameras, backend, dtype, width=W, height=H, background=(0.2, 0.5, 0.9)):
    """-> (outputs, gradients) of a random weighting of all three images."""
    splats = splats.map(lambda x: x.to(dtype).requires_grad_())
    background = torch.tensor(background, dtype=dtype, requires_grad=True)
    render = rasterize(
        splats, as_dtype(cameras, dtype), width, height, background=background, backend=backend
    )
    render.info["means2d"].retain_grad()
    g = torch.Generator().manual_seed(100)
    outputs = {"rgb": render.rgb, "alpha": render.alpha, "depth": render.depth}
    loss = sum((x * torch.randn(x.shape, generator=g).to(dtype)).sum() for x in outputs.values())
    loss.backward()
    gradients = {name: getattr(splats, name).grad for name in FIELDS}
    gradients |= {"background": background.grad, "means2d": render.info["means2d"].grad}
    return {name: x.detach() for name, x in outputs.items()} | {"radii": render.info["radii"]}, gradients
