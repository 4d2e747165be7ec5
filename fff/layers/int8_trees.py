"""What the int8 forms of trees share. Not what a kind of them holds, nor its arithmetic."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fff.kernels import Chooser
from fff.kernels.int8 import DTYPES
from fff.layers.base import Trees
from fff.layers.operands import autocast_dtype, check_place


class Int8Trees(Trees):
    """Trees on eight-bit integers, for inference alone: no gradients, and numbers that keep their type."""

    _chooser: Chooser
    w_in: Tensor

    @property
    def computed_by(self) -> frozenset[str]:
        """Names of the providers that have computed this layer, as it is set now."""
        return self._chooser.chosen

    def _flat(self, x: Tensor, width: int) -> Tensor:
        """The input (N, width), in the dtype of the output; refused where it cannot be taken."""
        name = type(self).__name__
        if self.training:
            raise RuntimeError(f"{name} is for inference alone; call eval() on it, or train the float layer")
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(f"{name} has no gradients; call it inside torch.no_grad() or torch.inference_mode()")
        check_place(x, self.w_in, width)
        dtype = autocast_dtype(x) or x.dtype
        if dtype not in DTYPES:
            raise ValueError(f"{name} takes float32 and bfloat16, and the input is {dtype}; convert it")
        return x.reshape(-1, width).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A conversion of the model to a half type is of its activations: scales of 8 bits would move every row.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, kept in before.items():
            moved = self._buffers[name]
            if kept is not None and moved is not None and moved.dtype != kept.dtype:
                self._buffers[name] = kept.to(moved.device)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("activation", "provider") and "_chooser" in self.__dict__:
            self._chooser.forget()
