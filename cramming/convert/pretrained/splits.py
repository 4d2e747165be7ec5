"""Hyperplanes that part tokens in halves, level by level, in closed form. No neurons.

A node's direction is found by power iteration over its own tokens: where their inputs vary most (the first principal
component), or where what is wanted of them depends most on the input. For leaves the first was better in trials, also
than 2-means and than directions of what a trunk left over; for nodes, which are neurons themselves, the second is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 12


@dataclass(frozen=True)
class Level:
    """One level's hyperplanes: weight (nodes, H) and bias (nodes,); a score's standard deviation is about 1."""

    weight: Tensor
    bias: Tensor


def scale_of(x: Tensor) -> Tensor:
    """(H,) by which columns of x (N, H) count alike, so that a few large ones do not decide alone."""
    return 1 / (x.square().mean(0) - x.mean(0).square()).clamp_min(1e-12).sqrt()


def split_level(
    x: Tensor, scale: Tensor, at: Tensor, nodes: int, generator: torch.Generator, wanted: Tensor | None = None
) -> tuple[Level, Tensor]:
    """Hyperplanes for the tokens x (N, H) at nodes `at` (N,) of a level, and the tokens' scores (N,).

    Args:
        scale: see `scale_of`.
        wanted: (N, K), what the directions are to tell of; None for the inputs themselves.
    """
    order = at.argsort(stable=True)
    ends = torch.bincount(at, minlength=nodes).cumsum(0).tolist()
    weight, bias, found = torch.zeros(nodes, x.shape[1]), torch.zeros(nodes), torch.zeros(len(x))
    first = torch.randn(x.shape[1], generator=generator, device="cpu").to(x.device)
    for node, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if end == begin:
            continue
        mine = order[begin:end]
        rows = x[mine]
        direction = _direction(rows, rows * scale if wanted is None else wanted[mine], scale, first) * scale
        score = rows @ direction
        middle, spread = _middle(score), score.std(correction=0).clamp_min(1e-6)
        weight[node], bias[node] = direction / spread, -middle / spread
        found[mine] = (score - middle) / spread
    return Level(weight, bias), found


def _direction(rows: Tensor, wanted: Tensor, scale: Tensor, first: Tensor) -> Tensor:
    """The first left singular vector (H,) of the covariance of scaled rows (n, H) with what is wanted (n, K)."""
    mean, wanted_mean = rows.mean(0) * scale, wanted.mean(0)
    direction = first / first.norm()
    for _ in range(ROUNDS):
        score = rows @ (direction * scale) - mean @ direction
        answer = wanted.t() @ score - wanted_mean * score.sum()
        back = wanted @ answer - wanted_mean @ answer
        direction = (rows.t() @ back) * scale - mean * back.sum()
        direction = direction / direction.norm().clamp_min(1e-20)
    return direction


def _middle(values: Tensor) -> Tensor:
    """The median, between two values where their number is even."""
    ranked, half = values.sort().values, len(values) // 2
    return ranked[half] if len(values) % 2 else (ranked[half - 1] + ranked[half]) / 2
