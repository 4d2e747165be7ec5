"""What a layer's input must be, and in which dtype it is computed. The same for every layer; not how."""

import torch
from torch import Tensor


def computing_dtype(x: Tensor, weight: Tensor, d_in: int) -> torch.dtype:
    """The dtype to compute x (..., d_in) in: autocast's where it is on, as for nn.Linear, else x's and the weight's.

    Raises:
        ValueError: x has another last dimension, device or, without autocast, dtype than the layer.
    """
    check_place(x, weight, d_in)
    if (dtype := autocast_dtype(x)) is not None:
        return dtype
    if x.dtype != weight.dtype:
        raise ValueError(f"the input is {x.dtype}, but the layer's weights are {weight.dtype}; convert one of them")
    return x.dtype


def check_place(x: Tensor, weight: Tensor, d_in: int) -> None:
    """Refuse (ValueError) an x (..., d_in) of another last dimension or device than the layer."""
    if x.dim() == 0 or x.shape[-1] != d_in:
        found = x.shape[-1] if x.dim() else "missing"
        raise ValueError(f"the input's last dimension is {found}, but the layer has d_in={d_in}")
    if x.device != weight.device:
        raise ValueError(f"the input is on {x.device}, but the layer's weights are on {weight.device}")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast computes x in; None where it is off (some kinds of device have none) or leaves x."""
    kind = x.device.type
    there = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    if x.dtype == torch.float64 or not there or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
