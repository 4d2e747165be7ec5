"""The one place where a block's feedforward layer is chosen. Not the layers themselves (fff) nor their settings."""

from typing import Any

import torch
from torch import nn

from fff import LeafFFF, PathFFF


class DenseFF(nn.Module):
    """Dense feedforward layer without biases: y = act(x W_in) W_out, or the gated form of crammed BERT.

    With "gated_gelu" the `width` neurons are halved: y = (u * gelu(v)) W_out, where u and v are the two halves
    (arXiv 2212.14034, section 4.2). Shapes: (..., width of the model) -> the same.
    """

    def __init__(self, hidden_size: int, width: int, activation: str) -> None:
        super().__init__()
        self.gated = activation == "gated_gelu"
        self.dense_in = nn.Linear(hidden_size, width, bias=False)
        self.dense_out = nn.Linear(width // 2 if self.gated else width, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x (..., hidden_size)."""
        neurons = self.dense_in(x)
        if self.gated:
            value, gate = neurons.chunk(2, dim=-1)
            return self.dense_out(value * nn.functional.gelu(gate))
        return self.dense_out(nn.functional.gelu(neurons))


def build_ffn(specification: dict[str, Any], hidden_size: int) -> nn.Module | None:
    """Make the feedforward layer that a model's configuration names.

    Args:
        specification: the `ffn` dictionary of a CrammedConfig: "kind" and the fields of that kind.
        hidden_size: width of the model.

    Returns:
        The layer, or None for kind "none": the block then has attention alone.

    Raises:
        ValueError: unknown kind.
    """
    kind = specification["kind"]
    if kind == "none":
        return None
    if kind == "dense":
        return DenseFF(hidden_size, specification["width"], specification["activation"])
    if kind == "path":
        return PathFFF(
            hidden_size,
            hidden_size,
            specification["depth"],
            specification["trees"],
            bias=specification.get("bias", True),
            activation=specification.get("activation", "gelu"),
            execution=specification.get("execution", "auto"),
            provider=specification.get("provider", "auto"),
        )
    if kind == "leaf":
        return LeafFFF(
            hidden_size,
            hidden_size,
            specification["depth"],
            specification["leaf_width"],
            activation=specification.get("activation", "gelu"),
            master_width=specification.get("master_width", 0),
        )
    raise ValueError(f"ffn kind {kind!r} is unknown; it is dense, leaf, none or path.")
