"""A linear layer for inference on eight-bit integers, made of a trained one. Not the product, which is torch's oneDNN.

Tokens are quantised one by one, as those of int8 trees are: what a token gets does not depend on its batch or its
padding, which torch's own dynamic quantisation, with one scale for a whole call, cannot say.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fff.int8 import LEAST, LEVELS, WIDEST, quantised
from fff.layers.operands import autocast_dtype

DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 2**19  # numbers of the input that are quantised at a time: they stay in the caches, and need no new memory
UNSAVED = "an optimised model is not saved or loaded: save the float model, and call optimise_for_cpu after loading it"


class Int8Linear(nn.Module):
    """y = x W^T + b with W's rows and x's tokens as whole numbers from -127 to 127 and one float32 scale each.

    Products are summed exactly, in int32; scales and bias are float32. Shapes: (..., d_in) -> (..., d_out), in the
    input's dtype, float32 or bfloat16, or autocast's. For inference on a CPU alone: no gradients, no parameters, and
    nothing in a `state_dict`, which raises RuntimeError instead of leaving the layer out.

    A token with a value that is not finite comes out not finite, alone.

    Args:
        linear: float weights (d_out, d_in) on the CPU.

    Raises:
        RuntimeError: torch's int8 products are not there or not exact on this machine.
        ValueError: weights that are not finite or not on a CPU, or d_in is above 2^17.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if reason := unusable():
            raise RuntimeError(reason)
        weight = linear.weight.detach()
        if weight.device.type != "cpu":
            raise ValueError(f"the weights are on {weight.device}; Int8Linear computes on a CPU")
        if not weight.float().isfinite().all():
            raise ValueError("the weights hold values that are not finite, or not in float32")
        if linear.in_features > WIDEST:
            raise ValueError(f"d_in={linear.in_features} is too large; sums of products of int8 are exact to {WIDEST}")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        whole, scale = quantised(weight)
        self._keep(whole, scale, None if linear.bias is None else linear.bias.detach().float().clone())
        self.training = False

    def _keep(self, whole: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        # No buffers: a conversion of the model to a half type is of its activations, not of scales.
        self._packed, self._scale = _prepacked(whole), scale
        self._zero, self.bias = torch.zeros(len(whole), dtype=torch.int64), bias

    @property
    def weight(self) -> Tensor:
        """As it is kept, packed, for code that asks of a weight's dtype (int8) and device."""
        return self._packed

    @property
    def nbytes(self) -> int:
        """Of weights, scales and bias."""
        return sum(each.nbytes for each in (self._packed, self._scale, self.bias) if each is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Raises:
            ValueError: x has another last dimension, dtype or device.
            RuntimeError: gradients are wanted, or the layer is in training mode.
        """
        self._check(x)
        dtype = autocast_dtype(x) or x.dtype
        flat = x.reshape(-1, self.in_features)
        y = torch.empty(len(flat), self.out_features, dtype=dtype)
        tokens = max(1, BLOCK // self.in_features)
        for part, out in zip(flat.split(tokens), y.split(tokens), strict=True):
            self._product(part.float(), out)
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor, out: Tensor) -> None:
        # Two passes over x without memory of their own, where abs().amax() has one of them and writes a copy.
        most = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_()).clamp_min_(LEAST)
        whole = (x * torch.full_like(most, LEVELS).div_(most)).round_().to(torch.int8)
        y, scale = _products(whole, self._packed, self._scale, self._zero), most.div_(LEVELS)
        if self.bias is None:
            torch.mul(y, scale, out=out)
        else:
            out.copy_(y.mul_(scale).add_(self.bias))

    def _check(self, x: Tensor) -> None:
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            found = x.shape[-1] if x.dim() else "missing"
            raise ValueError(f"the input's last dimension is {found}, but the layer has d_in={self.in_features}")
        if x.device.type != "cpu":
            raise ValueError(f"the input is on {x.device}; Int8Linear computes on a CPU")
        if x.dtype not in DTYPES:
            raise ValueError(f"Int8Linear takes float32 and bfloat16, and the input is {x.dtype}; convert it")
        if self.training:
            raise RuntimeError("Int8Linear is for inference alone; call eval() on it, or train the float layer")
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("Int8Linear has no gradients; call it inside torch.no_grad() or torch.inference_mode()")

    def __getstate__(self) -> dict[str, Any]:  # for copies: a packed weight cannot be copied as it is
        return {**self.__dict__, "_packed": self._packed.to_dense().t().contiguous()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_packed": _prepacked(state["_packed"])})

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError(UNSAVED)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError(UNSAVED)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{self.in_features}, {self.out_features}, int8, bias={self.bias is not None}"


def _prepacked(whole: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(whole, None)


def _products(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Exact sums of products of numbers (N, d_in) and (d_out, d_in), times the rows' scales: (N, d_out) float32."""
    # A lone token goes in twice: for one row and some widths (192 of 576) oneDNN has nothing but its reference code,
    # which took 3 to 40 ms where two rows take 0.07.
    rows = x if len(x) != 1 else x.expand(2, -1).contiguous()
    y = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y[: len(x)]


@functools.cache
def unusable() -> str | None:
    """Why torch's int8 products cannot be used on this machine; None where they can.

    They are tried on the largest numbers that there are: without VNNI, oneDNN may add pairs of products in 16 bits.
    """
    instead = "leave the linears as they are (linears='keep')"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return f"this torch has no int8 products for a CPU (oneDNN); {instead}"
    width, rows = 96, 32
    most = torch.full((rows, width), LEVELS, dtype=torch.int8)
    signs = torch.where(torch.arange(rows)[:, None] % 2 == 0, most, -most)
    zero, ones = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
    try:
        found = _products(signs, _prepacked(most), ones, zero)
    except RuntimeError as error:
        return f"torch's int8 products do not run on this machine ({str(error).splitlines()[0]}); {instead}"
    exact = (signs.int() @ most.int().T).float()
    return None if torch.equal(found, exact) else f"torch's int8 products are not exact on this processor; {instead}"
