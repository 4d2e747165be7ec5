"""Who computes a layer: the providers of each operation, what each can do, which one is chosen. Not the layers."""

from fff.kernels.autograd import for_any_size, in_forward_mode
from fff.kernels.choice import Chooser, check, choose
from fff.kernels.int8 import Int8Operands
from fff.kernels.operands import PathOperands
from fff.kernels.registry import INT8, LEAF, PATH, PROVIDERS, Operation, Provider

__all__ = [
    "INT8",
    "LEAF",
    "PATH",
    "PROVIDERS",
    "Chooser",
    "Int8Operands",
    "Operation",
    "PathOperands",
    "Provider",
    "check",
    "choose",
    "for_any_size",
    "in_forward_mode",
]
