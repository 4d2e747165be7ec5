"""Initial biases of decisions that follow from data: each parts its tokens in half. Not when, nor on which tokens."""

import torch
from torch import Tensor

from fff.layers.base import Hardenable
from fff.topology import nodes_in_tree

TOKENS_AT_ONCE = 2**14  # of a walk, which may compute all nodes


@torch.no_grad()
def split_in_half(layer: Hardenable, x: Tensor) -> None:
    """Set each decision's bias so that half of the tokens x (..., d_in) that reach its node go right.

    Level by level, with the scores of the provider that computes the layer and in the precision that is on: of n tokens
    of different scores floor(n / 2) go right, to the rounding of the biases' dtype; tokens of equal scores stay
    together. The bias lies in the middle between two tokens' scores. Nodes with fewer than 2 tokens get 0.

    Raises:
        ValueError: the layer's decisions have no biases, or x does not fit it or is not finite.
    """
    bias = layer.decision_bias
    if bias is None:
        raise ValueError(f"{type(layer).__name__}: its decisions have no biases, which are to part tokens in half")
    if not x.isfinite().all():
        raise ValueError("tokens that are not finite cannot be parted in half")
    bias.zero_()
    size, flat = nodes_in_tree(layer.depth), x.reshape(-1, x.shape[-1])
    offset = size * torch.arange(layer.trees, device=bias.device)
    for level in range(layer.depth):
        parts = [layer.path(part) for part in flat.split(TOKENS_AT_ONCE)]
        nodes, scores = (torch.cat([part[place][..., level] for part in parts]) for place in (0, 1))
        groups, values = middle_biases((nodes + offset).flatten(), scores.flatten(), bias.dtype)
        bias[groups // size, groups % size] = values


def middle_biases(group: Tensor, score: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Groups of at least 2 scores, and the bias of each under which half of its scores are above 0, the lesser half.

    group (n,) int64, score (n,) -> groups (g,) int64 ascending, biases (g,) of the dtype.
    """
    order = score.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    groups, counts = group[order].unique_consecutive(return_counts=True)
    first_right = counts.cumsum(0) - counts // 2
    groups, first_right = groups[counts > 1], first_right[counts > 1]
    low, high = (score[order[place]].double() for place in (first_right - 1, first_right))
    middle = (-(low + high) / 2).to(dtype)
    rounded_over = high + middle.double() <= 0
    return groups, torch.where(rounded_over, -low.to(dtype), middle)
