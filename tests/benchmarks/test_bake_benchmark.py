"""The splat of the benchmark `bake` lies on the true surface, in the true colours."""

import numpy as np
import pytest
import torch

from benchmarks import bake
from demo import world
from demo.score import psnr
from lucid_core.rasterize import rasterize


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(bake, "SPLATS", 3000)


def test_the_splat_covers_the_ball(few):
    splats = bake.cover(world.parse("a red ball"))
    assert len(splats) == 3000
    np.testing.assert_allclose(splats.means.norm(dim=-1), 0.8, atol=2e-3)


def test_the_splat_looks_like_the_truth(few):
    thing = world.parse("a red mushroom")
    cameras, truth = bake.look_at(thing, 4, 64, 1.0)
    shown = rasterize(bake.cover(thing), cameras, 64, 64, background=torch.ones(3)).rgb
    assert psnr(shown.clamp(0, 1), truth) > 15
