"""What a layer's leaves and decisions do on a set of tokens: counts and figures. Not when they are taken or shown.

Trees with one leaf per token are the case in the words; of another routed layer a tree is a group of units (experts,
keys) and a leaf is a unit, of which a token may use several. Figures of decisions are a tree's alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fff.decisions import bernoulli_entropy, went_right
from fff.layers.base import Route
from fff.topology import first_node

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DECIDED = 0.1  # a decision counts as decided when its probability is outside [0.1, 0.9]


@dataclass(frozen=True)
class Usage:
    """Figures of one layer on N tokens. Tensors are float64 on the CPU, one row per tree.

    Attributes:
        leaves: (N, T) int32, each token's leaf from 0 to 2^D - 1; (N, T, K) where a token uses K units.
        counts: (T, 2^D) int64, tokens per leaf; each row sums to N, or K N.
        entropy: (T,) usage entropy in bits; its maximum is D, or the logarithm of the number of units.
        dead: (T,) int64, leaves that no token reached.
        fullest: (T,) share of the tokens in the fullest leaf.
        imbalance: (T, D) per level, the mean over tokens of |2 right - 1|, where right is the share that the token's
            node sends to the right: 0 when every node divides evenly, 1 when each sends all of its tokens one way.
        decision_entropy: (T, D) mean entropy in bits of the decisions with probability sigmoid(score / temperature).
        decided: (T, D) share of decisions whose probability is outside [0.1, 0.9].
        margins: (T, 5) quantiles 5, 25, 50, 75, 95 % of the decision margin |score| at visited nodes, or of the
            margins of a router's choices.
    """

    leaves: Tensor
    counts: Tensor
    entropy: Tensor
    dead: Tensor
    fullest: Tensor
    imbalance: Tensor
    decision_entropy: Tensor
    decided: Tensor
    margins: Tensor

    @property
    def depth(self) -> int:
        """D, decisions on a path; 0 where no tree chose."""
        return self.imbalance.shape[1]

    @property
    def relative_entropy(self) -> Tensor:
        """(T,) usage entropy as a share of its maximum; 1 for a tree of one leaf."""
        most = math.log2(self.counts.shape[1])
        return self.entropy / most if most else torch.ones_like(self.entropy)

    def churn(self, earlier: Tensor) -> Tensor:
        """(T,) share of the tokens whose leaf differs from that in an earlier measurement's `leaves`.

        With several units per token, the share of them that the token did not use then.

        Raises:
            ValueError: the two are not of the same number of tokens and trees.
        """
        if self.leaves.shape != earlier.shape:
            raise ValueError(f"churn needs the same tokens: {tuple(self.leaves.shape)}, {tuple(earlier.shape)}")
        if self.leaves.dim() == 2:
            return (self.leaves != earlier).double().mean(0)
        return (self.leaves[..., None] != earlier[..., None, :]).all(-1).double().mean((0, 2))


def unit_counts(route: Route) -> Tensor:
    """Tokens per unit (G, size) int64, from a flat route."""
    groups = route.units.shape[1]
    index = route.units + route.size * torch.arange(groups, device=route.units.device)[:, None]
    return torch.bincount(index.flatten(), minlength=groups * route.size).view(groups, route.size)


def usage_entropy(counts: Tensor) -> Tensor:
    """Entropy in bits (T,) float64 of leaf counts (T, leaves); 0 where nothing was counted."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum(-1) / math.log(2)


def measure(route: Route, temperature: float = 1.0) -> Usage:
    """Figures from what at least one token used; `temperature` is that of a tree's decisions.

    Raises:
        ValueError: no token.
    """
    route = route.flat()
    tokens, groups, _ = route.units.shape
    if not tokens:
        raise ValueError("usage needs at least one token")
    scores, counts = route.scores.double().cpu(), unit_counts(route).cpu()
    t = torch.tensor(temperature, dtype=torch.float64)
    quantiles = torch.tensor(QUANTILES, dtype=torch.float64)
    margins = scores.abs().transpose(0, 1).flatten(1)
    decisions = scores if route.nodes is not None else scores[..., :0]
    p = torch.sigmoid(decisions / t)
    return Usage(
        leaves=route.units.cpu().int().squeeze(-1),
        counts=counts,
        entropy=usage_entropy(counts),
        dead=(counts == 0).sum(-1),
        fullest=counts.max(-1).values.double() / tokens,
        imbalance=torch.zeros(groups, 0, dtype=torch.float64) if route.nodes is None else _imbalance(route.nodes.cpu()),
        decision_entropy=bernoulli_entropy(decisions, t).mean(0) / math.log(2),
        decided=((p < DECIDED) | (p > 1 - DECIDED)).double().mean(0),
        margins=_quantiles(margins, quantiles)
        if margins.shape[1]
        else torch.zeros(groups, len(QUANTILES), dtype=torch.float64),
    )


def _imbalance(nodes: Tensor) -> Tensor:
    tokens, trees, length = nodes.shape
    depth = length - 1
    inner = first_node(depth)
    index = (nodes[..., :-1] + inner * torch.arange(trees)[:, None]).flatten()
    right = went_right(nodes).flatten().double()
    reached = torch.bincount(index, minlength=trees * inner).double().view(trees, inner)
    gone = torch.bincount(index, right, minlength=trees * inner).view(trees, inner)
    lean = (2 * gone - reached).abs() / tokens
    levels = [lean[:, first_node(level) : first_node(level + 1)].sum(-1) for level in range(depth)]
    return torch.stack(levels, -1) if levels else torch.zeros(trees, 0, dtype=torch.float64)


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Quantiles (T, Q) of values (T, n); sorted by hand, because torch.quantile refuses more than 16 million."""
    ordered = values.sort(-1).values
    place = (at * (ordered.shape[-1] - 1)).round().long()
    return ordered[:, place]
