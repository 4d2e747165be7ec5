"""Provider `masked`: all nodes of all trees by one dense product, off-path ones zeroed. Not the place to save work."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fff.activations import activation_named
from fff.decisions import reach, right_probability, straight_through_gates
from fff.kernels.operands import PathOperands
from fff.reference import PathResult
from fff.topology import depth_of, first_node, path_length, walk


def masked(operands: PathOperands) -> PathResult:
    """PathFFF in the authors' training form (arXiv 2311.10770, their PyTorch layer): x (N, H) -> y (N, K), autograd.

    The activation is taken at path nodes alone and scattered into zeros, which equals multiplying the activations
    of all nodes by the 0/1 path mask, keeps one (N, T * M) tensor for the backward instead of three, and stays right
    where an off-path score is not finite. Half types: sums in float32, scores rounded once to the type (a rounding
    keeps the sign, and with it the decision). `flips` and `temperature` as in `fff.reference.path_fff`.
    """
    x, w_in, b_in, w_out, activation, flips, temperature = operands
    levels = path_length(depth_of(w_in.shape[1]))
    act = activation_named(activation).forward
    scores = all_scores(x, w_in, b_in)
    path = walk(scores.detach(), levels, flips)
    if levels == 1:
        return PathResult(act(scores).flatten(1) @ w_out.flatten(0, 1), path, scores.gather(-1, path))
    y, on_path = along_paths(scores, path, w_out, act, temperature)
    return PathResult(y, path, on_path)


def along_paths(
    scores: Tensor,
    path: Tensor,
    w_out: Tensor,
    act: Callable[[Tensor], Tensor],
    temperature: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output (N, K) of the nodes on given paths (N, T, L) int64, and their scores (N, T, L), from all scores (N, T, M).

    With a temperature the decisions on the paths have straight-through gradients.
    """
    on_path = scores.gather(-1, path)
    active = act(on_path)
    if temperature is not None:
        active = active * straight_through_gates(path, on_path, temperature).to(active.dtype)
    spread = torch.zeros_like(scores).scatter(-1, path, active)
    return spread.flatten(1) @ w_out.flatten(0, 1), on_path


def soft(operands: PathOperands, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PathFFF's soft form (see `fff.reference.soft_path_fff`): y (N, K), scores and reach (N, T, M).

    The operands' flips are (N, T, 2^D - 1) bool or None. Probabilities in float32 for half types.
    """
    x, w_in, b_in, w_out, activation, flips, _ = operands
    inner = first_node(depth_of(w_in.shape[1]))
    scores = all_scores(x, w_in, b_in)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    reached = reach(right_probability(wide[..., :inner], temperature, flips))
    active = activation_named(activation).forward(scores) * reached.to(scores.dtype)
    return active.flatten(1) @ w_out.flatten(0, 1), wide, reached


def all_scores(x: Tensor, w_in: Tensor, b_in: Tensor | None) -> Tensor:
    """Scores (N, T, M) of every node."""
    trees, node_count, _ = w_in.shape
    bias = b_in.reshape(-1) if b_in is not None else None
    return functional.linear(x, w_in.flatten(0, 1), bias).view(-1, trees, node_count)
