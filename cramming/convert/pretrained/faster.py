"""Models as they would be used on a CPU: what stays dense in int8, trees as fast as they come. Not what is judged."""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from fff.layers.quantised import quantise_trees


def in_use(model: Any, rest: str) -> Any:
    """A copy with linears in int8 (torch's dynamic quantisation) and trees of neurons in int8; or the model itself."""
    if rest == "float32":
        return model
    made = copy.deepcopy(model).eval().requires_grad_(False)
    quantise_trees(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization says that it will move to torchao
        return torch.ao.quantization.quantize_dynamic(made, {nn.Linear}, dtype=torch.qint8)
