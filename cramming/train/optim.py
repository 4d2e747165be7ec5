"""AdamW as in the recipe. Not its schedule (budget.py)."""

import torch
from torch import nn

from cramming.train.config import TrainConfig
from fff.decay import parameter_groups


def build_optimiser(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over two groups, with and without weight decay; fused on a GPU and on the CPU.

    Both are the same update in one pass over the parameters instead of one per operation.
    """
    groups, betas = parameter_groups(model, config.weight_decay), (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=device.type in ("cpu", "cuda"))
