"""The CPU rasterizer against the float64 reference, the reference against closed forms and gsplat's own torch
code.
"""

import logging
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

from lucid_core.cameras import Cameras, turntable
from lucid_core.errors import BadInput, BadSetting, BadSplats, MissingPackage
from lucid_core.rasterize import rasterize, reference
from lucid_core.splats import Splats, activate, parameters

from .scenes import (
    FIELDS,
    SCENES,
    H,
    W,
    around_the_camera,
    as_dtype,
    random_splats,
    relative_error,
    render_and_gradients,
    three_views,
)

# ---- the reference itself


def test_one_round_splat_has_its_closed_form():
    """alpha = opacity exp(-d^2 / (2 (f s / z)^2 + 0.6)) about the image's middle, depth = alpha z."""
    opacity, s, z, f = 0.8, 0.1, 4.0, 60.0
    splats = Splats(
        means=torch.tensor([[0.0, 0.0, z]]),
        quats=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        scales=torch.full((1, 3), s),
        opacities=torch.tensor([opacity]),
        sh=torch.zeros(1, 1, 3),
    ).map(torch.Tensor.double)
    K = torch.tensor([[[f, 0, W / 2], [0, f, H / 2], [0, 0, 1]]], dtype=torch.float64)
    render = rasterize(splats, Cameras(torch.eye(4, dtype=torch.float64)[None], K), W, H, backend="reference")
    x, y = torch.meshgrid(torch.arange(W) + 0.5 - W / 2, torch.arange(H) + 0.5 - H / 2, indexing="xy")
    alpha = opacity * torch.exp(-(x**2 + y**2).double() / (2 * ((f * s / z) ** 2 + 0.3)))
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    torch.testing.assert_close(render.alpha[0, :, :, 0], alpha)
    torch.testing.assert_close(render.depth[0, :, :, 0], alpha * z)
    torch.testing.assert_close(render.rgb[0], 0.5 * alpha[..., None].expand(H, W, 3))


def test_projection_is_gsplats():
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    splats, cameras = around_the_camera().map(torch.Tensor.double), three_views(dtype=torch.float64)
    covars, _ = gsplat._quat_scale_to_covar_preci(splats.quats, splats.scales, compute_preci=False)
    means_cam, covars_cam = gsplat._world_to_cam(splats.means, covars, cameras.viewmats)
    means2d, covars2d = gsplat._persp_proj(means_cam, covars_cam, cameras.Ks, W, H)
    ours = reference.project_covariances(splats, means_cam, cameras, W, H)
    torch.testing.assert_close(ours - 0.3 * torch.eye(2), covars2d)
    torch.testing.assert_close(reference.project_means(means_cam, cameras.Ks), means2d)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics_are_gsplats(degree):
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    directions = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    expected = gsplat._eval_sh_bases_fast((degree + 1) ** 2, directions)
    torch.testing.assert_close(reference.sh_basis(directions, degree), expected)


def test_gradients_of_the_reference_are_those_of_finite_differences():
    splats = random_splats(n=3, seed=12, spread=0.2, scale=0.8, sh_degree=1).map(torch.Tensor.double)
    splats = replace(splats, opacities=splats.opacities * 0.5 + 0.3)
    cameras = as_dtype(turntable(1, 10.0, 3.0, 50.0, 5, 4), torch.float64)

    def images(*tensors):
        render = rasterize(Splats(*tensors[:5]), cameras, 5, 4, background=tensors[5], backend="reference")
        return render.rgb, render.alpha, render.depth

    inputs = [getattr(splats, name).requires_grad_() for name in FIELDS]
    background = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(images, (*inputs, background))


# ---- the numba backend against it


@pytest.mark.parametrize("name", SCENES)
def test_numba_agrees_with_the_reference(name):
    splats, cameras = SCENES[name](), three_views()
    truth, true_gradients = render_and_gradients(splats, cameras, "reference", torch.float64)
    values, gradients = render_and_gradients(splats, cameras, "numba", torch.float32)
    assert torch.equal(values.pop("radii"), truth.pop("radii"))
    for key, value in values.items():
        assert relative_error(value, truth[key]) < 1e-4, key
    for key, gradient in gradients.items():
        assert gradient.shape == true_gradients[key].shape
        assert relative_error(gradient, true_gradients[key]) < 1e-3, key


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (17, 33), (64, 8)])
def test_any_image_size_agrees(width, height):
    splats, cameras = random_splats(seed=13), three_views(width, height)
    truth, true_gradients = render_and_gradients(splats, cameras, "reference", torch.float64, width, height)
    values, gradients = render_and_gradients(splats, cameras, "numba", torch.float32, width, height)
    assert relative_error(values["rgb"], truth["rgb"]) < 1e-4
    assert relative_error(gradients["means"], true_gradients["means"]) < 1e-3


