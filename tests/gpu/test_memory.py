"""Too little GPU memory, and a GPU that is lost, with the real allocator and the real errors. Skipped without
a CUDA GPU.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from unit.scenes import FIELDS, random_splats, relative_error

from lucid_core.cameras import turntable
from lucid_core.rasterize import choice, device_for, rasterize, slowdown, to_device

from .test_parity import CUDA_BACKENDS, require

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
SIZE, VIEWS = 256, 4


@pytest.fixture(autouse=True)
def whole_memory():
    device_for("auto")  # forgets what other tests' runs had no memory for
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def render_and_gradients(backend, views=VIEWS):
    """Splats that cover many tiles: their lists are what fills the memory."""
    splats = random_splats(n=100_000, scale=0.3).map(lambda x: x.cuda().requires_grad_())
    cameras = to_device(turntable(views, 20.0, 3.0, 50.0, SIZE, SIZE), "cuda")
    render = rasterize(splats, cameras, SIZE, SIZE, backend=backend)
    g = torch.Generator().manual_seed(3)
    outputs = (render.rgb, render.alpha, render.depth)
    sum((x * torch.randn(x.shape, generator=g).to(x)).sum() for x in outputs).backward()
    gradients = {name: getattr(splats, name).grad.cpu() for name in FIELDS} | {
        "means2d": render.info["means2d"].grad.cpu()
    }
    return [x.detach().cpu() for x in outputs], gradients, render.info["radii"].cpu()


def peak(backend, views) -> int:
    """Bytes that torch's allocator reserves at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    render_and_gradients(backend, views)
    return torch.cuda.max_memory_reserved()


def allow(size: int) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info()[1])


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_fewer_views_at_a_time_give_the_same(backend):
    require(backend)
    images, gradients, radii = render_and_gradients(backend)
    one, all_views = peak(backend, 1), peak(backend, VIEWS)
    assert all_views > 1.5 * one
    allow((one + all_views) // 2)
    found = render_and_gradients(backend)
    assert choice.views_at_a_time(backend) < VIEWS and slowdown() == ""
    assert all(torch.equal(a, b) for a, b in zip(found[0], images)) and torch.equal(found[2], radii)
    for name, gradient in found[1].items():  # sums over pixels and views, in another order
        assert relative_error(gradient, gradients[name]) < 1e-3, name


def test_what_does_not_fit_as_one_view_goes_to_the_cpu():
    if device_for("auto").type != "cuda":
        pytest.skip("no CUDA backend works here")
    fastest = next(choice.candidates("cuda"))
    images, gradients, _ = render_and_gradients(fastest, 2)
    torch.cuda.empty_cache()
    allow(torch.cuda.memory_reserved() + 48 * 2**20)
    found = render_and_gradients("auto", 2)
    assert fastest in slowdown()
    assert relative_error(found[0][0], images[0]) < 2e-2
    assert relative_error(found[1]["means"], gradients["means"]) < 5e-2
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert (
        device_for("auto").type == "cuda" and slowdown() == "" and next(choice.candidates("cuda")) == fastest
    )


LOSE_THE_GPU = """
import sys, torch
sys.path[:0] = sys.argv[1:]
import lucid_core.rasterize as module
from lucid_core.errors import LostGpu
from unit.scenes import random_splats, three_views
backend = next(module.choice.candidates("cuda"))
splats, cameras = random_splats().map(lambda x: x.cuda()), module.to_device(three_views(), "cuda")
module.check = lambda *_: None  # it would wait for the GPU, and meet the error first
torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
try:
    module.rasterize(splats, cameras, 50, 37).rgb.sum().item()
except LostGpu as error:
    print(backend, True, error)
"""


def test_a_lost_gpu_is_named():
    """In a process of its own: nothing works in it afterwards."""
    if device_for("auto").type != "cuda":
        pytest.skip("no CUDA backend works here")
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", LOSE_THE_GPU, str(tests.parent), str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert f"{next(choice.candidates('cuda'))} True" in done.stdout, done.stdout + done.stderr
