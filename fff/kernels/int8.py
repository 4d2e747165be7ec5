"""Int8 trees in plain torch: what the operation takes, and all nodes by one product. The definition is `fff.int8`."""

from typing import NamedTuple

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.int8 import int8_path_fff, quantised
from fff.reference import PathResult
from fff.topology import depth_of, path_length, walk

DTYPES = (torch.float32, torch.bfloat16)
EXACT = 2**24  # float32 holds whole numbers up to here, so that sums below are exact in any order
LARGEST = 127 * 128  # of a product of two bytes


class Int8Operands(NamedTuple):
    """x (N, H) float32 or bfloat16; w_in (T, M, H), w_out (T, M, K) int8; scales, b_in or None (T, M) float32."""

    x: Tensor
    w_in: Tensor
    scale_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    scale_out: Tensor
    activation: str


def int8_definition(operands: Int8Operands) -> PathResult:
    """`fff.int8.int8_path_fff`."""
    return int8_path_fff(*operands)


def int8_masked(operands: Int8Operands) -> PathResult:
    """All nodes of all trees, off-path ones zeroed, with the definition's decisions and scores to the last bit.

    Memory: (N, T * M) float32 several times, and the weights in float32.
    """
    x, w_in, scale_in, b_in, w_out, scale_out, activation = operands
    wide = torch.float32 if w_in.shape[-1] * LARGEST <= EXACT else torch.float64
    whole, scale = quantised(x)
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        dots = (whole.to(wide) @ w_in.flatten(0, 1).to(wide).t()).float().view(len(x), *scale_in.shape)
        scores = dots * scale[:, None, None] * scale_in
        if b_in is not None:
            scores = scores + b_in
        path = walk(scores, path_length(depth_of(w_in.shape[1])))
        on_path = scores.gather(-1, path)
        active = activation_named(activation).forward(on_path) * scale_out.expand_as(scores).gather(-1, path)
        spread = torch.zeros_like(scores).scatter(-1, path, active)
        y = spread.flatten(1) @ w_out.flatten(0, 1).float()
    return PathResult(y.to(x.dtype), path, on_path)