def test_views_render_together_as_they_do_alone():
    splats, cameras = random_splats(seed=14), three_views()
    backgrounds = torch.rand(3, 3)
    together = rasterize(splats, cameras, W, H, background=backgrounds)
    for b in range(3):
        alone = Cameras(cameras.viewmats[b : b + 1], cameras.Ks[b : b + 1])
        assert torch.equal(together.rgb[b], rasterize(splats, alone, W, H, background=backgrounds[b]).rgb[0])


def test_lower_sh_degree_ignores_the_upper_bands():
    splats = random_splats(seed=15, sh_degree=3)
    lower = replace(splats, sh=splats.sh[:, :4])
    assert torch.equal(
        rasterize(splats, three_views(), W, H, sh_degree=1).rgb, rasterize(lower, three_views(), W, H).rgb
    )


def test_no_splats_show_the_background():
    background = torch.tensor([0.1, 0.6, 0.3])
    render = rasterize(random_splats(n=0), three_views(), W, H, background=background)
    assert torch.equal(render.rgb, background.expand(3, H, W, 3))
    assert not render.alpha.any() and not render.depth.any()


def test_same_input_same_bits_on_any_number_of_threads(set_threads, monkeypatch):
    from lucid_core.rasterize import cpu

    monkeypatch.setattr(cpu, "SPLATS_PER_BAND", 100)
    runs = []
    for count in (1, 2, 4):
        set_threads(count)
        values, gradients = render_and_gradients(random_splats(n=500), three_views(), "numba", torch.float32)
        gradients.pop("background")  # torch sums this one
        runs.append(list(values.values()) + list(gradients.values()))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


# ---- properties


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 60))
def test_order_of_splats_changes_nothing(seed, n):
    splats = random_splats(n, seed)
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    a = rasterize(splats, three_views(), W, H)
    b = rasterize(splats.map(lambda x: x[permutation]), three_views(), W, H)
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.depth, b.depth)


def multiply_quats(a, b):
    w, x, y, z = a.unbind(-1)
    rows = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return (torch.stack([torch.stack(row, -1) for row in rows], -2) @ b[..., None])[..., 0]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_moving_scene_and_cameras_together_changes_nothing(seed):
    g = torch.Generator().manual_seed(seed)
    quat, shift = (
        torch.randn(4, generator=g, dtype=torch.float64),
        torch.randn(3, generator=g, dtype=torch.float64),
    )
    splats, cameras = random_splats(40, seed).map(torch.Tensor.double), three_views(dtype=torch.float64)
    R = reference.rotations(quat[None])[0]
    moved = replace(
        splats,
        means=splats.means @ R.T + shift,
        quats=multiply_quats((quat / quat.norm()).expand(40, 4), splats.quats),
    )
    back = torch.eye(4, dtype=torch.float64)
    back[:3, :3], back[:3, 3] = R.T, -R.T @ shift
    moved_cameras = Cameras(cameras.viewmats @ back, cameras.Ks)
    a = rasterize(splats, cameras, W, H, backend="reference").rgb
    b = rasterize(moved, moved_cameras, W, H, backend="reference").rgb
    assert relative_error(b, a) < 1e-9
    c = rasterize(moved.map(torch.Tensor.float), as_dtype(moved_cameras, torch.float32), W, H).rgb
    assert (c - a).abs().max() < 0.02 and (c - a).abs().mean() < 1e-5  # float32 may move a pixel across 1/255


any_finite = st.one_of(st.floats(-3, 3, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 4))
def test_finite_splats_give_finite_images_and_alpha_in_0_1(data, n):
    def draw(*shape, value=any_finite):
        count = math.prod(shape)
        return torch.tensor(data.draw(st.lists(value, min_size=count, max_size=count))).reshape(shape)

    opacities = draw(n, value=st.floats(0, 1, width=32))
    splats = Splats(draw(n, 3), draw(n, 4), draw(n, 3), opacities, draw(n, 4, 3))
    splats = splats.map(lambda x: x.requires_grad_())
    render = rasterize(splats, three_views(), W, H)
    images = torch.cat([render.rgb, render.alpha, render.depth], -1)
    assert images.isfinite().all()
    assert render.alpha.min() >= 0 and render.alpha.max() <= 1
    (render.rgb.sum() + render.alpha.sum()).backward()
    assert not any(getattr(splats, name).grad.isnan().any() for name in FIELDS)


