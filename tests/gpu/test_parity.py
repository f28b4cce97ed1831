"""The CUDA backends against the float64 reference, on the scenes of tests/core. Skipped without a CUDA GPU."""

from dataclasses import replace

import pytest
import torch
from core.test_rasterize import FIELDS, SCENES, H, W, as_dtype, random_splats, relative_error, three_views

from lucid_core.rasterize import device_for, rasterize, to_device
from lucid_core.rasterize.choice import reason_against

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
# Largest relative errors of values and gradients. gsplat computes with fast maths. gswarp's image is that of 3DGS, which
# ends a splat at three standard deviations; its near plane and largest alpha differ too, so those scenes are not for it.
TOLERANCE = {"gsplat": (1e-3, 1e-2), "gswarp": (2e-2, 5e-2), "numba": (1e-4, 1e-3)}
NOT_GSWARPS = ("around_the_camera", "faint_and_opaque", "wall", "huge")
CASES = [(b, s) for b in TOLERANCE for s in SCENES if not (b == "gswarp" and s in NOT_GSWARPS)]


def require(backend):
    if reason_against(backend):
        pytest.skip(f"{backend} {reason_against(backend)}")


def outputs_and_gradients(splats, cameras, backend, device, dtype):
    splats = splats.map(lambda x: x.to(device, dtype).requires_grad_())
    background = torch.tensor([0.2, 0.5, 0.9], device=device, dtype=dtype, requires_grad=True)
    cameras = to_device(as_dtype(cameras, dtype), device)
    render = rasterize(splats, cameras, W, H, background=background, backend=backend)
    render.info["means2d"].retain_grad()
    g = torch.Generator().manual_seed(100)
    outputs = {"rgb": render.rgb, "alpha": render.alpha, "depth": render.depth}
    sum((x * torch.randn(x.shape, generator=g).to(x)).sum() for x in outputs.values()).backward()
    gradients = {name: getattr(splats, name).grad for name in FIELDS}
    gradients |= {"background": background.grad, "means2d": render.info["means2d"].grad}
    return {name: x.detach().cpu() for name, x in outputs.items()}, {k: v.cpu() for k, v in gradients.items()}, render.info


@pytest.mark.parametrize(("backend", "scene"), CASES)
def test_agrees_with_the_reference(backend, scene):
    require(backend)
    splats, cameras = SCENES[scene](), three_views()
    splats = replace(splats, opacities=splats.opacities.clamp_max(0.98)) if backend == "gswarp" else splats
    truth, true_gradients, _ = outputs_and_gradients(splats, cameras, "reference", "cpu", torch.float64)
    values, gradients, info = outputs_and_gradients(splats, cameras, backend, "cuda", torch.float32)
    for_values, for_gradients = TOLERANCE[backend]
    for name, value in values.items():
        assert relative_error(value, truth[name]) < for_values, name
    for name, gradient in gradients.items():
        assert relative_error(gradient, true_gradients[name]) < for_gradients, name
    assert info["means2d"].device.type == info["radii"].device.type == "cuda"
    assert info["radii"].shape == (3, len(splats), 2)


def test_auto_renders_where_the_splats_are():
    device = device_for("auto")
    splats = random_splats(n=50).map(lambda x: x.to(device))
    assert rasterize(splats, to_device(three_views(), device), W, H).rgb.device.type == device.type


@pytest.mark.parametrize("backend", TOLERANCE)
@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_a_run_optimises_and_grows(backend, strategy):
    from core.test_optimiser import CONFIG, arguments

    from lucid_core.densify import Densify
    from lucid_core.dream import dream

    require(backend)
    densify = Densify(strategy=strategy, start=0.1, every=0.2, stop=1.0, grow_grad2d=0.0, prune_opacity=0.0)
    given = arguments(replace(CONFIG, densify=densify))
    on = lambda cond: cond.to(device_for(backend))
    prompts = given["prompts"]
    given["prompts"] = replace(
        prompts, views=tuple(on(x) for x in prompts.views), negative=on(prompts.negative), inverse=on(prompts.inverse)
    )
    steps = list(dream(**given, backend=backend))
    assert len(steps[-1].splats) > len(steps[0].splats)
    assert all(x.isfinite().all() for x in vars(steps[-1].splats).values())
