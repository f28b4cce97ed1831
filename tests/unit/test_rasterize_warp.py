"""What we tell gswarp and make of its answer, with a fake in its place that keeps to the interface of 3DGS.

The fake reads the matrices as 3DGS's rasterizer does (row vectors, device coordinates, integer pixel centres)
and renders by the reference, so that a wrong transpose, half pixel or gradient unit shows. Where gswarp is
installed, its own kernels of the projection and of the colours run on the CPU, forward and backward; only
those that blend need a GPU: see tests/gpu.
"""

from collections import namedtuple

import pytest
import torch

from lucid_core.cameras import Cameras
from lucid_core.rasterize import cuda_warp, reference
from lucid_core.splats import Splats

from .scenes import FIELDS, H, W, random_splats, relative_error, three_views

Extra = namedtuple("Extra", "depth alpha")


class FakeGswarp:
    GaussianRasterizationSettings = namedtuple(
        "Settings",
        "image_height image_width tanfovx tanfovy bg scale_modifier viewmatrix projmatrix sh_degree campos "
        "prefiltered "
        "auto_tune_verbose",
    )

    class GaussianRasterizer:
        def __init__(self, settings):
            self.s = settings

        def __call__(self, means3D, means2D, opacities, shs, scales, rotations):
            s = self.s
            size = means3D.new_tensor([s.image_width, s.image_height])
            rows = torch.cat([means3D, torch.ones_like(means3D[:, :1])], 1)
            homogeneous = rows @ s.projmatrix
            pixels = (
                (homogeneous[:, :2] / homogeneous[:, 3:] + 1) * size - 1
            ) / 2 + 0.5  # 3DGS's first centre is 0, ours 1/2
            pixels = (
                pixels + (means2D - means2D.detach())[:, :2] * size / 2
            )  # gradients are in device coordinates
            focal = size / (2 * means3D.new_tensor([s.tanfovx, s.tanfovy]))
            K = torch.diag(torch.cat([focal, focal.new_ones(1)]))
            K[:2, 2] = size / 2
            splats = Splats(means3D, rotations, scales, opacities[:, 0], shs)
            cameras = Cameras(s.viewmatrix.T[None], K[None])
            means_cam = (rows @ s.viewmatrix)[None, :, :3]
            covars2d = reference.project_covariances(
                splats, means_cam, cameras, s.image_width, s.image_height
            )
            in_range = means_cam[..., 2] > 0.01
            radii = reference._radii(
                pixels[None], covars2d, splats.opacities, in_range, s.image_width, s.image_height
            )
            basis = reference.sh_basis(torch.nn.functional.normalize(means3D - s.campos, dim=-1), s.sh_degree)
            colors = (torch.einsum("nk,nkc->nc", basis, shs) + 0.5).clamp_min(0)
            features, remaining = reference.composite(
                pixels,
                covars2d[0],
                means_cam[0, :, 2],
                colors,
                radii[0],
                splats.opacities,
                s.image_width,
                s.image_height,
            )
            rgb = features[..., :3] + remaining * s.bg
            extra = Extra(features[..., 3][None], (1 - remaining)[..., 0][None])
            return rgb.movedim(-1, 0), radii[0].amax(-1), extra


def outputs_and_gradients(render, splats, cameras):
    splats = splats.map(lambda x: x.clone().requires_grad_())
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        splats.means
    )
    *images, means2d, radii = render(splats, cameras, W, H, splats.sh_degree, background)
    means2d.retain_grad()
    g = torch.Generator().manual_seed(2)
    sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x)).sum() for x in images).backward()
    return images, means2d, radii, [getattr(splats, name).grad for name in FIELDS]


@pytest.mark.parametrize("sh_degree", [0, 3])
def test_gswarp_gives_the_contract(monkeypatch, sh_degree):
    monkeypatch.setattr(cuda_warp, "load", lambda module, package: FakeGswarp)
    splats, cameras = (
        random_splats(n=40, seed=20, sh_degree=sh_degree).map(torch.Tensor.double),
        three_views(dtype=torch.float64),
    )
    images, means2d, radii, gradients = outputs_and_gradients(cuda_warp.render, splats, cameras)
    true_images, true_means2d, true_radii, true_gradients = outputs_and_gradients(
        reference.render, splats, cameras
    )
    torch.testing.assert_close(images, true_images)
    torch.testing.assert_close(gradients, true_gradients)
    torch.testing.assert_close(means2d, true_means2d)
    torch.testing.assert_close(means2d.grad, true_means2d.grad)
    assert torch.equal((radii > 0).all(-1), (true_radii > 0).all(-1))


