"""Who computes a layer: the providers of each operation, what each can do, which one is chosen. Not the layers."""

from fff.kernels.autograd import for_any_size, in_forward_mode
from fff.kernels.choice import Chooser, check, choose
from fff.kernels.operands import PathOperands
from fff.kernels.registry import LEAF, PATH, PROVIDERS, Operation, Provider

__all__ = [
    "LEAF",
    "PATH",
    "PROVIDERS",
    "Chooser",
    "Operation",
    "PathOperands",
    "Provider",
    "check",
    "choose",
    "for_any_size",
    "in_forward_mode",
]
