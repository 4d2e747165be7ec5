"""AdamW as in the recipe. Not its schedule (budget.py)."""

import torch
from torch import nn

from cramming.train.config import TrainConfig


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices, not to biases (an FFF's are named b_...), norms and scales."""
    return parameter.ndim >= 2 and not name.rpartition(".")[2].startswith(("bias", "b_"))


def build_optimiser(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over two groups, with and without weight decay; fused on a GPU and on the CPU.

    Both are the same update in one pass over the parameters instead of one per operation.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=device.type in ("cpu", "cuda"))
