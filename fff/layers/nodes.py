"""The parameters of trees of neurons, and what they begin at. Not how a token is led through them."""

import math
from functools import partial

import torch
from torch import nn

from fff.topology import nodes_in_tree, used_neurons


class Neurons(nn.Module):
    """Trees whose nodes are neurons.

    Parameters: w_in (trees, nodes, d_in), b_in (trees, nodes) or None, w_out (trees, nodes, d_out), heap order.
    """

    trees: int
    depth: int
    w_in: nn.Parameter
    b_in: nn.Parameter | None
    w_out: nn.Parameter

    def make_nodes(
        self, d_in: int, d_out: int, *, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """Make the parameters, without values; `trees` and `depth` are set."""
        shape, empty = (self.trees, nodes_in_tree(self.depth)), partial(torch.empty, device=device, dtype=dtype)
        self.w_in = nn.Parameter(empty(*shape, d_in))
        self.register_parameter("b_in", nn.Parameter(empty(*shape)) if bias else None)
        self.w_out = nn.Parameter(empty(*shape, d_out))

    def reset_nodes(self) -> None:
        """The authors' layer initialisation: U(+-1/sqrt(d_in)) in, U(+-1/sqrt((depth + 1) trees)) out."""
        bound = 1 / math.sqrt(self.w_in.shape[-1])
        nn.init.uniform_(self.w_in, -bound, bound)
        if self.b_in is not None:
            nn.init.uniform_(self.b_in, -bound, bound)
        bound = 1 / math.sqrt(used_neurons(self.trees, self.depth))
        nn.init.uniform_(self.w_out, -bound, bound)
