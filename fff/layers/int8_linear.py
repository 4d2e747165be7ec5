"""A linear layer for inference on eight-bit integers, made of a trained one. Not the products (fff.kernels).

Tokens are quantised one by one, as those of int8 trees are: what a token gets does not depend on its batch or its
padding, which torch's own dynamic quantisation, with one scale for a whole call, cannot say.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fff.int8 import WIDEST, quantised
from fff.kernels import in_forward_mode
from fff.kernels.int8_linear import Products, Rows, unusable
from fff.layers.operands import autocast_dtype

DTYPES = (torch.float32, torch.bfloat16)
UNSAVED = "an optimised model is not saved or loaded: save the float model, and call optimise_for_cpu after loading it"


class Int8Linear(nn.Module):
    """y = x W^T + b with W's rows and x's tokens as whole numbers from -127 to 127 and one float32 scale each.

    Products are summed exactly, in int32; scales and bias are float32. Shapes: (..., d_in) -> (..., d_out), in the
    input's dtype, float32 or bfloat16, or autocast's. For inference on a CPU alone: no gradients, no parameters, and
    nothing in a `state_dict`, which raises RuntimeError instead of leaving the layer out.

    Few tokens are multiplied by an operator of provider `cpu`, many by torch's oneDNN, with the same bits. Both read
    one copy of the weights, which oneDNN packed: d_in and d_out each up to the next multiple of 64, in bytes, and 4
    bytes a row of its own (`nbytes` counts them). Without a compiler, or where oneDNN packs otherwise, it does all.

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
        # No buffers: a conversion of the model to a half type is of its activations, not of scales.
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        self._products = Products(Rows(whole), scale, bias)
        self.training = False

    @property
    def weight(self) -> Tensor:
        """As it is kept, packed, for code that asks of a weight's dtype (int8) and device."""
        return self._products.rows.packed

    @property
    def bias(self) -> Tensor | None:
        """(d_out,) float32, or None."""
        return self._products.bias

    @property
    def nbytes(self) -> int:
        """Of weights as they lie, scales and bias."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return self._products.rows.nbytes + self._products.scale.nbytes + bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Raises:
            ValueError: x has another last dimension, dtype or device.
            RuntimeError: gradients are wanted, or the layer is in training mode.
        """
        if (shortcut := self._products.shortcut) is not None and not self.training and not is_compiling():
            y = None if in_forward_mode() else shortcut(x)
            if y is not None:
                return y
        self._check(x)
        return self._products(x, autocast_dtype(x) or x.dtype)

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

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError(UNSAVED)

    def _load_from_state_dict(self, *_: Any) -> None:
        raise RuntimeError(UNSAVED)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{self.in_features}, {self.out_features}, int8, bias={self.bias is not None}"