def test_nothing_needs_a_gradient_where_none_is_wanted(monkeypatch):
    monkeypatch.setattr(cuda_warp, "load", lambda module, package: FakeGswarp)
    with torch.no_grad():
        outputs = cuda_warp.render(random_splats(n=5), three_views(), W, H, 0, torch.zeros(3, 3))
    assert not any(output.requires_grad for output in outputs)


# ---- gswarp's own kernels

# the opacity up to which a splat has faded to 1/255 at three standard deviations, where gswarp ends it
FADED = 0.35


def on_the_cpu(monkeypatch):
    """Let gswarp take tensors on the CPU: its kernels work in tiles of 256 threads where they sort and blend,
    so the reference does that; the rest is its own."""
    pytest.importorskip("warp")
    gswarp = pytest.importorskip("gswarp")
    from gswarp._internal.backends import select
    from gswarp._internal.backends.warp import backend_3dgs, backward_ops
    from gswarp._internal.backends.warp.state import BinningState, RenderStageResult
    from gswarp.methods.baseline_3dgs import METHOD

    monkeypatch.setattr(
        gswarp.rasterizer, "validate_rasterizer_inputs", lambda *_: None
    )  # "means3D must be a CUDA tensor"

    def blend(pixels, conics, opacities, depths, colors, radii, width, height):
        a, b, c = conics.unbind(-1)
        covars = torch.linalg.inv(torch.stack([a, b, b, c], -1).unflatten(-1, (2, 2)))
        two = radii[:, None].expand(-1, 2)
        features, remaining = reference.composite(
            pixels + 0.5, covars, depths, colors, two, opacities, width, height
        )
        return features[..., :3].movedim(-1, 0), features[..., 3][None], 1 - remaining[None, ..., 0]

    def inputs_of(outputs, features):
        shown = (outputs.radii > 0)[:, None]
        conics = torch.where(shown, outputs.conic_2d, outputs.conic_2d.new_tensor([1.0, 0.0, 1.0]))
        return outputs.points_xy_image, conics, outputs.conic_opacity[:, 3], outputs.depths, features

    def render(inputs, outputs, binning, features):
        color, depth, alpha = blend(
            *inputs_of(outputs, features), outputs.radii, inputs.image_width, inputs.image_height
        )
        return RenderStageResult(color=color, depth=depth, alpha=alpha, n_contrib=torch.zeros_like(alpha))

    @torch.enable_grad()
    def backward(
        outputs,
        binning,
        features,
        background,
        height,
        width,
        alpha,
        n_contrib,
        g_color,
        g_depth,
        g_alpha,
        interop,
    ):
        leaves = [x.detach().requires_grad_() for x in inputs_of(outputs, features)]
        images = blend(*leaves, outputs.radii, width, height)
        pixels, conics, opacities, depths, colors = torch.autograd.grad(
            images, leaves, (g_color, g_depth, g_alpha)
        )
        conics = conics * conics.new_tensor([1.0, 0.5, 1.0])  # 3DGS halves the mixed term
        size = pixels.new_tensor([width, height])
        return pixels * size / 2, depths, torch.cat([conics, opacities[:, None]], 1), colors

    stages = {"binning": lambda *_: BinningState(0, 0, None, None, num_rendered=1), "render": render}
    plan = select.build_method_plan(METHOD, backend_3dgs, stage_overrides=stages)
    monkeypatch.setattr(gswarp.rasterizer, "_plan", lambda: plan)
    monkeypatch.setattr(backward_ops, "_backward_render_tiles_warp", backward)


@pytest.mark.parametrize("sh_degree", [0, 3])
def test_gswarps_own_kernels_agree_with_the_reference(monkeypatch, sh_degree):
    """They compile for half a minute, once."""
    on_the_cpu(monkeypatch)
    splats, cameras = random_splats(n=60, seed=20, sh_degree=sh_degree), three_views()
    splats = Splats(splats.means, splats.quats, splats.scales, splats.opacities * FADED, splats.sh)
    found = outputs_and_gradients(cuda_warp.render, splats, cameras)
    truth = outputs_and_gradients(
        reference.render,
        splats.map(torch.Tensor.double),
        Cameras(cameras.viewmats.double(), cameras.Ks.double()),
    )
    for image, true_image in zip(found[0], truth[0]):
        assert relative_error(image, true_image) < 1e-4
    shown = (truth[2] > 0).all(-1)
    torch.testing.assert_close(found[1][shown].double(), truth[1][shown], rtol=1e-4, atol=1e-3)
    assert relative_error(found[1].grad, truth[1].grad) < 1e-3
    for name, gradient, true_gradient in zip(FIELDS, found[3], truth[3]):
        assert relative_error(gradient, true_gradient) < 1e-3, name
    assert ((found[2] > 0).all(-1) >= shown).all()  # it keeps splats too faint to show
