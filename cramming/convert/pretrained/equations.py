"""Normal equations of a block's output layer: which neurons to keep, and their rows out by ridge. Not trees.

Neurons and a constant are the columns of A; of tokens weighted by v the sums A'vA and A'vY are all that is kept. A
norm behind a block divides by the token's spread, so tokens count by its inverse square.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cramming.convert.pretrained.dense import Dense

CHUNK = 8192


@dataclass
class Equations:
    """gram (P, P) and cross (P, K) float64 of P columns, the last of which is the constant; tokens: their weight."""

    gram: Tensor
    cross: Tensor
    tokens: float

    @property
    def constant(self) -> int:
        """Number of the column of ones."""
        return len(self.gram) - 1

    def penalty(self, ridge: float) -> float:
        """The ridge of every column but the constant: against the mean square of a neuron's activation."""
        return ridge * float(self.gram.diagonal()[:-1].mean()) + 1e-9


def equations(dense: Dense, x: Tensor, y: Tensor, weight: Tensor, *, bias: bool = True) -> Equations:
    """Of tokens x (N, H), what is wanted of them y (N, K), their weights (N,).

    bias: whether neurons have their input biases.
    """
    neurons = len(dense.w_in)
    gram = torch.zeros(neurons + 1, neurons + 1, dtype=torch.float64)
    cross = torch.zeros(neurons + 1, y.shape[1], dtype=torch.float64)
    plain = dense if bias else Dense(**{**vars(dense), "b_in": torch.zeros_like(dense.b_in)})
    for rows in torch.arange(len(x)).split(CHUNK):
        active = plain.hidden(x[rows].float())
        columns = torch.cat([active, active.new_ones(len(active), 1)], 1)
        scaled = columns * weight[rows, None]
        gram += (scaled.t() @ columns).double()
        cross += (scaled.t() @ y[rows].float()).double()
    return Equations(gram, cross, float(weight.sum()))


def choose(equations: Equations, count: int, ridge: float, fixed: Iterable[int] = ()) -> list[int]:
    """Numbers of `count` neurons, best first: each lowers the error most beside those before it (forward selection).

    fixed: columns that are there beside the constant.
    """
    gram, error = equations.gram.float(), equations.cross.float()
    penalty = equations.penalty(ridge)
    left = gram.diagonal().clone()
    forced = [equations.constant, *fixed]
    factors = torch.zeros(len(forced) + count, len(gram))
    free = torch.ones(len(gram), dtype=torch.bool)
    free[forced] = False
    found = []
    for step in range(len(factors)):
        if step < len(forced):
            pick = forced[step]
        else:
            gain = torch.linalg.vector_norm(error, dim=1).square() / (left.clamp_min(0) + penalty)
            pick = int(torch.where(free, gain, -1.0).argmax())
            found.append(pick)
        free[pick] = False
        root = (left[pick].clamp_min(0) + penalty).sqrt()
        column = (gram[pick] - factors[:step, pick] @ factors[:step]) / root
        factors[step] = column
        error.addr_(column, error[pick] / root, alpha=-1)  # in place: a temporary of its size takes as long again
        left -= column.square()
    return found


def solve(equations: Equations, chosen: list[int], ridge: float) -> tuple[Tensor, Tensor]:
    """Rows out (k, K) of the chosen neurons and the constant's (K,)."""
    columns = [*chosen, equations.constant]
    gram, cross = equations.gram[columns][:, columns].clone(), equations.cross[columns]
    penalise(gram, equations.penalty(ridge), len(chosen))
    found = torch.linalg.solve(gram, cross).float()
    return found[:-1], found[-1]


def penalise(gram: Tensor, penalty: float, neurons: int) -> None:
    """Add the ridge to the first `neurons` columns; the constant gets next to none, against singularity."""
    gram.diagonal()[:neurons] += penalty
    gram.diagonal()[neurons:] += 1e-6 * penalty + 1e-9
