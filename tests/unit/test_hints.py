"""What ControlNets are shown: closed forms of planes and spheres, and that it belongs to the views of the
batch.
"""

import dataclasses
import math

import pytest
import torch
from raising import raises

from lucid_core.cameras import CameraRanges, Views, intrinsics, orbit
from lucid_core.conditioning.control_images import (
    FARTHEST,
    KINDS,
    Hint,
    RenderedBatch,
    mirror,
    move_to_frame,
    normals_of,
)
from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.diffusion.prior import SplitPrior
from lucid_core.errors import BadInput, BadSetting
from lucid_core.frames import RADIUS, Frame
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import GuidanceSource, Mix, MixedSource, Phase
from lucid_core.optimize.config import DreamConfig
from lucid_core.optimize.densify import Densify
from lucid_core.optimize.gaussians import Gaussians
from lucid_core.optimize.state import Run
from lucid_core.optimize.step import Setup, backpropagate
from lucid_core.rasterize import Render, Renderer, rasterize
from lucid_core.settings import replace_settings
from lucid_core.splats import Splats
from lucid_core.starts.shapes import PointCloud, from_points

from .priors import GaussianPrior
from .scenes import dream

SIDE, FOV = 96, math.radians(40)
Ks = intrinsics(torch.tensor([FOV], dtype=torch.float64), SIDE, SIDE)


def rays():
    """(1, H, W, 3) directions with z = 1 through the middles of the pixels, in the camera's axes."""
    steps = (torch.arange(SIDE, dtype=torch.float64) + 0.5 - SIDE / 2) / Ks[0, 0, 0]
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1)[None]


def exact(z):
    """A render of depths z (1, H, W, 1); infinite where nothing is."""
    alpha = z.isfinite().to(z)
    return Render(alpha.expand(-1, -1, -1, 3), alpha, torch.where(alpha > 0, z, 0), {})


def plane(normal, distance=5.0):
    """All points p with p . normal = -distance; the unit normal faces the camera."""
    n = torch.nn.functional.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
    return exact(-distance / (rays() @ n)[..., None]), n


def sphere(distance=5.0, radius=1.2):
    """Its render and the outward normals (1, H, W, 3) of what is seen."""
    d, centre = rays(), torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
    a, b, c = d.square().sum(-1), d @ centre, distance**2 - radius**2
    under = b**2 - a * c
    z = torch.where(under > 0, (b - under.clamp_min(0).sqrt()) / a, torch.inf)[..., None]
    return exact(z), (z.nan_to_num(posinf=0) * d - centre) / radius


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.6, 0, -1), (-0.5, 0.3, -1), (0.2, -0.7, -1)])
def test_normals_of_a_plane(normal):
    render, n = plane(normal)
    inner = normals_of(render, Ks)[:, 4:-4, 4:-4]
    torch.testing.assert_close(inner, n.expand_as(inner), rtol=0, atol=2e-2)


def test_normals_of_a_sphere():
    """Within 2 degrees where it does not turn away by more than 45, although depth is averaged."""
    render, truth = sphere()
    cos = (normals_of(render, Ks) * truth).sum(-1)[(render.alpha[..., 0] > 0) & (truth[..., 2] < -0.7)]
    assert cos.clamp(max=1).arccos().rad2deg().max() < 2


