"""The measure of how different two encoders' gradients are."""

from dataclasses import replace

import pytest
import torch

from benchmarks.quality.cases import workflow
from benchmarks.taesd import OF, compared
from demo.prior import DemoPrior


class Doubled(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        return 2 * self.network(pixels)


def test_an_encoder_agrees_with_itself_and_is_half_of_its_double():
    case = workflow()
    splats = replace(case.start, count=300).splats(0)
    prior = DemoPrior()
    found = compared(prior, Doubled(prior.encoder), splats, case, 0.5)
    assert found == pytest.approx(dict.fromkeys(OF, 1.0) | {"x": 2.0, "x_means": 2.0}, abs=1e-4)
