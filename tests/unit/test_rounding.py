"""The unit that tests of the real host measure float32 with: support/rounding.py."""

import pytest
import torch
from rounding import ROUNDINGS, ULP, Reordered, difference, rounding_of
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu


class Net(nn.Module):
    """Convolutions, a linear layer and attention, as in the models of the host."""

    def __init__(self, seed, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1, stride=2)
            self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.to(dtype)

    def forward(self, x):
        x = silu(self.first(x))
        rows = x.flatten(2).mT
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(rows).chunk(3, -1))
        rows = rows + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.second(rows.mT.unflatten(2, x.shape[2:]))


def repeated(net, x, steps=10):
    """Errors grow on their way through steps, as in a sampler."""
    for _ in range(steps):
        x = x - 0.3 * nn.functional.interpolate(net(x), scale_factor=2)[:, :3]
    return x


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(4))
def test_two_right_ways_lie_within_the_bound(seed, images):
    """Other orders of summation, one image at a time, and float64: each a right way to the same result."""
    net = Net(seed)
    with torch.no_grad():
        compute = lambda: repeated(net, images)
        result, unit = compute(), rounding_of(compute)
        ways = [torch.cat([repeated(net, image[None]) for image in images])]
        ways += [repeated(Net(seed, torch.float64), images.double())]
        for order in range(1, 12):
            with Reordered(order):
                ways.append(compute())
    assert max(difference(way, result) for way in ways) < ROUNDINGS / 2 * unit
    assert unit < 1e-4  # else it would hide mistakes


@pytest.mark.parametrize("seed", range(4))
def test_a_small_mistake_lies_beyond_the_bound(seed, images):
    """A thousandth in one layer's weights."""
    net = Net(seed)
    with torch.no_grad():
        compute = lambda: repeated(net, images)
        result, unit = compute(), rounding_of(compute)
        net.qkv.weight[64:] *= 1.001
        assert difference(compute(), result) > 8 * ROUNDINGS * unit


def test_gradients_are_reordered_too(images):
    net = Net(0)

    def gradient():
        x = images.clone().requires_grad_()
        return torch.autograd.grad(net(x).square().sum(), x)[0]

    result, unit = gradient(), rounding_of(gradient)
    assert 0 < unit < 1e-4
    with Reordered(5):
        assert 0 < difference(gradient(), result) < ROUNDINGS * unit


def test_what_sums_nothing_is_rounded_itself():
    x = torch.tensor([3.0, -4.0])
    assert rounding_of(lambda: x * 1.0) == 4.0 * ULP
