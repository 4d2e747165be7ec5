"""A linear layer in bfloat16 for inference, made of a trained one, whatever it is given. Not the product (torch's)."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bfloat16Linear(nn.Linear):
    """y = x W^T + b in bfloat16: (..., d_in) -> (..., d_out), in the input's dtype, bfloat16 or float32.

    Code of models goes over to float32 here and there; a plain linear would refuse what it gives then.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        for name, parameter in linear.named_parameters(recurse=False):
            setattr(self, name, parameter)  # the same one: it may be tied, and whoever converts it converts both
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if x.dtype == self.weight.dtype:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


@functools.cache
def has_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX), and torch does by it.

    There many tokens are faster in bfloat16 than in int8, which is faster elsewhere and for few: docs/kernels.md.
    """
    asked = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and bool(asked())
