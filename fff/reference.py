"""The definition of the layers, to which every provider is held. Written to be read and to run in float64, not fast."""

from typing import NamedTuple

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.topology import child, depth_of, path_length


class PathResult(NamedTuple):
    """Outputs y (N, K); visited nodes (N, T, L) int64 in heap order; their scores (N, T, L)."""

    y: Tensor
    nodes: Tensor
    scores: Tensor


def path_fff(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: str) -> PathResult:
    """PathFFF, arXiv 2311.10770, section 2.1 (Algorithm 1: conditional matrix multiplication, then its transpose).

    A token starts at the root of each tree. At node i its score is s = w_in[i] . x + b_in[i]; it adds
    activation(s) * w_out[i] to the output and goes on to the right child if s > 0, else to the left one. Every
    node on the path contributes, the last level included. Plain autograd gives the gradients; the decision has none.

    x (N, H), w_in (T, M, H), b_in (T, M) or None, w_out (T, M, K), all of one floating dtype.
    """
    trees, node_count, _ = w_in.shape
    length = path_length(depth_of(node_count))
    act = activation_named(activation).forward
    biases = b_in.unbind(0) if b_in is not None else None
    y = x.new_zeros(x.shape[0], w_out.shape[-1])
    visited, scored = [], []
    for tree, (rows_in, rows_out) in enumerate(zip(w_in.unbind(0), w_out.unbind(0), strict=True)):
        node = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        for _ in range(length):
            score = (rows_in[node] * x).sum(-1)
            if biases is not None:
                score = score + biases[tree][node]
            y = y + act(score).unsqueeze(-1) * rows_out[node]
            visited.append(node)
            scored.append(score)
            node = child(node, score.detach())
    shape = (x.shape[0], trees, length)
    return PathResult(y, torch.stack(visited, -1).view(shape), torch.stack(scored, -1).view(shape))
