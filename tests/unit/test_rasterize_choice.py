"""Which backend renders. There is no GPU here: fakes stand for the CUDA backends, and say so in their
names.
"""

import logging
from dataclasses import replace

import pytest
import torch
from raising import raises

from lucid_core.cameras import Cameras
from lucid_core.errors import (
    BackendUnavailable,
    BadSetting,
    BadSplats,
    LostGpu,
    RenderError,
    RenderOutOfMemory,
    UnsupportedGpu,
)
from lucid_core.rasterize import (
    BACKENDS,
    Renderer,
    choice,
    device_for,
    rasterize,
    reference,
    require_usable,
    slowdown,
)

from .scenes import H, W, random_splats, three_views


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Each test starts as a new process does."""
    monkeypatch.setattr(choice, "_against", {})
    for name in ("_views", "_left"):
        monkeypatch.setattr(choice, name, {})
    for name in ("_without_memory", "_said"):
        monkeypatch.setattr(choice, name, set())


def fake_probe(monkeypatch, **reasons):
    """Pretend that trying a CUDA backend ends so: "" works, anything else is why not. -> the names tried, in
    order.
    """
    tried = []
    monkeypatch.setattr(choice, "_probe", lambda name: tried.append(name) or reasons[name])
    return tried


def fake_renderers(monkeypatch, *names, error=None):
    """Let `names` be rendered by the reference, and the first of them raise `error`. -> the names called, in
    order.
    """
    called, real = [], choice.renderer

    def fake(name):
        def render(*arguments):
            called.append(name)
            if error and name == names[0]:
                raise error
            return reference.render(*arguments)

        return render if name in names else real(name)

    monkeypatch.setattr(choice, "renderer", fake)
    return called


def as_if_on_cuda(monkeypatch):
    """The choice believes that the splats are on a CUDA device; they stay where they are."""
    real = choice.candidates
    monkeypatch.setattr(choice, "candidates", lambda device: real("cuda"))


def test_without_a_gpu_everything_is_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto").type == device_for("numba").type == device_for("reference").type == "cpu"
    with raises(BackendUnavailable, backend="gsplat", reason="needs a CUDA GPU, and torch finds none"):
        device_for("gsplat")


def test_the_fastest_that_works_is_taken_and_the_rest_not_tried(monkeypatch):
    tried = fake_probe(monkeypatch, gsplat="", gswarp="")
    assert device_for("auto").type == "cuda" and tried == ["gsplat"]
    tried = fake_probe(monkeypatch, gsplat="no", gswarp="")
    choice._against.clear()
    assert next(choice.candidates("cuda")) == "gswarp" and tried == ["gsplat", "gswarp"]
    choice._against.clear()
    fake_probe(monkeypatch, gsplat="no", gswarp="no")
    assert list(choice.candidates("cuda")) == ["numba"] and device_for("auto").type == "cpu"


def test_a_backend_is_tried_once(monkeypatch):
    tried = fake_probe(monkeypatch, gsplat="no", gswarp="no")
    for _ in range(3):
        device_for("auto")
    assert tried == ["gsplat", "gswarp"]


def test_the_choice_and_its_reason_are_said_once(monkeypatch, caplog):
    fake_probe(monkeypatch, gsplat="cannot be used: there is no nvcc", gswarp="")
    fake_renderers(monkeypatch, "gswarp")
    as_if_on_cuda(monkeypatch)
    with caplog.at_level(logging.INFO, "lucid_core.rasterize.choice"):
        for _ in range(2):
            rasterize(random_splats(n=5), three_views(), W, H)
    assert [record.message for record in caplog.records] == [
        "rasterizer: gswarp on cpu (gsplat cannot be used: there is no nvcc)"
    ]


# What torch and Warp raise, with CUDA's own words; see the CUDA Runtime API, cudaError_t
CANNOT_RUN = (
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: device kernel image is invalid",
    "CUDA error: the provided PTX was compiled with an unsupported toolchain.",
    "/home/user/.cache/gsplat_cuda.so: undefined symbol: _ZN3c105ErrorC2E",
    "Failed to load kernel '_render_tiles' on device 'cuda:0'",
)
NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Failed to allocate 1073741824 bytes on device 'cuda:0'"),
)
GPU_LOST = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
)
ONE_VIEW = Cameras(three_views().viewmats[:1], three_views().Ks[:1])


def render_one_view(**options):
    return rasterize(random_splats(n=20), ONE_VIEW, W, H, **options)


@pytest.mark.parametrize("error", [*map(RuntimeError, CANNOT_RUN), *NO_MEMORY], ids=str)
def test_auto_goes_on_when_a_backend_fails_and_stays_there(monkeypatch, caplog, error):
    fake_probe(monkeypatch, gsplat="", gswarp="")
    called = fake_renderers(monkeypatch, "gsplat", "gswarp", error=error)
    as_if_on_cuda(monkeypatch)
    with caplog.at_level(logging.WARNING, "lucid_core.rasterize.choice"):
        first, second = render_one_view(), render_one_view()
    assert called == ["gsplat", "gswarp", "gswarp"]
    assert len(caplog.records) == 1 and "rasterizer gsplat" in caplog.text
    assert torch.equal(first.rgb, second.rgb)


@pytest.mark.parametrize(("error", "again"), [(NO_MEMORY[0], True), (RuntimeError(CANNOT_RUN[0]), False)])
def test_a_new_run_tries_again_what_had_no_memory(monkeypatch, error, again):
    fake_probe(monkeypatch, gsplat="", gswarp="no")
    called = fake_renderers(monkeypatch, "gsplat", error=error)
    as_if_on_cuda(monkeypatch)
    for run in (1, 2):
        tried_now = again or run == 1
        assert device_for("auto").type == ("cuda" if tried_now else "cpu") and slowdown() == ""
        for _ in range(2):
            render_one_view()
        assert ("gsplat" in slowdown() and "numba" in slowdown()) == tried_now
    assert called == ["gsplat"] * (2 if again else 1)


def test_a_bug_is_no_reason_to_render_slowly(monkeypatch):
    """It surfaces, again and again, until somebody mends it or chooses another backend."""
    fake_probe(monkeypatch, gsplat="", gswarp="")
    called = fake_renderers(
        monkeypatch, "gsplat", "gswarp", error=RuntimeError("expected scalar type Float but found Half")
    )
    as_if_on_cuda(monkeypatch)
    for _ in range(2):
        with raises(RenderError, backend="gsplat", reason="expected scalar type Float but found Half"):
            render_one_view()
    assert called == ["gsplat", "gsplat"] and slowdown() == ""


@pytest.mark.parametrize("message", GPU_LOST)
def test_a_lost_gpu_ends_the_run_and_is_said(monkeypatch, message):
    """No other backend could read the splats from it."""
    fake_probe(monkeypatch, gsplat="", gswarp="")
    called = fake_renderers(monkeypatch, "gsplat", "gswarp", "numba", error=RuntimeError(message))
    as_if_on_cuda(monkeypatch)
    with raises(LostGpu, backend="gsplat", reason=message):
        render_one_view()
    assert called == ["gsplat"]


def test_a_gpu_that_is_lost_while_a_backend_is_tried_ends_the_run(monkeypatch):
    fake_prepare(monkeypatch, RuntimeError(GPU_LOST[0]))
    with raises(LostGpu, backend="gsplat", reason=GPU_LOST[0]):
        device_for("auto")


def test_a_backend_that_found_no_memory_to_be_tried_is_tried_again(monkeypatch):
    prepared = fake_prepare(monkeypatch, NO_MEMORY[0])
    monkeypatch.setattr(choice, "_against", {"gswarp": "no"})
    for count in (1, 2):
        assert device_for("auto").type == "cpu" and len(prepared) == count
        assert "gsplat has no memory" in slowdown()


def fake_prepare(monkeypatch, error):
    """There is a GPU, and gsplat ends so when it is prepared -> a list that grows each time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    called = []

    def prepare():
        called.append("gsplat")
        raise error

    monkeypatch.setattr("lucid_core.rasterize.cuda_gsplat.prepare", prepare)
    return called


