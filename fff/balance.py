"""Balance without a loss: biases of choices that move against the surplus. Not a layer, nor when a step ends."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fff.kernels.autograd import transformed
from fff.unsaved import Unsaved


class Balanced(Unsaved):
    """A layer whose choices have biases that move after each update of the weights (arXiv 2408.15664, algorithm 1).

    In training a forward pass counts what its tokens chose; `rebalance`, after each update, lowers the biases of what
    was chosen too often by `balance_rate`, raises those of what was chosen too seldom, and counts anew.

    Not in the forward pass itself, which knows neither where a step of several microbatches ends nor what other
    processes counted: the bias would move more often with smaller microbatches, apart in each process, and while a
    compiler is warmed up. The counts are sums of whole numbers, the same in any order.

    Args:
        shape: of the counts and of `balanced_bias`.
        balance_rate: how far a bias moves in a step; 0 for not at all, and then nothing is counted.

    Attributes:
        visits: (*shape) int64, counted since the last move. In no checkpoint: between two steps it is 0.
    """

    balance_rate: float = 0.0

    def __init__(self, shape: Sequence[int], balance_rate: float) -> None:
        super().__init__()
        self.balance_rate = balance_rate
        self.keep("visits", torch.zeros(*shape if balance_rate else (0,), dtype=torch.int64, device="cpu"))

    @property
    def balanced_bias(self) -> Tensor:
        """The biases that move: a parameter, which checkpoints hold, or a part of one."""
        raise NotImplementedError

    def surplus(self, counts: Tensor) -> Tensor:
        """Whether each choice was taken too often (above 0) or too seldom, from the counts of a step."""
        raise NotImplementedError

    @property
    def visits(self) -> Tensor:
        """What was counted since the last move, on the bias's device."""
        return self.unsaved("visits", self.balanced_bias.device)

    @property
    def counts_now(self) -> bool:
        """Whether a forward pass is one of training, which is to be counted."""
        return self.balance_rate > 0 and self.training and torch.is_grad_enabled()

    @torch.no_grad()
    def count(self, chosen: Tensor, amounts: Tensor | None = None) -> None:
        """Add to the counts: chosen (any shape, int64) numbers them in flat order, `amounts` (int64) says how many."""
        if self.balance_rate and not transformed():
            amounts = torch.ones_like(chosen) if amounts is None else amounts
            self.visits.view(-1).scatter_add_(0, chosen.flatten(), amounts.flatten())

    @torch.no_grad()
    def rebalance(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the biases against the surplus; `total` sums counts over all processes. Waits for no device."""
        bias, counts = self.balanced_bias, self.visits if total is None else total(self.visits)
        bias.sub_(self.surplus(counts).sign().to(bias.dtype), alpha=self.balance_rate)
        self.visits.zero_()


def balanced_layers(model: nn.Module) -> list[Balanced]:
    """Those of a model that have a rate, in order."""
    return [module for module in model.modules() if isinstance(module, Balanced) and module.balance_rate]


def rebalance(model: nn.Module, total: Callable[[Tensor], Tensor] | None = None) -> None:
    """After each update of a model's weights: move the biases of all its layers, see `Balanced.rebalance`."""
    for layer in balanced_layers(model):
        layer.rebalance(total)


def forget(model: nn.Module) -> None:
    """Drop what was counted in passes that belong to no step."""
    for layer in balanced_layers(model):
        layer.visits.zero_()
