"""The activations a node may have, each with its derivative for hand-written backward passes. Not a user's registry."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class Activation(NamedTuple):
    """`forward(score)` and `backward(grad_output, score)`; both elementwise, any floating dtype."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _tanh_backward(grad: Tensor, score: Tensor) -> Tensor:
    return aten.tanh_backward(grad, torch.tanh(score))


ACTIVATIONS = {
    "gelu": Activation(torch.nn.functional.gelu, aten.gelu_backward),
    "gelu_tanh": Activation(
        lambda score: torch.nn.functional.gelu(score, approximate="tanh"),
        lambda grad, score: aten.gelu_backward(grad, score, approximate="tanh"),
    ),
    "relu": Activation(torch.relu, lambda grad, score: aten.threshold_backward(grad, score, 0)),
    "silu": Activation(torch.nn.functional.silu, aten.silu_backward),
    "tanh": Activation(torch.tanh, _tanh_backward),
    "identity": Activation(lambda score: score, lambda grad, score: grad),
}


def activation_named(name: str) -> Activation:
    """The activation of that name; ValueError lists the allowed ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
