"""What a score says of a decision: its probability, the reach of nodes, straight-through gates. Pure functions."""

import torch
from torch import Tensor
from torch.nn import functional


def went_right(nodes: Tensor) -> Tensor:
    """Whether each decision of a path took the right child: nodes (..., L) in heap order -> bool (..., L - 1)."""
    return nodes[..., 1:] % 2 == 0


def taken_probability(nodes: Tensor, scores: Tensor, temperature: Tensor) -> Tensor:
    """sigmoid(+-score / temperature) of the branch that was taken: paths (..., L) -> (..., L - 1)."""
    signed = torch.where(went_right(nodes), scores[..., :-1], -scores[..., :-1])
    return torch.sigmoid(signed / temperature)


def straight_through_gates(nodes: Tensor, scores: Tensor, temperature: Tensor) -> Tensor:
    """Factors (..., L) of the nodes on a path: 1 in value, the reach probability in gradient (arXiv 1308.3432).

    A node's reach is the product of the probabilities of the decisions above it. With each factor p replaced by
    1 + (p - stop_gradient(p)), the forward is the hard layer's and each decision above a node has the gradient
    of its own probability. Only nodes on the path take part: what the other branch would have added is not asked.
    """
    p = taken_probability(nodes, scores, temperature)
    return functional.pad((1 + (p - p.detach())).cumprod(-1), (1, 0), value=1.0)


def straight_through_gradient(nodes: Tensor, scores: Tensor, contributions: Tensor, temperature: Tensor) -> Tensor:
    """Straight-through gradients (N, T, L - 1) of the decisions' scores, see `straight_through_gates`.

    contributions (N, T, L): what each path node adds to the loss's derivative. A decision's gate multiplies the nodes
    below it.
    """
    below = contributions[..., 1:].flip(-1).cumsum(-1).flip(-1)
    p = taken_probability(nodes, scores, temperature)
    slope = p * (1 - p) / temperature
    return torch.where(went_right(nodes), slope, -slope) * below


def right_probability(scores: Tensor, temperature: Tensor, flips: Tensor | None = None) -> Tensor:
    """sigmoid(score / temperature), or 1 minus it where the region leak flips the children (2308.14711, section 3)."""
    p = torch.sigmoid(scores / temperature)
    return p if flips is None else torch.where(flips, 1 - p, p)


def reach(right: Tensor) -> Tensor:
    """Probability that a token reaches each node: (..., 2 ** D - 1) of going right -> (..., 2 ** (D + 1) - 1).

    The product of the decisions' probabilities above the node (arXiv 2308.14711, section 3, equation of FFF_T).
    """
    inner = right.shape[-1]
    level = torch.ones_like(right[..., :1]) if inner else right.new_ones((*right.shape[:-1], 1))
    levels, first = [level], 0
    while first < inner:
        p = right[..., first : 2 * first + 1]
        level = torch.stack((level * (1 - p), level * p), -1).flatten(-2)
        levels.append(level)
        first = 2 * first + 1
    return torch.cat(levels, -1)


def bernoulli_entropy(scores: Tensor, temperature: Tensor) -> Tensor:
    """Entropy (nats) of the decision with probability sigmoid(score / temperature); same shape, float32 or wider."""
    z = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    # H = log(1 + e^z) - z * sigmoid(z): no logarithm of a probability that has rounded to 0.
    return functional.softplus(z) - z * torch.sigmoid(z)