@pytest.mark.parametrize(
    "normal, color",
    [
        ((0, 0, -1), (0.5, 0.5, 1)),
        ((-1, 0, -1), (0.85, 0.5, 0.85)),
        ((1, 0, -1), (0.15, 0.5, 0.85)),
        ((0, -1, -1), (0.5, 0.85, 0.85)),
    ],
    ids=["facing", "to the left", "to the right", "up"],
)
def test_colours_of_normals(normal, color):
    """Red is left, green is up, blue is to the viewer, as in Bae's maps of ScanNet."""
    render, _ = plane(normal, 3.0)
    middle = KINDS["normal"](render, Ks)[0, SIDE // 2, SIDE // 2]
    torch.testing.assert_close(middle, torch.tensor(color, dtype=torch.float64), rtol=0, atol=0.02)


def test_a_mirrored_normal_map_faces_the_other_way():
    render, _ = plane((-1, 0.3, -1))
    there = KINDS["normal"](mirror(render), Ks)
    expected = KINDS["normal"](render, Ks).flip(2)
    expected[..., 0] = 1 - expected[..., 0]
    torch.testing.assert_close(there, expected)


def test_depth_is_linear_in_inverse_depth_near_white_and_black_where_nothing_is():
    render, _ = sphere()
    picture = KINDS["depth"](render, Ks)
    solid = render.alpha[..., 0] > 0
    inverse, grey = 1 / render.depth[..., 0][solid], picture[..., 0][solid]
    assert picture.max() == 1 and grey.argmax() == inverse.argmax() and (picture[~solid] == 0).all()
    assert grey.min() == pytest.approx(FARTHEST)
    scaled = (inverse - inverse.min()) / (inverse.max() - inverse.min())
    torch.testing.assert_close(grey, FARTHEST + (1 - FARTHEST) * scaled)


def test_depth_scales_each_view_by_itself_and_stands_flat_and_empty_ones():
    near, far, empty = (
        plane((0, 0, -1), 2.0)[0],
        sphere()[0],
        exact(torch.full((1, SIDE, SIDE, 1), torch.inf)),
    )
    join = lambda name: torch.cat([getattr(render, name) for render in (near, far, empty)])
    together = KINDS["depth"](Render(join("rgb"), join("alpha"), join("depth"), {}), Ks.expand(3, -1, -1))
    assert (together[0] == 1).all() and (together[2] == 0).all()
    torch.testing.assert_close(together[1:2], KINDS["depth"](far, Ks))


def test_canny_finds_the_outline_of_a_square():
    rgb = torch.zeros(1, 64, 64, 3)
    rgb[:, 20:44, 20:44] = torch.tensor([0.9, 0.2, 0.1])
    edges = KINDS["canny"](Render(rgb, rgb[..., :1], rgb[..., :1], {}), Ks)
    assert set(edges.unique().tolist()) == {0.0, 1.0} and edges[0, 32, 19:22].max() == 1
    assert edges[0, 24:40, 24:40].max() == 0 == edges[0, :18].max()


def ball(count=4000):
    """A solid sphere of radius 0.6 in float32 splats."""
    points = PointCloud(shape="sphere", count=count, size=1.2, color_noise=0.0).splats(0).means
    return from_points(points, torch.full((count, 3), 0.5), 0.95)


def test_normals_of_a_rendered_ball():
    """Within 9 degrees on average although its depth is a sum of Gaussians."""
    cameras = orbit(*torch.tensor([[0.7], [0.2], [5.0], [FOV / 2]]), 128, 128)
    render = rasterize(ball(), cameras, 128, 128, backend="numba")
    normals = normals_of(render, cameras.Ks)[0]
    y, x = torch.meshgrid(*[(torch.arange(128) + 0.5 - 64) / cameras.Ks[0, 0, 0]] * 2, indexing="ij")
    z = (render.depth / render.alpha.clamp_min(1e-6))[0]
    outward = torch.nn.functional.normalize(
        torch.stack([x, y, torch.ones_like(x)], -1) * z - torch.tensor([0, 0, 5.0]), dim=-1
    )
    cos = (normals * outward).sum(-1)[(render.alpha[0, ..., 0] > 0.9) & (outward[..., 2] < -0.5)]
    assert cos.clamp(max=1).arccos().rad2deg().mean() < 9


class Shown(GaussianPrior):
    """Under the conditioning "controlled" it answers with the hint of each view: rows that do not belong
    would be seen.
    """

    def __init__(self):
        super().__init__(0.5)
        self.hints, self.log = None, []

    def set_control_images(self, hints):
        self.hints = hints
        self.log.append(hints)

    def encode(self, images):
        self.images = images.detach()
        return super().encode(images)

    def blend(self, conds, weights):
        return conds[0]

    def denoise(self, z, sigma, conds):
        self.evaluations += len(z) * len(conds)
        return [
            self.hints[0].movedim(-1, 1) if cond == "controlled" else z / (1 + sigma**2) for cond in conds
        ]


CONFIG = replace_settings(
    DreamConfig(), steps=6, views=5, resolution=64, densify=Densify(start=0.0, stop=0.0)
)
PROMPTS = Prompts(("controlled",) * 4, "controlled", "free", hints=(Hint("depth"),))


def gradients(prior, **changes):
    """What one batch of five views gives the parameters."""
    return gradients_of(GuidanceSource(prior, ISM(), PROMPTS), **changes)


def gradients_of(source, **changes):
    config = replace_settings(CONFIG, **changes)
    run = Run(Gaussians(PointCloud(count=200, size=1.2).splats(0), config, Renderer("numba")), seed=5)
    backpropagate(run, Setup(config, CameraRanges(), Renderer("numba")), Phase(source, 0.4), 0)
    return {name: param.grad for name, param in run.params.items()}


def test_hints_need_a_prior_with_controlnets():
    with raises(BadInput, name="hints"):
        gradients(GaussianPrior())


def test_each_part_of_a_split_batch_is_shown_its_own_hints():
    whole, parts, seen = gradients(Shown()), gradients(SplitPrior(part := Shown(), 2)), []
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)
    seen = [len(hints[0]) for hints in part.log]
    assert set(seen) == {2, 1} and seen[:3] == [2, 2, 1]


