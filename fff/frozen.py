"""The first levels of trees, held as they are while an optimiser trains the rest. Not the training, nor which levels.

A gradient of None or zero is not enough: weight decay, and moments from before, move a row all the same. So rows lose
their gradients before an update, which keeps them out of norms and moments, and get their values back after it.
"""

import torch
from torch import Tensor, nn

from fff.layers.path import PathFFF
from fff.topology import first_node


class FrozenLevels:
    """Rows of w_in, b_in and w_out of all nodes above a level, in every PathFFF of a model, with the values of now.

    Args:
        levels: how many, from the root on: nodes of level 0 to levels - 1.

    Raises:
        ValueError: there is no PathFFF, or one has no level that could still learn.
    """

    def __init__(self, model: nn.Module, levels: int) -> None:
        trees = [module for module in model.modules() if isinstance(module, PathFFF)]
        if not trees:
            raise ValueError(f"levels={levels} are to be frozen, and {type(model).__name__} has no PathFFF")
        for tree in trees:
            if not 1 <= levels <= tree.depth:
                raise ValueError(f"levels={levels} of depth={tree.depth} cannot be frozen; take 1 to {tree.depth}")
        self.nodes = first_node(levels)
        self._weights = [p for tree in trees for p in (tree.w_in, tree.b_in, tree.w_out) if p is not None]
        self._kept = [self._rows(weight.detach()).clone() for weight in self._weights]

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor[:, : self.nodes]

    def drop_gradients(self) -> None:
        """Before clipping and the update."""
        for weight in self._weights:
            if weight.grad is not None:
                self._rows(weight.grad).zero_()

    @torch.no_grad()
    def restore(self) -> None:
        """After the update: bit for bit."""
        for weight, kept in zip(self._weights, self._kept, strict=True):
            self._rows(weight).copy_(kept)
