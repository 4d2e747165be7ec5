"""How output weights of wide feedforward layers begin and learn, so that they train as well as narrow ones.

A sum over n neurons grows with n, at the start by its weights' size and with each step of AdamW by its rate. With one
initialisation and one rate for all widths, wide layers drown what attention says at first and step too far later: a
dense layer of 1024 neurons ended above one of 4. Beyond a base width weights begin by sqrt(base / n) smaller and learn
at a rate smaller by base / n, as the maximal update parametrisation has it for a matrix of n inputs (arXiv 2203.03466,
table 8).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cramming.train.root import PretrainRoot
from fff.layers.base import Feedforward

OUTPUTS = ("w_out", "dense_out.weight")  # how the names of output weights end


def width_factor(root: PretrainRoot) -> float:
    """Base width by the neurons that a token uses in one layer; 1 up to the base width, or where none is set."""
    base, used = root.train.width_base, root.ffn.settings.neurons_used
    return base / used if 0 < base < used else 1.0


def output_weights(model: nn.Module) -> dict[str, Tensor]:
    """The output weights of a model's feedforward layers, by name."""
    layers = [module for module in model.modules() if isinstance(module, Feedforward)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in inside and name.endswith(OUTPUTS)}


@torch.no_grad()
def start_by_width(model: nn.Module, factor: float) -> None:
    """Make freshly drawn output weights smaller by the factor's root."""
    if factor != 1.0:
        for weight in output_weights(model).values():
            weight.mul_(math.sqrt(factor))


def rates_by_width(groups: list[dict[str, Any]], model: nn.Module, factor: float) -> list[dict[str, Any]]:
    """Parameter groups with the output weights in one of their own, whose `lr_factor` the training loop multiplies.

    AdamW decays by rate times weight decay; that product stays what it was.
    """
    if factor == 1.0:
        return groups
    wide = {id(weight) for weight in output_weights(model).values()}
    split: list[dict[str, Any]] = []
    for group in groups:
        mine = [p for p in group["params"] if id(p) in wide]
        split.append({**group, "params": [p for p in group["params"] if id(p) not in wide]})
        if mine:
            split.append({**group, "params": mine, "lr_factor": factor, "weight_decay": group["weight_decay"] / factor})
    return split
