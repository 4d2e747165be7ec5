"""PathFFF's settings, and which layer they come to. Not the layer itself (path)."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch

from fff.activations import ACTIVATIONS
from fff.kernels import check
from fff.layers.base import Flops, Settings
from fff.layers.checks import one_of, rate_or_weight, true_or_false, whole_number
from fff.layers.dense import DenseFF
from fff.layers.path import PathFFF
from fff.layers.shared import SharedFF
from fff.topology import trained_neurons, trees_for_neurons, used_neurons


@dataclass(frozen=True)
class PathSettings(Settings):
    """Trees of neurons. ValueError as `Settings`."""

    kind = "path"

    depth: int  # decisions of a tree; a token visits depth + 1 nodes
    trees: int | None = None  # parallel trees
    neurons: int | None = None  # instead of `trees`: trained neurons over all of them, from which their number follows
    bias: bool = True  # input bias of a node (the authors train one)
    activation: str = "gelu"  # gelu, gelu_tanh, relu, silu, tanh, identity
    execution: str = "auto"  # auto, masked, conditional
    provider: str = "auto"  # who computes it, see fff.kernels
    rebalance_rate: float = 0.0  # how far a step moves each decision's bias against its surplus; 0 for not at all
    shared: int = 0  # dense neurons beside the trees, which every token passes; 0 for none

    def __post_init__(self) -> None:
        whole_number("depth", self.depth, 0, 20, example=11)
        if (self.trees is None) == (self.neurons is None):
            raise ValueError("`trees` and `neurons`: give exactly one (set the other to null).")
        if self.trees is not None:
            whole_number("trees", self.trees, 1)
        else:
            whole_number("neurons", self.neurons, 1)
            try:
                trees_for_neurons(self.neurons or 0, self.depth)
            except ValueError as error:
                raise ValueError(f"`neurons`: {error}") from None
        true_or_false("bias", self.bias)
        one_of("activation", self.activation, ACTIVATIONS, self.kind)
        check(self.execution, self.provider)
        whole_number("shared", self.shared, 0, example=16)
        rate_or_weight("rebalance_rate", self.rebalance_rate)
        if self.rebalance_rate and not self.bias:
            raise ValueError(
                f"`rebalance_rate` is {self.rebalance_rate}, and `bias` is False, so nodes have no bias that could "
                "move; set one of `bias`=true and `rebalance_rate`=0."
            )

    @property
    def tree_count(self) -> int:
        """Trees, given or derived from `neurons`."""
        return self.trees if self.trees is not None else trees_for_neurons(self.neurons or 0, self.depth)

    @property
    def tag(self) -> str:
        """Trees x depth, e.g. "1x11", and "+16" for 16 shared neurons."""
        return f"{self.tree_count}x{self.depth}" + (f"+{self.shared}" if self.shared else "")

    @property
    def neurons_trained(self) -> int:
        """Nodes of all trees, and the shared neurons."""
        return trained_neurons(self.tree_count, self.depth) + self.shared

    @property
    def neurons_used(self) -> int:
        """Nodes on the paths, and the shared neurons."""
        return used_neurons(self.tree_count, self.depth) + self.shared

    def flops(self, d_in: int, d_out: int) -> Flops:
        """A row in and a row out per neuron."""
        neuron = 2 * (d_in + d_out)
        return Flops(float(neuron * self.neurons_used), float(neuron * self.neurons_trained))

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PathFFF | SharedFF:
        """The layer; with shared neurons, a PathFFF and a DenseFF under one roof."""
        tree = PathFFF(
            d_in,
            d_out,
            self.depth,
            self.tree_count,
            bias=self.bias,
            activation=self.activation,
            execution=self.execution,
            provider=self.provider,
            rebalance_rate=self.rebalance_rate,
            device=device,
            dtype=dtype,
        )
        if not self.shared:
            return tree
        return SharedFF(tree, DenseFF(d_in, d_out, self.shared, device=device, dtype=dtype))

    @property
    def in_inference(self) -> Self:
        """Without a rate, and by the number of trees."""
        return replace(self, rebalance_rate=0.0, trees=self.tree_count, neurons=None)

    def specification(self) -> dict[str, Any]:
        """With the number of trees, whichever way it was given."""
        values = asdict(self) | {"trees": self.tree_count}
        del values["neurons"]
        return {"kind": self.kind, **values}
