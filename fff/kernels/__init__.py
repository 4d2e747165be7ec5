"""Who computes a layer: the providers of each operation, what each can do, which one is chosen. Not the layers."""

from fff.kernels.autograd import for_any_size, in_forward_mode
from fff.kernels.choice import Chooser, check, choose
from fff.kernels.int8 import Int8Operands
from fff.kernels.int8_leaf import Int8LeafOperands
from fff.kernels.operands import PathOperands
from fff.kernels.registry import INT8, INT8_LEAF, LEAF, PATH, PROVIDERS, Operation, Provider

__all__ = [
    "INT8",
    "INT8_LEAF",
    "LEAF",
    "PATH",
    "PROVIDERS",
    "Chooser",
    "Int8LeafOperands",
    "Int8Operands",
    "Operation",
    "PathOperands",
    "Provider",
    "check",
    "choose",
    "for_any_size",
    "in_forward_mode",
]
