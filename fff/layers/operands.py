"""What a layer's input must be, and in which dtype it is computed. The same for every layer; not how."""

import torch
from torch import Tensor


def computing_dtype(x: Tensor, weight: Tensor, d_in: int) -> torch.dtype:
    """The dtype to compute x (..., d_in) in: autocast's where it is on, as for nn.Linear, else x's and the weight's.

    Raises:
        ValueError: x has another last dimension, device or, without autocast, dtype than the layer.
    """
    if x.dim() == 0 or x.shape[-1] != d_in:
        found = x.shape[-1] if x.dim() else "missing"
        raise ValueError(f"the input's last dimension is {found}, but the layer has d_in={d_in}")
    device, dtype = x.device, x.dtype
    if device != weight.device:
        raise ValueError(f"the input is on {device}, but the layer's weights are on {weight.device}")
    if dtype != torch.float64 and _autocast(device.type):
        return torch.get_autocast_dtype(device.type)
    if dtype != weight.dtype:
        raise ValueError(f"the input is {dtype}, but the layer's weights are {weight.dtype}; convert one of them")
    return dtype


def _autocast(kind: str) -> bool:
    """Whether autocast is on for a kind of device; some kinds have none."""
    return (kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)) and torch.is_autocast_enabled(kind)
