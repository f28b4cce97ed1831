"""The rounding of float32 in a computation, as the unit for how far two ways to one result may lie apart.

Two orders of summation (our form of a step and the host's, a batch and its rows, another CPU's kernels) end
apart by what their roundings become on the way through the model. A bound in plain numbers would depend on
the model, the steps and the CPU; so the unit is measured where the result is: it is computed once more on the
same CPU with the terms of every product of matrices, every convolution and every attention in another order.
No sum is changed but by its rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# how far two right ways may lie apart, in units: other orders reach 2, the kernels of other batch sizes 5
ROUNDINGS = 8
ULP = torch.finfo(torch.float32).eps
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # where the first of their two matrices is
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class Reordered(TorchDispatchMode):
    """Every sum of many products in float32 is taken in an order drawn with a seed, those of a backward pass
    too.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs, floats = func._schema.name.split("::")[1], kwargs or {}, torch.float32
        if name in PRODUCTS and args[PRODUCTS[name]].dtype == floats:
            at = PRODUCTS[name]
            a, b = args[at : at + 2]
            order = self.order(a.shape[-1])
            args = (*args[:at], a.index_select(-1, order), b.index_select(-2, order), *args[at + 2 :])
        elif name == "convolution" and args[0].dtype == floats and args[8] == 1:
            x, w, *others = args
            order = self.order(x.shape[1])
            args = (x.index_select(1, order), w.index_select(0 if others[4] else 1, order), *others)
        elif name == "convolution_backward" and args[0].dtype == floats and args[9] == 1:
            return self.convolution_backward(func, *args)
        elif name == ATTENTION and args[0].dtype == floats:
            args, kwargs = self.attention(*args, **kwargs)
        else:  # in inference mode a convolution or a linear layer comes whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return func(*args, **kwargs)

    def order(self, length: int) -> torch.Tensor:
        return torch.randperm(length, generator=self.generator)

    def convolution_backward(self, func, gradient, x, w, *others):
        """The gradient of x sums over the channels of `gradient`."""
        order = self.order(gradient.shape[1])
        to_w = 1 if others[4] else 0
        found = func(gradient.index_select(1, order), x, w.index_select(to_w, order), *others)
        back = order.argsort()
        of_x, of_w, of_bias = found
        return (
            of_x,
            None if of_w is None else of_w.index_select(to_w, back),
            None if of_bias is None else of_bias[back],
        )

    def attention(self, q, k, v, dropout=0.0, is_causal=False, attn_mask=None, scale=None):
        """Another order of the channels, and of the keys where no position counts."""
        channels = self.order(q.shape[-1])
        q, k = q.index_select(-1, channels), k.index_select(-1, channels)
        if not is_causal:
            keys = self.order(k.shape[-2])
            k, v = k.index_select(-2, keys), v.index_select(-2, keys)
            attn_mask = (
                attn_mask
                if attn_mask is None or attn_mask.shape[-1] == 1
                else attn_mask.index_select(-1, keys)
            )
        return (q, k, v, dropout, is_causal), {"attn_mask": attn_mask, "scale": scale}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest one of two values in the same place."""
    return float((a - b).abs().max())


def rounding_of(compute: Callable[[], torch.Tensor], result: torch.Tensor | None = None) -> float:
    """The unit: the largest difference that rounding makes to `compute()`, which gave `result`.

    At least one unit in the last place of the largest value: where nothing is summed the result itself is
    rounded.
    """
    result = compute() if result is None else result
    with Reordered():
        again = compute()
    return max(difference(again, result), ULP * float(result.abs().max()))
