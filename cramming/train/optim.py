"""AdamW as in the recipe. Not its schedule (budget.py)."""

import torch
from torch import nn

from cramming.train.root import PretrainRoot
from cramming.train.width import rates_by_width, width_factor
from fff.decay import parameter_groups


def build_optimiser(model: nn.Module, root: PretrainRoot, device: torch.device) -> torch.optim.AdamW:
    """AdamW over two groups, with and without weight decay; fused on a GPU and on the CPU.

    Both are the same update in one pass over the parameters instead of one per operation.
    """
    config = root.train
    groups, betas = parameter_groups(model, config.weight_decay), (config.beta1, config.beta2)
    groups = rates_by_width(groups, model, width_factor(root))
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=device.type in ("cpu", "cuda"))
