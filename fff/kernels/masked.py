"""Provider `masked`: all nodes of all trees by one dense product, off-path ones zeroed. Not the place to save work."""

import torch
from torch import Tensor
from torch.nn import functional

from fff.activations import activation_named
from fff.topology import depth_of, path_length, walk


def masked(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: str) -> Tensor:
    """PathFFF in the authors' training form (arXiv 2311.10770, their PyTorch layer): x (N, H) -> (N, K), autograd.

    The activation is taken at path nodes alone and scattered into zeros, which equals multiplying the activations
    of all nodes by the 0/1 path mask, keeps one (N, T * M) tensor for the backward instead of three, and stays right
    where an off-path score is not finite. Half types: sums in float32, scores rounded once to the type (a rounding
    keeps the sign, and with it the decision).
    """
    trees, node_count, _ = w_in.shape
    levels = path_length(depth_of(node_count))
    act = activation_named(activation).forward
    bias = b_in.reshape(-1) if b_in is not None else None
    scores = functional.linear(x, w_in.flatten(0, 1), bias).view(-1, trees, node_count)
    if levels == 1:
        return act(scores).flatten(1) @ w_out.flatten(0, 1)
    path = walk(scores.detach(), levels)
    active = act(scores.gather(-1, path))
    spread = torch.zeros_like(scores).scatter(-1, path, active)
    return spread.flatten(1) @ w_out.flatten(0, 1)