def test_each_of_two_teachers_is_shown_its_own_hints():
    first, second, alone = Shown(), Shown(), Shown()
    normals = dataclasses.replace(PROMPTS, hints=(Hint("normal"), Hint("depth")))
    gradients_of(
        MixedSource(GuidanceSource(first, ISM(), PROMPTS), GuidanceSource(second, ISM(), normals), Mix("add"))
    )
    gradients(alone)
    assert torch.equal(first.hints[0], alone.hints[0]) and torch.equal(second.hints[1], first.hints[0])
    assert not torch.equal(second.hints[0], first.hints[0]) and len(first.log) == len(second.log) == 1


def test_hints_are_mirrored_with_the_views():
    straight, flipped = Shown(), Shown()
    gradients(straight, flip_share=0.0)
    gradients(flipped, flip_share=1.0)
    torch.testing.assert_close(flipped.images, straight.images.flip(2))
    torch.testing.assert_close(flipped.log[0][0], straight.log[0][0].flip(2))
    assert not torch.equal(straight.log[0][0], flipped.log[0][0])


def test_the_hint_is_of_the_object_also_where_the_model_sees_its_disparity():
    plain, disparity = Shown(), Shown()
    gradients(plain, disparity_share=0.0)
    gradients(disparity, disparity_share=1.0)
    assert not torch.equal(plain.images, disparity.images) and torch.equal(
        plain.log[0][0], disparity.log[0][0]
    )


def test_no_gradient_passes_through_hints():
    prior = Shown()
    gradients(prior)
    assert not prior.hints[0].requires_grad


def test_a_hint_follows_the_splat_and_a_guide_does_not():
    prior = Shown()
    both = dataclasses.replace(PROMPTS, hints=(Hint("depth"), Hint("depth", ball())))
    still = CameraRanges(
        azimuth_min_deg=0,
        azimuth_max_deg=0,
        elevation_min_deg=0,
        elevation_max_deg=0,
        radius_min=5,
        radius_max=5,
        radius_min_end=5,
        radius_max_end=5,
        fovy_min_deg=30,
        fovy_max_deg=30,
        fovy_min_end_deg=30,
        fovy_max_end_deg=30,
        jitter_center=0,
        jitter_target=0,
        jitter_up=0,
    )
    config = replace_settings(CONFIG, flip_share=0.0, scale_jitter=0.0)
    list(dream(PointCloud(count=200, size=1.2).splats(0), prior, ISM(), both, still, config, seed=0))
    assert len(prior.log) == 6 and not torch.equal(prior.log[0][0], prior.log[-1][0])
    assert torch.equal(prior.log[0][1], prior.log[-1][1])


def test_a_guide_is_seen_by_the_same_cameras():
    """As the splat itself would be, when it is its own guide; from another side it looks different."""
    splats = ball(500)
    part = Splats(**{name: value[splats.means[:, 0] > 0] for name, value in vars(splats).items()})
    angles = torch.tensor([0.0, 1.2])
    cameras = orbit(angles, *torch.tensor([[0.1], [5.0], [0.4]]).expand(-1, 2), 64, 64)
    render = rasterize(part, cameras, 64, 64, backend="numba")
    views = Views(cameras, angles, torch.full((2,), 0.1))
    batch = RenderedBatch(render.rgb, views, render, Renderer("numba"), mirrored=True)
    for kind in KINDS:
        own, guided = batch.control_images((Hint(kind), Hint(kind, part)))
        assert torch.equal(own, guided) and not torch.equal(own[0], own[1]) and own.shape == (2, 64, 64, 3)
        assert own.min() >= 0 and own.max() <= 1


def test_a_guide_goes_where_the_splat_is_fitted_to():
    frame = Frame((1.0, 2.0, 3.0), 10 * RADIUS)
    hints = (Hint("depth", ball(50)), Hint("normal"))
    moved, own = (
        GuidanceSource(Shown(), ISM(), dataclasses.replace(PROMPTS, hints=hints))
        .move_to_frame(frame)
        .prompts.hints
    )
    assert move_to_frame(hints, None) == hints
    torch.testing.assert_close(moved.guide.means, (ball(50).means - torch.tensor([1.0, 2, 3])) / 10)
    assert own.guide is None


def test_an_unknown_hint_is_refused():
    with raises(BadSetting, name="hint", value="'pose'", allowed="one of depth, normal, canny, image"):
        Hint("pose")


def test_a_resumed_run_with_hints_is_the_run():
    start, ranges = PointCloud(count=100, size=1.2).splats(0), CameraRanges()
    steps = lambda resume=None: dream(start, Shown(), ISM(), PROMPTS, ranges, CONFIG, seed=2, resume=resume)
    run = steps()
    for step in run:
        if step.step == 3:
            kept = step.checkpoint()
        last = step
    *_, again = steps(kept)
    assert (
        again.step == last.step
        and torch.equal(again.splats.means, last.splats.means)
        and again.losses == last.losses
    )
