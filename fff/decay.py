"""Which parameters weight decay is for, in any model with FFF layers. Not an optimiser."""

from typing import Any

from torch import Tensor, nn


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to biases (an FFF's are named b_...), norms and scales."""
    return parameter.ndim >= 2 and not name.rpartition(".")[2].startswith(("bias", "b_"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in two groups, with and without weight decay, as every torch optimiser takes them.

    Tools that go by the word "bias" in a name, as transformers' Trainer does, would decay an FFF's `b_in`. Give it the
    optimiser instead: `Trainer(..., optimizers=(AdamW(parameter_groups(model, 0.01), lr=1e-3), None))`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
