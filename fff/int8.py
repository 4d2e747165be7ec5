"""The definition of trees of eight-bit integers, to which every provider of them is held. Written to be read, not fast.

A row, of weights or a token, is kept as whole numbers from -127 to 127 and one float32 scale. A score is the exact sum
of products of whole numbers, rounded to float32 once, times the token's scale, times the row's, and the bias added,
each step rounded as IEEE 754 has it: so every provider takes the same decisions, to the last bit, on every machine.
"""

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.reference import PathResult
from fff.topology import child, depth_of, path_length

LEAST = 2.0**-50  # rows without a larger number count as zeros: scores stay above float32's denormal numbers
LEVELS = 127
WIDEST = 2**17  # values of a row: the products of two rows then sum up to an int32


def quantised(rows: Tensor, most_level: int = LEVELS) -> tuple[Tensor, Tensor]:
    """Rows (..., H) of any floating dtype -> whole numbers (..., H) int8, scales (...) float32.

    With m the row's largest absolute value, the scale is m / 127 and a number x * (127 / m), rounded to the nearest,
    ties to even, all in float32; with another `most_level` than 127, that stands in its place, and numbers are int16. A
    row whose m is below 2^-50 has zeros and the scale 0; one with a value that is not
    finite, zeros and the scale NaN.
    """
    rows = rows.float()
    most = rows.abs().amax(-1, keepdim=True)
    usable = (most >= LEAST) & most.isfinite()
    levels = torch.full_like(most, most_level)  # a tensor: torch would multiply with a number's inverse
    whole = torch.where(usable, rows * (levels / most), 0).round()
    whole = whole.to(torch.int8 if most_level == LEVELS else torch.int16)
    scale = torch.where(usable, most / levels, torch.where(most < LEAST, 0.0, torch.nan))
    return whole, scale.squeeze(-1)


def int8_path_fff(
    x: Tensor,
    w_in: Tensor,
    scale_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    scale_out: Tensor,
    activation: str,
) -> PathResult:
    """`fff.reference.path_fff` on quantised rows: outputs in x's dtype, scores in float32.

    A token is quantised once. Its score at node i is s = float32(q_x . w_in[i]) * scale_x * scale_in[i] + b_in[i], from
    left to right; it goes right if s > 0. y = sum over trees and path nodes of (activation(s) * scale_out[i]) *
    w_out[i], in float32 from the first tree's root down. A token that is not finite has scores of NaN: it goes left
    everywhere, and its output is NaN.

    x (N, H) float32 or bfloat16; w_in (T, M, H), w_out (T, M, K) int8; scale_in, scale_out, b_in (T, M) float32.
    """
    trees, node_count, _ = w_in.shape
    length = path_length(depth_of(node_count))
    act = activation_named(activation).forward
    whole, scale = quantised(x)
    y = torch.zeros(x.shape[0], w_out.shape[-1], device=x.device)
    visited, scored = [], []
    for tree in range(trees):
        node = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        for _ in range(length):
            dot = (w_in[tree, node].int() * whole.int()).sum(-1, dtype=torch.int32)
            score = dot.float() * scale * scale_in[tree, node]
            if b_in is not None:
                score = score + b_in[tree, node]
            y = y + (act(score) * scale_out[tree, node]).unsqueeze(-1) * w_out[tree, node].float()
            visited.append(node)
            scored.append(score)
            node = child(node, score)
    shape = (x.shape[0], trees, length)
    nodes, scores = (torch.stack(parts, -1).view(shape) for parts in (visited, scored))
    return PathResult(y.to(x.dtype), nodes, scores)
