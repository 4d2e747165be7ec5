"""What benches of layers share: the opponent, a training step, one thing that is timed. Not how it is timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTH = 768


def dense(width: int, dtype: torch.dtype, size: int = WIDTH) -> nn.Module:
    """The opponent: Linear, GELU, Linear without biases, (..., size) -> (..., size)."""
    layers = (nn.Linear(size, width, bias=False), nn.GELU(), nn.Linear(width, size, bias=False))
    return nn.Sequential(*layers).to(dtype)


def training_step(module: nn.Module, x: Tensor) -> None:
    """Forward and backward, gradients written anew. The gradient of the output is given: any loss takes longer."""
    for parameter in module.parameters():
        parameter.grad = None
    x.grad = None
    module(x.requires_grad_()).backward(x.detach())


@dataclass(frozen=True)
class Case:
    """One thing that is timed."""

    run: Callable[[nn.Module, Tensor], object]
    module: nn.Module
    inputs: list[Tensor]

    def __call__(self, turn: int) -> None:
        """Run it once, on the turn's input."""
        self.run(self.module, self.inputs[turn % len(self.inputs)])
