"""In which type, and where, the work of a conversion is computed. Nothing else."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def chosen_type(compute: str, device: torch.device) -> str:
    """float32 or bfloat16, which pays on a GPU and where the processor has products of its matrices (AMX)."""
    if compute != "auto":
        return compute
    return "bfloat16" if device.type == "cuda" or torch.cpu._is_amx_tile_supported() else "float32"


def computing(compute: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if chosen_type(compute, device) == "bfloat16" else nullcontext()


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are, and so its inputs go."""
    return next(model.parameters()).device