def test_checking_an_input_tries_nothing_and_forgets_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    tried = fake_probe(monkeypatch, gsplat="", gswarp="no")
    fake_renderers(monkeypatch, "gsplat", error=NO_MEMORY[0])
    as_if_on_cuda(monkeypatch)
    for backend in BACKENDS:
        require_usable(backend)
    assert not tried
    render_one_view()
    said = slowdown()
    for backend in ("auto", "gsplat", "numba"):
        require_usable(backend)  # gsplat's memory may be free when the run begins
    with raises(BackendUnavailable, backend="gswarp", reason="no"):
        require_usable("gswarp")
    assert (
        said
        and slowdown() == said
        and next(choice.candidates("cuda")) == "numba"
        and tried == ["gsplat", "gswarp"]
    )


def test_an_input_that_cannot_work_is_refused_when_it_is_checked(monkeypatch):
    with raises(BadSetting, name="backend", value="'opengl'"):
        require_usable("opengl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with raises(BackendUnavailable, backend="gsplat", reason="needs a CUDA GPU, and torch finds none"):
        require_usable("gsplat")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = "needs the package gswarp: python -m pip install gswarp"
    with raises(BackendUnavailable, backend="gswarp", reason=reason):
        require_usable("gswarp")


def test_auto_ends_at_numba(monkeypatch):
    fake_probe(monkeypatch, gsplat="no", gswarp="no")
    as_if_on_cuda(monkeypatch)
    splats, cameras = random_splats(n=20), three_views()
    assert torch.equal(
        rasterize(splats, cameras, W, H).rgb, rasterize(splats, cameras, W, H, backend="numba").rgb
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_named_backend_that_fails_says_what_to_do(monkeypatch, error):
    """The latter is numpy's, in whose arrays the CPU's kernels work."""
    fake_renderers(monkeypatch, "numba", error=error("out of memory"))
    with raises(RenderOutOfMemory, backend="numba", reason="out of memory"):
        rasterize(random_splats(n=5), three_views(), W, H, backend="numba")


@pytest.mark.parametrize("message", CANNOT_RUN)
def test_a_named_backend_that_cannot_run_on_the_gpu_is_told_from_a_bug(monkeypatch, message):
    fake_renderers(monkeypatch, "numba", error=RuntimeError(message))
    with raises(UnsupportedGpu, backend="numba", reason=message):
        rasterize(random_splats(n=5), three_views(), W, H, backend="numba")


def test_a_renderer_chooses_its_device_once(monkeypatch):
    """Choosing it admits backends again that had no memory, which is for the start of a run alone."""
    chosen = []
    monkeypatch.setattr(
        "lucid_core.rasterize.device_for", lambda backend: chosen.append(backend) or torch.device("cpu")
    )
    renderer = Renderer("numba")
    assert renderer.device == renderer.device == torch.device("cpu") and chosen == ["numba"]


def test_a_cuda_backend_refuses_splats_on_the_cpu():
    with pytest.raises(BadSplats, match="are on cpu") as error:
        rasterize(random_splats(n=5), three_views(), W, H, backend="gswarp")
    assert error.value.name == "means"


def test_what_goes_wrong_in_a_probe_is_the_reason(monkeypatch):
    """Whatever an untried package raises, it is a reason to take another backend, not an end of the run."""
    fake_prepare(monkeypatch, OSError("ninja: build stopped\nand pages more"))
    assert choice.reason_against("gsplat") == "cannot be used: ninja: build stopped"


def test_gsplat_gives_the_contract(monkeypatch):
    """A fake `gsplat.rasterization` by the reference: what we ask of it and make of its answer."""
    from lucid_core.rasterize import cuda_gsplat

    asked = {}

    def fake_rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):
        asked.update(options, bands=colors.shape[1])
        splats = replace(
            random_splats(n=1), means=means, quats=quats, scales=scales, opacities=opacities, sh=colors
        )
        cameras = type(three_views())(viewmats, Ks)
        black = means.new_zeros(len(Ks), 3)
        rgb, alpha, depth, means2d, radii = reference.render(
            splats, cameras, width, height, options["sh_degree"], black
        )
        return torch.cat([rgb, depth], -1), alpha, {"means2d": means2d, "radii": radii}

    fake_package = type("fake_gsplat", (), {"rasterization": staticmethod(fake_rasterization)})
    monkeypatch.setattr(cuda_gsplat, "load", lambda module, package: fake_package)
    arguments = (random_splats(n=20, sh_degree=2), three_views(), W, H, 1, torch.rand(3, 3))
    for ours, truth in zip(cuda_gsplat.render(*arguments), reference.render(*arguments), strict=True):
        torch.testing.assert_close(ours, truth)
    assert asked["bands"] == 4  # not those that are not used
    assert (
        asked["render_mode"] == "RGB+D" and not asked["packed"] and not asked["absgrad"]
    )  # D is accumulated, ED is not
