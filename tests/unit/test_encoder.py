"""The way back through an encoder in half precision, and in parts."""

import math
from contextlib import contextmanager

import pytest
import torch

from demo.prior import DemoPrior
from demo.taesd import Block
from lucid_core.diffusion import encoder
from lucid_core.diffusion.encoder import encode_in, encode_in_blocks, encode_in_parts
from lucid_core.guidance.ism import ISM, interval_score
from lucid_core.guidance.sds import SDS, noise_residual

SIZE, VIEWS = 32, 2


@pytest.fixture(scope="module")
def prior():
    return DemoPrior()


@pytest.fixture(scope="module")
def images():
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    disc = (axis[:, None] ** 2 + axis[None] ** 2 < 0.4)[None, None].float()
    colors = torch.tensor([[0.8, 0.2, 0.1], [0.2, 0.5, 0.9]])[:, :, None, None]
    noise = torch.rand(VIEWS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return (disc * colors + (1 - disc) * 0.9) * 0.95 + 0.05 * noise


def of_the_model(prior, images, t, is_sds=False):
    """The latents' gradient that ISM (or SDS at its cfg of 100) asks for at t, on the latents of the VAE."""
    generator, conds = torch.Generator().manual_seed(0), prior.prompts("a red mushroom")
    angles = torch.tensor([0.3, 2.0]), torch.zeros(2)
    z0 = prior.encode(images.movedim(1, -1))
    noise = torch.randn(z0.shape, generator=generator)
    if is_sds:
        return 0.1 * noise_residual(SDS(), prior, z0, noise, t, conds.at(prior, *angles)).detach()
    g = interval_score(ISM(), prior, z0, noise, t, max(t - 0.08, 1e-3), conds.at(prior, *angles), generator)
    return (0.1 * g).detach()


def pixels_gradient(encode, images, g):
    (found,) = pixels_gradients(encode, images, [g])
    return found


def pixels_gradients(encode, images, at_latents):
    """One forward pass, and a backward pass for each gradient at the latents."""
    pixels = images.clone().requires_grad_()
    latents = encode(pixels)
    return [torch.autograd.grad(latents, pixels, g, retain_graph=True)[0] for g in at_latents]


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)


def in_dtype(prior, dtype):
    network = DemoPrior().encoder.to(dtype)
    return lambda pixels: encode_in(dtype, network, pixels)


@pytest.fixture(scope="module")
def exact_gradients(prior, images):
    """-> gradients at the latents, and at the pixels in float32, over the whole time range: of ISM as it is,
    a thousand and a million times smaller or larger, and of SDS at a cfg of 100.
    """
    at_latents = []
    for t in (0.001, 0.02, 0.1, 0.5, 0.98):
        ism = of_the_model(prior, images, t)
        at_latents += [factor * ism for factor in (1.0, 1e-3, 1e-6, 1e6)]
        at_latents += [of_the_model(prior, images, t, is_sds=True)]
    return at_latents, pixels_gradients(prior.encoder, images, at_latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_every_gradient_over_the_whole_time_range(prior, images, exact_gradients, dtype):
    at_latents, wanted = exact_gradients
    for found, exact in zip(pixels_gradients(in_dtype(prior, dtype), images, at_latents), wanted):
        assert found.isfinite().all()
        assert (found == 0).float().mean() < (exact == 0).float().mean() + 0.02
        assert cosine(found, exact) > (
            0.99 if dtype == torch.float16 else 0.98
        )  # what rounding in the network leaves
        assert found.norm() / exact.norm() == pytest.approx(1.0, abs=0.03)


def test_without_the_scale_float16_would_lose_them(prior, images):
    network = DemoPrior().encoder.half()
    plain = lambda pixels: network(pixels.half()).float()
    g = 1e-6 * of_the_model(prior, images, 0.02)
    assert (pixels_gradient(plain, images, g) == 0).float().mean() > 0.5
    assert not pixels_gradient(plain, images, 1e6 * of_the_model(prior, images, 0.98)).isfinite().all()


def test_the_scale_is_taken_out_exactly(images):
    """Through a network whose every product is exact in float16, nothing changes but the range."""
    shift = lambda pixels: 2.0 * pixels
    for size in (2.0**-100, 2.0**-21, 1.0, 2.0**32):
        g = size * torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
        g[1] *= 2.0**-13  # each view has a scale of its own
        found = pixels_gradient(lambda pixels: encode_in(torch.float16, shift, pixels), images, g)
        large = g.abs() > 1e-3 * g.abs().amax((1, 2, 3), keepdim=True)
        assert torch.equal(found[large], 2.0 * g[large])


def test_a_view_without_a_gradient_has_none(images):
    g = torch.ones(images.shape)
    g[0] = 0
    found = pixels_gradient(lambda pixels: encode_in(torch.float16, torch.sin, pixels), images, g)
    assert not found[0].any() and found[1].all()


def test_nothing_is_hooked_where_no_gradient_is_asked(images):
    with torch.no_grad():
        assert not encode_in(torch.bfloat16, torch.sin, images.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_give_the_same_gradient_and_keep_less(prior, images, dtype):
    whole = in_dtype(prior, dtype)
    parts = lambda pixels: encode_in_parts(whole, pixels, 1)
    g = of_the_model(prior, images, 0.3)
    torch.testing.assert_close(
        pixels_gradient(parts, images, g),
        pixels_gradient(whole, images, g),
        rtol=1e-2,
        atol=1e-2 * float(g.abs().max()),
    )
    assert 10 * kept(parts, images) < kept(whole, images)


def test_blocks_give_the_same_gradient_and_keep_less(prior, images):
    """Alone, and within a part that is computed again itself."""
    whole, blocks = in_dtype(prior, torch.float32), DemoPrior().encoder
    encode_in_blocks(blocks, (Block,))
    g = of_the_model(prior, images, 0.3)
    exact = pixels_gradient(whole, images, g)
    assert torch.equal(pixels_gradient(blocks, images, g), exact)
    parts = pixels_gradient(lambda pixels: encode_in_parts(blocks, pixels, 1), images, g)
    torch.testing.assert_close(parts, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    assert 3 * kept(blocks, images) < kept(whole, images)


def kept(encode, images):
    """Bytes that autograd holds between forward and backward."""
    storages = {}

    def note(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        latents = encode(images.clone().requires_grad_())
    assert latents.requires_grad
    return sum(storages.values())


def test_a_part_that_runs_out_of_memory_leaves_later_gradients_alone(monkeypatch):
    """The checkpoint() of torch 2.11, seen on a GPU: while the error is held, its hooks on saved tensors stay
    active.
    """

    @contextmanager
    def hooks():
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach(), lambda x: x * math.nan):
            yield

    def checkpoint_of_2_11(compute, *arguments, **options):
        entered = hooks()
        entered.__enter__()
        result = compute(*arguments)
        entered.__exit__(None, None, None)
        return result

    def full(images):
        raise torch.OutOfMemoryError("on purpose")

    monkeypatch.setattr(encoder, "checkpoint", checkpoint_of_2_11)
    with pytest.raises(torch.OutOfMemoryError) as held:
        encode_in_parts(full, torch.rand(2, 8, 8, 3, requires_grad=True), 1)
    x = torch.rand(3, requires_grad=True)
    x.exp().sum().backward()
    assert held.value is not None and torch.equal(x.grad, x.detach().exp())
