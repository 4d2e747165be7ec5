"""Auxiliary losses of trees by name, from the decisions that a forward pass took. Not when they count (hardening)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fff.decisions import bernoulli_entropy


class Decisions(NamedTuple):
    """The decisions that a forward pass took or weighed, for the auxiliary losses.

    scores (N, T, J) of inner nodes; nodes (N, T, J) int64 in heap order; reach (N, T, J) in [0, 1]; inner: nodes of a
    tree that decide, 2^D - 1. Hard forms give the D nodes on the path with reach 1, the soft form all.
    """

    scores: Tensor
    nodes: Tensor
    reach: Tensor
    inner: int


def entropy_loss(decisions: Decisions, temperature: Tensor) -> Tensor:
    """Sum over nodes of the decisions' Bernoulli entropies (nats), mean over tokens.

    L_harden of arXiv 2308.14711, section 3. In the hard forms the sum runs over the nodes on the path, which are all
    that were computed.
    """
    if not decisions.scores.numel():
        return decisions.scores.sum().float()
    return bernoulli_entropy(decisions.scores, temperature).flatten(1).sum(1).mean()


def balance_loss(decisions: Decisions, temperature: Tensor) -> Tensor:
    """How far the nodes are from sending half of their tokens each way, in [0, 1].

    sum over inner nodes of share(i) * (2 * mean_i(p) - 1)^2, divided by T * D: share(i) is the part of the tokens that
    reaches node i, mean_i(p) the reach-weighted mean of sigmoid(score / temperature) there. 0: every node divides
    evenly, so that all leaves are used alike; 1: all tokens take one path. It is the aim of arXiv 2405.16836's load
    balancing by nodes instead of leaves, because a conditional forward knows the path's nodes alone.
    """
    tokens, trees, count = decisions.scores.shape
    if not tokens * count:
        return decisions.scores.sum().float()
    p = torch.sigmoid(decisions.scores.float() / temperature)
    weight = decisions.reach.float()
    index = decisions.nodes + decisions.inner * torch.arange(trees, device=p.device)[:, None]
    empty = p.new_zeros(trees * decisions.inner)
    reached = empty.index_add(0, index.flatten(), weight.flatten())
    right = empty.index_add(0, index.flatten(), (weight * p).flatten())
    lean = 2 * right / reached.clamp(min=1e-9) - 1
    depth = math.log2(decisions.inner + 1)
    return (reached * lean.square()).sum() / (tokens * trees * depth)


Loss = Callable[[Decisions, Tensor], Tensor]  # of a pass's decisions and the temperature
TREE_LOSSES: dict[str, Loss] = {"entropy": entropy_loss, "balance": balance_loss}
