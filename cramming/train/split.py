"""A fresh run's first biases from its first sequences: decisions part tokens in half. Not how (fff.halving)."""

import numpy as np
import torch
from torch import Tensor, nn

from cramming.errors import UserError
from cramming.train.parts import Parts
from cramming.train.root import PretrainRoot
from fff.halving import split_in_half
from fff.hardening import hardenable
from fff.layers.base import Hardenable
from fff.regions import recorded_inputs

SEQUENCES_AT_ONCE = 16  # not the run's microbatch, which may change with the number of processes: rounding is to stay


def check_split(root: PretrainRoot, layer: nn.Module | None) -> None:
    """Refuse an initial split of layers that have nothing to set (UserError)."""
    if not root.train.initial_split:
        return
    found = f"train.initial_split is {root.train.initial_split}, and"
    trees = hardenable(layer) if layer is not None else []
    if not trees:
        raise UserError(f"{found} ffn={root.ffn.kind} has no decisions to set; set train.initial_split=0.")
    if any(tree.decision_bias is None for tree in trees):
        raise UserError(f"{found} ffn.bias is false, so none can be set; set ffn.bias=true or train.initial_split=0.")


@torch.no_grad()
def split_initially(parts: Parts) -> None:
    """Set the trees' biases by the tokens of the run's first `train.initial_split` sequences, layer after layer.

    A layer sees what the ones before it give with their biases set, as in evaluation. The main process does it and
    tells the others; no random number is drawn.

    Raises:
        UserError: there are fewer sequences to train on.
    """
    count, there = parts.config.initial_split, len(parts.data.train)
    if not count:
        return
    if count > there:
        raise UserError(
            f"train.initial_split is {count}, and the data have {there} training sequences; set it to that at most."
        )
    layers, world = hardenable(parts.model), parts.world
    if world.main or world.sharded:  # a pass of a spread model is everybody's
        parts.model.eval()
        with world.autocast():
            for layer in layers:
                inputs = first_inputs(parts, layer, count)
                with world.whole([layer]):
                    split_in_half(layer, inputs)
    with world.whole(layers, "b_"):
        told = world.tell([biases_of(layer).tolist() for layer in layers])
        for layer, values in zip(layers, told, strict=True):
            biases_of(layer).copy_(biases_of(layer).new_tensor(values))


def biases_of(layer: Hardenable) -> Tensor:
    """Those of a layer that `check_split` has let pass."""
    bias = layer.decision_bias
    assert bias is not None
    return bias


def first_inputs(parts: Parts, layer: Hardenable, count: int) -> Tensor:
    """What the layer is given, (tokens, d_in), in evaluation of the run's first `count` sequences."""
    with recorded_inputs(layer) as inputs:
        for first in range(0, count, SEQUENCES_AT_ONCE):
            positions = np.arange(first, min(first + SEQUENCES_AT_ONCE, count))
            sequences = parts.data.train.take(parts.order.indices(positions))
            parts.objective.encode(parts.model, parts.objective.batch(sequences, positions).to(parts.world.device))
    return torch.cat([x.flatten(0, -2) for x in inputs[""]])