# ---- gsplat's densification


def test_default_strategy_of_gsplat_grows_a_splat():
    DefaultStrategy = pytest.importorskip("gsplat.strategy").DefaultStrategy
    params = torch.nn.ParameterDict(parameters(random_splats(n=80, seed=16)))
    optimizers = {name: torch.optim.Adam([value], lr=1e-3) for name, value in params.items()}
    strategy = DefaultStrategy(refine_start_iter=1, refine_every=4, grow_grad2d=1e-6, reset_every=1000)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    torch.manual_seed(0)
    target = torch.rand(3, H, W, 3)
    for step in range(10):
        render = rasterize(activate(params), three_views(), W, H)
        strategy.step_pre_backward(params, optimizers, state, step, render.info)
        (render.rgb - target).square().mean().backward()
        strategy.step_post_backward(params, optimizers, state, step, render.info)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert len(params["means"]) > 80
    assert all(value.isfinite().all() for value in params.values())


# ---- errors and the first use


def broken(name, value):
    return replace(random_splats(n=5), **{name: value})


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        ({"width": 0}, BadSetting, "width"),
        ({"height": -3}, BadSetting, "height"),
        ({"width": 2.5}, BadSetting, "width"),
        ({"sh_degree": 1}, BadSetting, "sh_degree"),
        ({"sh_degree": -1}, BadSetting, "sh_degree"),
        ({"backend": "cuda"}, BadSetting, "backend"),
        ({"background": torch.zeros(4)}, BadInput, "background"),
        ({"background": torch.full((3,), float("nan"))}, BadInput, "background"),
        ({"splats": broken("quats", torch.ones(4, 4))}, BadSplats, "quats"),
        ({"splats": broken("sh", torch.ones(5, 5, 3))}, BadSplats, "sh"),
        ({"splats": broken("means", torch.full((5, 3), float("inf")))}, BadSplats, "means"),
        ({"splats": broken("scales", torch.ones(5, 3).double())}, BadSplats, "scales"),
        ({"splats": broken("opacities", torch.full((5,), 1.5))}, BadSplats, "opacities"),
        ({"splats": random_splats(n=5).map(torch.Tensor.double)}, BadInput, "viewmats"),
        ({"cameras": Cameras(torch.eye(4), torch.eye(3)[None])}, BadInput, "viewmats"),
        ({"cameras": Cameras(torch.zeros(0, 4, 4), torch.zeros(0, 3, 3))}, BadInput, "viewmats"),
        ({"cameras": Cameras(torch.eye(4)[None], torch.zeros(1, 3, 3))}, BadInput, "Ks"),
    ],
)
def test_what_cannot_be_rendered_is_named(arguments, kind, name):
    defaults = {"splats": random_splats(n=5), "cameras": three_views(), "width": W, "height": H}
    with raises(kind, name=name):
        rasterize(**(defaults | arguments))


def test_numba_says_that_it_renders_float32_only():
    splats, cameras = random_splats(n=5).map(torch.Tensor.double), three_views(dtype=torch.float64)
    with pytest.raises(BadSplats, match="float32") as error:
        rasterize(splats, cameras, W, H, backend="numba")
    assert error.value.name == "means"


def test_importing_the_package_does_not_import_numba():
    code = "import sys, lucid_core.rasterize; sys.exit('numba' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
    )


def test_missing_numba_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with raises(MissingPackage, package="numba"):
        rasterize(random_splats(n=5), three_views(), W, H)


def test_first_use_is_announced(monkeypatch, caplog):
    from lucid_core.rasterize import cpu

    monkeypatch.setattr(cpu, "_announced", False)
    with caplog.at_level(logging.INFO):
        rasterize(random_splats(n=5), three_views(), W, H)
        rasterize(random_splats(n=5), three_views(), W, H)
    assert [record.name for record in caplog.records].count("lucid_core.rasterize.cpu") == 1


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    from numba.core.caching import CacheImpl

    from lucid_core.rasterize.jit import kernel

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert kernel()(lambda x: x + 1)(2) == 3
