"""The definition of LeafFFF on eight-bit integers, to which every provider of it is held. Written to be read, not fast.

A leaf's rows and a token are kept as in `fff.int8`. Decisions are few and a wrong one costs all of a token's output, so
they have finer numbers: int16, with as many levels as an int32 holds sums of. All sums of products are exact, and every
other step is one rounding of IEEE 754 in float32: all providers take the same decisions, to the last bit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.int8 import quantised
from fff.reference import PathResult
from fff.topology import child, first_node

MOST_LEVEL = 2**15 - 1  # of a number in 16 bits


class Int8Networks(NamedTuple):
    """Two-layer networks side by side: rows in, and for each output a row over the hidden neurons.

    w_in (leaves, R, H), w_out (leaves, K, W) int8; scale_in, b_in (leaves, R), scale_out, b_out (leaves, K) float32. R
    is W, or gated 2 W: neurons' rows, then values'.
    """

    w_in: Tensor
    scale_in: Tensor
    b_in: Tensor
    w_out: Tensor
    scale_out: Tensor
    b_out: Tensor


def decision_levels(width: int) -> int:
    """The largest number of a decision's row and of a token of `width` numbers, so that sums are below 2^31."""
    return min(MOST_LEVEL, math.isqrt((2**31 - 1) // width))


def int8_leaf_fff(
    x: Tensor,
    w_node: Tensor,
    scale_node: Tensor,
    b_node: Tensor,
    leaves: Int8Networks,
    master: Int8Networks | None,
    activation: str,
    *,
    gated: bool = False,
) -> PathResult:
    """`fff.reference.leaf_fff` on quantised rows: outputs in x's dtype, scores in float32.

    A decision's score is s = float32(p_x . w_node[i]) * scale_p * scale_node[i] + b_node[i], from left to right, where
    p_x has `decision_levels(H)`; a token goes right if s > 0. Then y = network(leaf) + network(master), as `network`
    says; the factors with which a LeafFFF mixes the two are in scale_out and b_out already. A token that is not finite
    has scores of NaN: it goes left everywhere, and its output is NaN.

    x (N, H) float32 or bfloat16; w_node (2^D - 1, H) int16; scale_node, b_node (2^D - 1) float32; master: one network.
    """
    depth = len(w_node).bit_length()
    fine, fine_scale = quantised(x, decision_levels(x.shape[-1]))
    node = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    visited, scored = [node], []
    for _ in range(depth):
        dot = (w_node[node].long() * fine.long()).sum(-1)
        score = dot.float() * fine_scale * scale_node[node] + b_node[node]
        node = child(node, score)
        visited.append(node)
        scored.append(score)
    whole, scale = quantised(x)
    y = torch.zeros(x.shape[0], leaves.b_out.shape[-1], device=x.device)
    leaf = node - first_node(depth)
    for number in leaf.unique().tolist():
        here = leaf == number
        y[here] = network(whole[here], scale[here], leaves, number, activation, gated=gated)
    if master is not None:
        y = y + network(whole, scale, master, 0, activation, gated=gated)
    scores = torch.stack(scored, -1) if scored else fine_scale.new_zeros(x.shape[0], 0)
    return PathResult(y.to(x.dtype), torch.stack(visited, -1)[:, None], scores[:, None])


def network(
    whole: Tensor, scale: Tensor, networks: Int8Networks, number: int, activation: str, *, gated: bool
) -> Tensor:
    """One network's output (N, K) float32 of quantised tokens (N, H), scale (N,).

    Row r of the first layer gives float32(q_x . w_in[r]) * scale * scale_in[r] + b_in[r]; neurons are its activations,
    gated times the values. They are quantised, a scale for each token, and the second layer is as the first.
    """
    w_in, scale_in, b_in, w_out, scale_out, b_out = (tensor[number] for tensor in networks)
    scores = _linear(whole, scale, w_in, scale_in, b_in)
    act = activation_named(activation).forward
    if gated:
        neurons, values = scores.chunk(2, -1)
        hidden = act(neurons) * values
    else:
        hidden = act(scores)
    return _linear(*quantised(hidden), w_out, scale_out, b_out)


def _linear(whole: Tensor, scale: Tensor, rows: Tensor, row_scale: Tensor, bias: Tensor) -> Tensor:
    dots = whole.double() @ rows.double().t()  # whole numbers far below 2^53, exact in any order
    return dots.float() * scale[:, None] * row_scale + bias
