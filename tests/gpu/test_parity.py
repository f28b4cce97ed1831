"""The CUDA backends against the float64 reference, on the scenes of tests/unit. Skipped without a CUDA
GPU.
"""

from dataclasses import replace

import pytest
import torch
from unit.scenes import FIELDS, SCENES, H, W, as_dtype, dream, random_splats, relative_error, three_views

from lucid_core.cameras import Cameras
from lucid_core.rasterize import device_for, rasterize, to_device
from lucid_core.rasterize.choice import reason_against
from lucid_core.settings import replace_settings
from lucid_core.splats import Splats

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
CUDA_BACKENDS = ("gsplat", "gswarp")
# Largest relative errors of values and gradients. gsplat computes with fast maths.
TOLERANCE = {"gsplat": (1e-3, 1e-2), "gswarp": (1e-3, 1e-2), "numba": (1e-4, 1e-3)}
# gswarp ends a splat at three standard deviations, where one of this opacity has faded to 1/255: up to it the
# images agree
FADED = 0.35
NEAR_OF_GSWARP = 0.2
CASES = [(backend, scene) for backend in TOLERANCE for scene in SCENES]


def require(backend):
    if reason_against(backend):
        pytest.skip(f"{backend} {reason_against(backend)}")


def off_axis_views() -> Cameras:
    """The optical axis beside the image's middle, and pixels that are not square."""
    cameras = three_views()
    Ks = cameras.Ks.clone()
    Ks[:, 0, 0] *= 1.3
    Ks[:, 0, 2] += 6.0
    Ks[:, 1, 2] -= 3.5
    return Cameras(cameras.viewmats, Ks)


def outputs_and_gradients(splats, cameras, backend, device, dtype, sh_degree=None, size=(W, H)):
    splats = splats.map(lambda x: x.detach().to(device, dtype, copy=True).requires_grad_())
    background = torch.tensor([0.2, 0.5, 0.9], device=device, dtype=dtype, requires_grad=True)
    cameras = to_device(as_dtype(cameras, dtype), device)
    render = rasterize(splats, cameras, *size, sh_degree, background, backend)
    render.info["means2d"].retain_grad()
    g = torch.Generator().manual_seed(100)
    outputs = {"rgb": render.rgb, "alpha": render.alpha, "depth": render.depth}
    sum((x * torch.randn(x.shape, generator=g).to(x)).sum() for x in outputs.values()).backward()
    gradients = {name: getattr(splats, name).grad for name in FIELDS}
    gradients |= {"background": background.grad, "means2d": render.info["means2d"].grad}
    return (
        {name: x.detach().cpu() for name, x in outputs.items()},
        {k: v.cpu() for k, v in gradients.items()},
        render.info,
    )


def on_the_gpu(splats, cameras, backend, **options):
    return outputs_and_gradients(splats, cameras, backend, "cuda", torch.float32, **options)


def require_agreement(values, gradients, true_values, true_gradients, tolerance):
    for_values, for_gradients = tolerance
    for name, value in values.items():
        assert value.isfinite().all() and relative_error(value, true_values[name]) < for_values, name
    for name, gradient in gradients.items():
        error = relative_error(gradient, true_gradients[name])
        assert gradient.isfinite().all() and error < for_gradients, f"gradient of {name}: {error:.2e}"


def require_parity(backend, splats, cameras, tolerance=None, **options):
    """Values and gradients are the reference's -> the info of the backend's render."""
    truth = outputs_and_gradients(splats, cameras, "reference", "cpu", torch.float64, **options)
    values, gradients, info = on_the_gpu(splats, cameras, backend, **options)
    require_agreement(values, gradients, *truth[:2], tolerance or TOLERANCE[backend])
    require_info(info, truth[2])
    return info


def require_info(info, truth):
    """What gsplat's strategies read: where, how large and whether each splat shows in each view."""
    means2d, radii = info["means2d"].detach().cpu(), info["radii"].cpu()
    assert info["means2d"].device.type == info["radii"].device.type == "cuda"
    assert radii.dtype == torch.int32 and radii.shape == truth["radii"].shape
    assert info["n_cameras"] == len(radii) and (info["width"], info["height"]) == (
        truth["width"],
        truth["height"],
    )
    shown = (truth["radii"] > 1).all(-1) & (radii > 0).all(-1)  # at the image's edge rounding decides
    assert shown.sum() >= 0.9 * (truth["radii"] > 1).all(-1).sum()
    torch.testing.assert_close(means2d[shown], truth["means2d"].detach().float()[shown], rtol=1e-3, atol=1e-2)


