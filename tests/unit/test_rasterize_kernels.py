"""What the CPU kernels leave out must not show: blocks that a splat misses, blocks that are opaque, lanes
without a splat.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_core.cameras import Cameras, turntable
from lucid_core.rasterize import cpu, cpu_blend, cpu_project, rasterize

from .scenes import H, W, needles, random_splats, relative_error, render_and_gradients, three_views

TILE = cpu_blend.TILE


@pytest.mark.parametrize(
    "splats", [random_splats(n=60, scale=0.1), needles(), random_splats(n=40, scale=0.002)]
)
def test_no_block_with_a_visible_pixel_is_passed_by(splats):
    cameras = turntable(1, 20.0, 3.0, 50.0, W, H)
    rgb, *_ = cpu.render(splats.map(lambda x: x.requires_grad_()), cameras, W, H, 0, torch.zeros(1, 3))
    bins, every, tiles_x, seen = rgb.grad_fn.bins, (1 << cpu_blend.LANES) - 1, -(-W // TILE), 0
    for t in range(len(bins.offsets) - 1):
        left, top = t % tiles_x * TILE, t // tiles_x * TILE
        ys, xs = np.mgrid[top : top + TILE, left : left + TILE] + 0.5
        for n in bins.pairs[bins.offsets[t] : bins.offsets[t + 1]]:
            x, y, p, q, s, opacity = bins.records[n, :6].astype(np.float64)
            power = (p * (xs - x) + q * (ys - y)) ** 2 + (s * (ys - y)) ** 2
            shows = (opacity * np.exp(-power) >= 1 / 255) & (xs < W) & (ys < H)
            needed = (
                shows.reshape(4, 4, 4, 4).any((1, 3)).ravel()
            )  # rows of blocks, their rows, columns, theirs
            corner = np.float32(left + 0.5) - bins.records[n, 0], np.float32(top + 0.5) - bins.records[n, 1]
            mask = cpu_blend._blocks(bins.records, n, left, top, *corner, every)
            assert not any(need and not mask >> m & 1 for m, need in enumerate(needed))
            seen += needed.sum()
    assert seen > 20


def test_round_splats_touch_no_corner_of_their_box():
    """A disc of radius 8 about the middle of a tile reaches all its blocks, one of radius 5 not the 4 at the
    corners.
    """
    record = np.zeros((1, 16), np.float32)
    strength = np.log(255.0)
    record[0, :6] = 8, 8, np.sqrt(strength) / 8, 0, np.sqrt(strength) / 8, 1
    record[0, 10:15] = strength, 0, 16, 0, 16
    mask = cpu_blend._blocks(record, 0, 0, 0, np.float32(-7.5), np.float32(-7.5), 0xFFFF)
    assert mask == 0xFFFF
    record[0, 2] = record[0, 4] = np.sqrt(strength) / 5
    mask = cpu_blend._blocks(record, 0, 0, 0, np.float32(-7.5), np.float32(-7.5), 0xFFFF)
    assert mask == 0xFFFF & ~(1 << 0 | 1 << 3 | 1 << 12 | 1 << 15)


def test_what_lies_behind_opaque_blocks_changes_nothing():
    """More layers than splats between two looks at which blocks are opaque, over a part of each tile."""
    splats = random_splats(n=5 * cpu_blend.CHECK, seed=21, spread=0.25, scale=0.1)
    splats = replace(
        splats, opacities=torch.ones(len(splats)), means=splats.means - torch.tensor([0.5, 0.0, 0.0])
    )
    truth, true_gradients = render_and_gradients(splats, three_views(), "reference", torch.float64)
    values, gradients = render_and_gradients(splats, three_views(), "numba", torch.float32)
    assert truth["alpha"].max() > 0.9998 and truth["alpha"].min() == 0
    for key in ("rgb", "alpha", "depth"):
        assert relative_error(values[key], truth[key]) < 1e-4, key
    for key, gradient in gradients.items():
        assert relative_error(gradient, true_gradients[key]) < 1e-3, key


@pytest.mark.parametrize(
    "n", [1, cpu_project.BLOCK - 1, cpu_project.BLOCK, cpu_project.BLOCK + 1, 3 * cpu_project.BLOCK + 5]
)
def test_a_splat_is_projected_alike_in_any_company(n):
    splats, fewer = random_splats(n=100, seed=22, sh_degree=1), slice(50, 50 + n)
    means2d, records, radii, *_ = project(splats)
    part = project(splats.map(lambda x: x[fewer].contiguous()))
    assert torch.equal(part[0], means2d[:, fewer]) and torch.equal(part[2], radii[:, fewer])
    used = slice(0, 15)
    assert torch.equal(
        part[1][part[2][..., 0] > 0][:, used], records[:, fewer][radii[:, fewer, 0] > 0][:, used]
    )


def project(splats):
    parts = (splats.means, splats.quats, splats.scales, splats.opacities, splats.sh)
    return cpu.Project.apply(*parts, three_views(), W, H, splats.sh_degree)


def test_a_splat_too_bright_for_float32_is_culled_alone():
    splats = random_splats(n=20, seed=23)
    sh = splats.sh.clone()
    sh[3] = 3e38
    splats = replace(splats, sh=sh)
    render = rasterize(splats, three_views(), W, H)
    assert not render.info["radii"][:, 3].any() and render.info["radii"][:, 4].any()
    rest = rasterize(splats.map(lambda x: torch.cat([x[:3], x[4:]])), three_views(), W, H)
    assert torch.equal(render.rgb, rest.rgb)


def test_gradients_of_many_views_add_up():
    splats, cameras = random_splats(n=50, seed=24, sh_degree=2), three_views()
    weights = torch.rand(3, H, W, 3, generator=torch.Generator().manual_seed(0))

    def gradient(views):
        inputs = splats.map(lambda x: x.clone().requires_grad_())
        rgb = rasterize(inputs, Cameras(cameras.viewmats[views], cameras.Ks[views]), W, H).rgb
        (rgb * weights[views]).sum().backward()
        return inputs.map(lambda x: x.grad)

    together, alone = gradient(slice(0, 3)), [gradient(slice(b, b + 1)) for b in range(3)]
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert relative_error(getattr(together, name), sum(getattr(x, name) for x in alone)) < 1e-5, name
