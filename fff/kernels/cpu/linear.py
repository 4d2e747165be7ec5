"""Provider `cpu` for int8 linear layers: what torch must know of its operators. Not when they are used."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fff.kernels.cpu.build import load
from fff.kernels.flops import register_int8_linear_flops

Linear = Callable[[Tensor], Tensor | None]


def shortcut(operands: tuple[Any, ...], most_tokens: int, owner: object) -> Linear | None:
    """One layer past torch's dispatcher, for at most so many tokens, see `fff.kernels.Provider`; None: not built.

    Args:
        operands: of `cpu_int8_linear`, without x.
        owner: what holds the memory of the rows.
    """
    if (function := getattr(load(), "fff_int8_linear", None)) is None:  # built where Python's headers are missing
        return None
    function.argtypes, function.restype = [ctypes.py_object], ctypes.py_object
    made: Linear = function((*operands, most_tokens, owner))
    return made


def register() -> None:
    """What torch.compile, torch.export and counters of operations must know."""
    torch.library.register_fake("fff::cpu_int8_linear", _linear_shapes)
    torch.library.register_fake("fff::cpu_int8_tokens", _tokens_shapes)
    torch.library.register_fake("fff::cpu_int8_scaled", lambda *_: None)
    register_int8_linear_flops(torch.ops.fff.cpu_int8_linear)


def _linear_shapes(x: Tensor, rows: Tensor, scale: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(scale))


def _tokens_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32)