def shared_by(backend, splats, cameras):
    """Those of the splats' opacities at which `backend` shows what the reference does."""
    if backend != "gswarp":
        return splats
    z = torch.einsum("bj,nj->bn", cameras.viewmats[:, 2, :3], splats.means) + cameras.viewmats[:, 2, 3:]
    too_near = ((z > 0) & (z < 1.1 * NEAR_OF_GSWARP)).any(0)
    return replace(splats, opacities=torch.where(too_near, 0.0, FADED * splats.opacities))


@pytest.mark.parametrize(("backend", "scene"), CASES)
def test_agrees_with_the_reference(backend, scene):
    require(backend)
    cameras = three_views()
    require_parity(backend, shared_by(backend, SCENES[scene](), cameras), cameras)


def test_gswarp_is_close_where_splats_are_solid():
    """There the tails beyond three standard deviations are missing, up to 1% of a splat's opacity."""
    require("gswarp")
    splats = random_splats()
    splats = replace(
        splats, opacities=splats.opacities.clamp_max(0.98)
    )  # above, its gradient ignores its largest alpha
    require_parity("gswarp", splats, three_views(), (2e-2, 5e-2))


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_the_optical_axis_may_lie_beside_the_middle(backend):
    require(backend)
    splats, cameras = random_splats(seed=17, spread=0.3, sh_degree=1), off_axis_views()
    require_parity(backend, shared_by(backend, splats, cameras), cameras)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_bands_that_are_not_used_get_no_gradient(backend):
    require(backend)
    splats = shared_by(backend, random_splats(seed=15, sh_degree=3), three_views())
    require_parity(backend, splats, three_views(), sh_degree=1)
    _, gradients, _ = on_the_gpu(splats, three_views(), backend, sh_degree=1)
    assert gradients["sh"][:, :4].any() and not gradients["sh"][:, 4:].any()


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (64, 8)])
def test_any_image_size_agrees(backend, size):
    require(backend)
    cameras = three_views(*size)
    require_parity(backend, shared_by(backend, random_splats(seed=13), cameras), cameras, size=size)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_a_large_image_of_many_splats_agrees_with_the_cpu(backend):
    """Many tiles, many splats in a tile, pixels that stop early: float32 beside float32."""
    require(backend)
    size = (512, 384)
    cameras = three_views(*size)
    splats = shared_by(backend, random_splats(n=20_000, seed=21, scale=0.03, sh_degree=1), cameras)
    truth = outputs_and_gradients(splats, cameras, "numba", "cpu", torch.float32, size=size)
    values, gradients, info = on_the_gpu(splats, cameras, backend, size=size)
    require_agreement(values, gradients, *truth[:2], TOLERANCE[backend])
    require_info(info, truth[2])


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_views_render_together_as_they_do_alone(backend):
    require(backend)
    splats, cameras = random_splats(seed=14).map(lambda x: x.cuda()), to_device(three_views(), "cuda")
    backgrounds = torch.rand(3, 3).cuda()
    together = rasterize(splats, cameras, W, H, background=backgrounds, backend=backend)
    for b in range(3):
        alone = Cameras(cameras.viewmats[b : b + 1], cameras.Ks[b : b + 1])
        single = rasterize(splats, alone, W, H, background=backgrounds[b], backend=backend)
        for name in ("rgb", "alpha", "depth"):
            assert torch.equal(getattr(together, name)[b], getattr(single, name)[0]), name
        assert torch.equal(together.info["radii"][b], single.info["radii"][0])


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_the_same_splats_give_the_same_bits_whatever_was_rendered_between(backend):
    """gswarp keeps its launches by the number of splats and its buffers by their size."""
    require(backend)
    first = on_the_gpu(random_splats(n=120), three_views(), backend)
    on_the_gpu(random_splats(n=999, seed=1, sh_degree=2), three_views(), backend)
    on_the_gpu(random_splats(n=120, seed=2), three_views(33, 70), backend, size=(33, 70))
    again = on_the_gpu(random_splats(n=120), three_views(), backend)
    for name, value in first[0].items():
        assert torch.equal(value, again[0][name]), name
    for name, gradient in first[1].items():  # sums over pixels, in whatever order
        torch.testing.assert_close(gradient, again[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_tensors_need_not_be_contiguous(backend):
    require(backend)
    splats, cameras = (
        random_splats(seed=18, sh_degree=1).map(lambda x: x.cuda()),
        to_device(three_views(), "cuda"),
    )
    strided = splats.map(lambda x: torch.stack([x, torch.zeros_like(x)], -1)[..., 0])
    turned = Cameras(cameras.viewmats.mT.contiguous().mT, cameras.Ks.mT.contiguous().mT)
    assert not strided.means.is_contiguous() and not turned.viewmats.is_contiguous()
    a, b = (
        rasterize(splats, cameras, W, H, backend=backend),
        rasterize(strided, turned, W, H, backend=backend),
    )
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.depth, b.depth)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_each_stream_has_its_own_renders(backend):
    """The host computes beside the default stream when it moves weights."""
    require(backend)
    truth = on_the_gpu(random_splats(), three_views(), backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        values, gradients, _ = on_the_gpu(random_splats(), three_views(), backend)
    torch.cuda.synchronize()
    for name, value in values.items():
        assert torch.equal(value, truth[0][name]), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, truth[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_a_view_of_nothing_is_its_background_and_has_no_gradient(backend):
    require(backend)
    splats = random_splats()
    splats = replace(splats, means=splats.means + torch.tensor([0.0, 500.0, 0.0]))
    values, gradients, info = on_the_gpu(splats, three_views(), backend)
    assert not values["alpha"].any() and not values["depth"].any()
    torch.testing.assert_close(values["rgb"], torch.tensor([0.2, 0.5, 0.9]).expand(3, H, W, 3))
    assert not (info["radii"] > 0).all(-1).any()
    assert not any(gradient.any() for name, gradient in gradients.items() if name != "background")


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_no_graph_is_built_where_none_is_wanted(backend):
    require(backend)
    splats, cameras = (
        random_splats().map(lambda x: x.cuda().requires_grad_()),
        to_device(three_views(), "cuda"),
    )
    with torch.no_grad():
        render = rasterize(splats, cameras, W, H, backend=backend)
    assert not any(x.requires_grad for x in (render.rgb, render.alpha, render.depth, render.info["means2d"]))


def one_splat(z, opacity=1.0, size=0.05):
    """On the axis of a camera at the origin, which looks along z -> splats, cameras."""
    at = torch.tensor([[0.0, 0.0, z]])
    splats = Splats(
        at,
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), size),
        torch.tensor([opacity]),
        torch.ones(1, 1, 3),
    )
    K = torch.tensor([[[40.0, 0, W / 2], [0, 40, H / 2], [0, 0, 1]]])
    return splats.map(lambda x: x.cuda()), to_device(Cameras(torch.eye(4)[None], K), "cuda")


@pytest.mark.parametrize(
    ("backend", "largest", "near"), [("gsplat", 0.999, 0.01), ("gswarp", 0.99, NEAR_OF_GSWARP)]
)
def test_largest_alpha_and_near_plane_are_those_that_are_written_down(backend, largest, near):
    require(backend)
    seen = lambda *splat: rasterize(*one_splat(*splat), W, H, backend=backend).alpha.max().item()
    assert seen(4.0, 1.0, 5.0) == pytest.approx(largest, abs=1e-5)
    assert seen(near * 1.05, 0.5, near / 10) > 0.1 and seen(near * 0.95, 0.5, near / 10) == 0


def test_auto_renders_where_the_splats_are():
    device = device_for("auto")
    splats = random_splats(n=50).map(lambda x: x.to(device))
    assert rasterize(splats, to_device(three_views(), device), W, H).rgb.device.type == device.type


def a_run(backend, strategy):
    """The steps of a short run with growth, every conditioning where `backend` renders."""
    from unit.scenes import CONFIG, arguments

    from lucid_core.optimize.densify import Densify

    densify = Densify(strategy=strategy, start=0.1, every=0.2, stop=1.0, grow_grad2d=0.0, prune_opacity=0.0)
    given = arguments(replace_settings(CONFIG, densify=densify))
    on = lambda cond: cond.to(device_for(backend))
    prompts = given["prompts"]
    given["prompts"] = replace(
        prompts,
        views=tuple(on(x) for x in prompts.views),
        negative=on(prompts.negative),
        inverse=on(prompts.inverse),
    )
    return dream(**given, backend=backend)


@pytest.mark.parametrize("backend", TOLERANCE)
@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_a_run_optimises_and_grows(backend, strategy):
    require(backend)
    steps = list(a_run(backend, strategy))
    assert len(steps[-1].splats) > len(steps[0].splats)
    assert all(x.isfinite().all() for x in vars(steps[-1].splats).values())


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_the_first_step_is_that_of_the_cpu(backend):
    """Same draws, same render, same gradients: Adam's first step differs only where a gradient is about 0."""
    require(backend)
    ours, truth = (next(a_run(name, "default")) for name in (backend, "numba"))
    assert ours.losses == pytest.approx(truth.losses, rel=2e-2)
    moved = (ours.splats.means.cpu() - truth.splats.means).norm(dim=-1)
    assert moved.median() < 1e-5
