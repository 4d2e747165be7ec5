"""In which type the work of a conversion is computed. Nothing else."""

from contextlib import AbstractContextManager, nullcontext

import torch


def chosen_type(compute: str) -> str:
    """float32 or bfloat16, which pays where the processor has products of its matrices (AMX)."""
    if compute != "auto":
        return compute
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"


def computing(compute: str) -> AbstractContextManager[object]:
    """Autocast of the CPU, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if chosen_type(compute) == "bfloat16" else nullcontext()
