"""Comparison of splats bit for bit."""

import torch


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))
