"""Models as they would be used on a CPU: what stays dense and trees in int8. Not what is judged."""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from cramming.convert.pretrained.compute import device_of
from fff.kernels.int8_linear import unusable
from fff.layers.quantised import quantise_trees
from fff.optimise import optimise_for_cpu


def in_use(model: Any, rest: str) -> Any:
    """A copy on the CPU with linears, paths and leaves in int8 (`fff.optimise`); in float32 the model, if there.

    Where this machine cannot do those products, linears are torch's dynamically quantised ones, with one scale for each
    matrix, which a decoder bears badly.
    """
    if rest == "float32" and device_of(model).type == "cpu":
        return model
    made = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    if rest == "float32":
        return made
    if unusable() is None:
        optimise_for_cpu(made, linears="int8", least=1)
        return made
    return by_torch(made)


def by_torch(model: Any) -> Any:
    """The model itself with linears as torch quantises them dynamically, and trees of neurons and leaves in int8."""
    quantise_trees(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization says that it will move to torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
