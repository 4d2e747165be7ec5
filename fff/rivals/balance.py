"""Balance without a loss: a bias per unit that moves against the unit's surplus. Not a layer, nor when a step ends."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fff.kernels.autograd import transformed
from fff.layers.base import Routed


class Balanced(Routed):
    """A layer whose choice of units has a bias that no gradient trains (arXiv 2408.15664, algorithm 1).

    The bias takes part in the choice alone, never in the output. In training a forward pass counts what its tokens
    chose; `rebalance`, after each update of the weights, lowers the bias of units chosen more often than the mean by
    `balance_rate`, raises that of the others, and counts anew.

    Not in the forward pass itself, which knows neither where a step of several microbatches ends nor what other
    processes counted: the bias would move more often with smaller microbatches, apart in each process, and while a
    compiler is warmed up. The counts are sums of whole numbers, the same in any order.

    Attributes:
        b_balance: (units,), the bias. A parameter without gradient: it decides outputs, so checkpoints hold it.
        balance_rate: how far the bias moves in a step.
        visits: (units,) int64, choices since the last move. In no checkpoint: between two steps it is 0.
    """

    b_balance: nn.Parameter

    def __init__(self, units: int, balance_rate: float) -> None:
        super().__init__()
        self.balance_rate = balance_rate
        self.keep("visits", torch.zeros(units, dtype=torch.int64, device="cpu"))

    @property
    def visits(self) -> Tensor:
        """Choices since the last move, on the bias's device."""
        return self.unsaved("visits", self.b_balance.device)

    @torch.no_grad()
    def count(self, chosen: Tensor) -> None:
        """Add the units chosen (any shape, int64) in a pass of training; evaluation does not call this."""
        if not transformed():
            chosen = chosen.flatten()
            self.visits.scatter_add_(0, chosen, torch.ones_like(chosen))

    @torch.no_grad()
    def rebalance(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the bias against the surplus; `total` sums counts over all processes. Waits for no device."""
        visits = self.visits if total is None else total(self.visits)
        surplus = visits * self.units - visits.sum()
        self.b_balance.sub_(surplus.sign().to(self.b_balance.dtype), alpha=self.balance_rate)
        self.visits.zero_()


def balanced_layers(model: nn.Module) -> list[Balanced]:
    """Those of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Balanced)]


def rebalance(model: nn.Module, total: Callable[[Tensor], Tensor] | None = None) -> None:
    """After each update of a model's weights: move the biases of all its layers, see `Balanced.rebalance`."""
    for layer in balanced_layers(model):
        layer.rebalance(total)


def forget(model: nn.Module) -> None:
    """Drop what was counted in passes that belong to no step."""
    for layer in balanced_layers(model):
        layer.visits.zero_()
