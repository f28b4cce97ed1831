"""What we tell gswarp and make of its answer, with a fake in its place that keeps to the interface of 3DGS.

The fake reads the matrices as 3DGS's rasterizer does (row vectors, device coordinates, integer pixel centres) and renders
by the reference, so that a wrong transpose, half pixel or gradient unit shows. Real kernels: tests/gpu.
"""

from collections import namedtuple

import pytest
import torch

from lucid_core.cameras import Cameras
from lucid_core.gaussians import Splats
from lucid_core.rasterize import cuda_warp, reference

from .test_rasterize import FIELDS, H, W, random_splats, three_views

Extra = namedtuple("Extra", "depth alpha")


class FakeGswarp:
    GaussianRasterizationSettings = namedtuple(
        "Settings",
        "image_height image_width tanfovx tanfovy bg scale_modifier viewmatrix projmatrix sh_degree campos prefiltered "
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
            pixels = ((homogeneous[:, :2] / homogeneous[:, 3:] + 1) * size - 1) / 2 + 0.5  # 3DGS's first centre is 0, ours 1/2
            pixels = pixels + (means2D - means2D.detach())[:, :2] * size / 2  # gradients are in device coordinates
            focal = size / (2 * means3D.new_tensor([s.tanfovx, s.tanfovy]))
            K = torch.diag(torch.cat([focal, focal.new_ones(1)]))
            K[:2, 2] = size / 2
            splats = Splats(means3D, rotations, scales, opacities[:, 0], shs)
            cameras = Cameras(s.viewmatrix.T[None], K[None])
            means_cam = (rows @ s.viewmatrix)[None, :, :3]
            covars2d = reference.project_covariances(splats, means_cam, cameras, s.image_width, s.image_height)
            in_range = means_cam[..., 2] > 0.01
            radii = reference._radii(pixels[None], covars2d, splats.opacities, in_range, s.image_width, s.image_height)
            basis = reference.sh_basis(torch.nn.functional.normalize(means3D - s.campos, dim=-1), s.sh_degree)
            colors = (torch.einsum("nk,nkc->nc", basis, shs) + 0.5).clamp_min(0)
            features, remaining = reference.composite(
                pixels, covars2d[0], means_cam[0, :, 2], colors, radii[0], splats.opacities, s.image_width, s.image_height
            )
            rgb = features[..., :3] + remaining * s.bg
            extra = Extra(features[..., 3][None], (1 - remaining)[..., 0][None])
            return rgb.movedim(-1, 0), radii[0].amax(-1), extra


def outputs_and_gradients(render, splats, cameras):
    splats = splats.map(lambda x: x.clone().requires_grad_())
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    *images, means2d, radii = render(splats, cameras, W, H, splats.sh_degree, background)
    means2d.retain_grad()
    g = torch.Generator().manual_seed(2)
    sum((x * torch.randn(x.shape, generator=g, dtype=x.dtype)).sum() for x in images).backward()
    return images, means2d, radii, [getattr(splats, name).grad for name in FIELDS]


@pytest.mark.parametrize("sh_degree", [0, 3])
def test_gswarp_gives_the_contract(monkeypatch, sh_degree):
    monkeypatch.setattr(cuda_warp, "load", lambda module, package: FakeGswarp)
    splats, cameras = (
        random_splats(n=40, seed=20, sh_degree=sh_degree).map(torch.Tensor.double),
        three_views(dtype=torch.float64),
    )
    images, means2d, radii, gradients = outputs_and_gradients(cuda_warp.render, splats, cameras)
    true_images, true_means2d, true_radii, true_gradients = outputs_and_gradients(reference.render, splats, cameras)
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
