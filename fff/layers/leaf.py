"""LeafFFF, the fast feedforward layer of arXiv 2308.14711, with its settings. Not how it computes (kernels.leaves)."""

import math
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fff.activations import ACTIVATIONS, activation_named
from fff.kernels import LEAF, Chooser, Provider, check, for_any_size
from fff.kernels.leaves import LeafOperands, Leaves, dense, mixture
from fff.layers.base import Flops, Hardenable, Settings
from fff.layers.checks import one_of, true_or_false, whole_number
from fff.layers.operands import computing_dtype
from fff.losses import Decisions
from fff.topology import first_node

# The weights that autocast casts, by name.
WEIGHTS = ("w_node", "b_node", "w_in", "b_in", "w_out", "b_out")
VALUE = ("w_value", "b_value")  # of gated leaves
MASTER = ("master_w_in", "master_b_in", "master_w_out", "master_b_out")
MASTER_VALUE = ("master_w_value", "master_b_value")


@dataclass(frozen=True)
class LeafSettings(Settings):
    """A tree over leaf networks. ValueError as `Settings`."""

    kind = "leaf"

    depth: int  # decisions before a leaf
    leaf_width: int  # hidden neurons of a leaf network; there are 2^depth of them
    master_width: int = 0  # hidden neurons of the master leaf, which every token passes (arXiv 2405.16836)
    activation: str = "gelu"  # gelu, gelu_tanh, relu, silu, tanh, identity
    gated: bool = False  # whether each hidden neuron has a second row in, whose product its activation is multiplied by

    def __post_init__(self) -> None:
        whole_number("depth", self.depth, 0, 20, example=5)
        whole_number("leaf_width", self.leaf_width, 1, example=8)
        whole_number("master_width", self.master_width, 0)
        one_of("activation", self.activation, ACTIVATIONS, self.kind)
        true_or_false("gated", self.gated)

    @property
    def tag(self) -> str:
        """leaf_width x depth, e.g. "leaf8x5" or "gated-leaf8x5", and "+m4" for a master leaf of 4 neurons."""
        name = f"{'gated-' if self.gated else ''}leaf{self.leaf_width}x{self.depth}"
        return name + (f"+m{self.master_width}" if self.master_width else "")

    @property
    def neurons_trained(self) -> int:
        """Hidden neurons of all leaves and the master leaf; decisions are not counted."""
        return self.leaf_width * 2**self.depth + self.master_width

    @property
    def neurons_used(self) -> int:
        """Hidden neurons of one leaf and the master leaf; decisions are not counted."""
        return self.leaf_width + self.master_width

    def flops(self, d_in: int, d_out: int) -> Flops:
        """A row in, gated another, and a row out per hidden neuron, a row in per decision."""
        neuron, decision = 2 * (d_in * (2 if self.gated else 1) + d_out), 2 * d_in
        used = decision * self.depth + neuron * self.neurons_used
        trained = decision * first_node(self.depth) + neuron * self.neurons_trained
        return Flops(float(used), float(trained))

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "LeafFFF":
        """The layer."""
        return LeafFFF(
            d_in,
            d_out,
            self.depth,
            self.leaf_width,
            activation=self.activation,
            master_width=self.master_width,
            gated=self.gated,
            device=device,
            dtype=dtype,
        )


class LeafFFF(Hardenable):
    """A tree of 2^depth - 1 decisions over 2^depth small two-layer networks, of which inference takes one per token.

    A decision's score is s = w_node[i] . x + b_node[i]. Hard, a token goes right if s > 0 and left otherwise, and the
    output is its leaf's act(x w_in^T + b_in) w_out + b_out. Soft, which is the paper's and this layer's default in
    training, it is the mean of all leaves weighted by the product of sigmoid(+-s / temperature) along their paths
    (arXiv 2308.14711, "Method"). With a master leaf the output is k * master(x) + (1 - k) * that (arXiv 2405.16836);
    k is trained without bounds from 0.5. Gated, a leaf's and the master's hidden neurons are
    act(x w_in^T + b_in) * (x w_value^T + b_value) (arXiv 2002.05202). Shapes: (..., d_in) -> (..., d_out).

    In training with form "hard" the decisions have zero gradients (not none: data parallel training wants every
    parameter used). The soft form's memory is bounded by its chunks; auxiliary losses and the region leak keep some
    2^depth numbers per token besides.

    Args:
        depth: decisions on a path; 0 is the dense two-layer network.
        leaf_width: hidden neurons of a leaf network.
        activation: of the leaves; gelu, gelu_tanh, relu, silu, tanh or identity.
        dropout: probability of dropping a hidden neuron of a leaf, in training.
        region_leak: probability in [0, 0.5] that a decision is turned round in training.
        master_width: hidden neurons of the master leaf; 0 for none.
        gated: whether leaves and master are gated.
        chunk_neurons: hidden neurons (tokens x leaves x leaf_width) that the soft form holds at a time; where there are
            more, the backward pass computes them again.
        provider: who computes the hard forms, see fff.kernels: "masked" computes all leaves, "gather" the tokens' own
            in plain torch, "cpu" in C++ (as "gather" at depth 0 and with dropout); "auto" takes the fastest
            available.
        device, dtype: of the parameters; torch's defaults unless given.

    Parameters: w_node (2^depth - 1, d_in) and b_node (2^depth - 1), None at depth 0; w_in (2^depth, leaf_width, d_in),
    b_in (2^depth, leaf_width), w_out (2^depth, leaf_width, d_out), b_out (2^depth, d_out); gated also w_value and
    b_value, of w_in's and b_in's shapes; with a master leaf the same of one leaf, named master_*, and mix (), its k.

    Raises:
        ValueError: a size below its minimum, a probability out of bounds, an unknown activation or provider.
    """

    execution, trees = "auto", 1  # as PathFFF's, of which this layer has no choice
    constants = MappingProxyType({"mix": 0.5})

    def __init__(
        self,
        d_in: int,
        d_out: int,
        depth: int,
        leaf_width: int,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        region_leak: float = 0.0,
        master_width: int = 0,
        gated: bool = False,
        chunk_neurons: int = 2**23,
        provider: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._chooser = Chooser(LEAF)
        sizes = {"d_in": d_in, "d_out": d_out, "leaf_width": leaf_width, "chunk_neurons": chunk_neurons}
        for name, value, least in (*((k, v, 1) for k, v in sizes.items()), ("depth", depth, 0)):
            if value < least:
                raise ValueError(f"{name}={value} is too small; it must be {least} or more")
        if master_width < 0:
            raise ValueError(f"master_width={master_width} is too small; it must be 0 (no master leaf) or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        if not 0 <= region_leak <= 0.5:
            raise ValueError(f"region_leak={region_leak} must be from 0 to 0.5")
        activation_named(activation)
        check("auto", provider, LEAF)
        self.provider = provider
        self.d_in, self.d_out, self.depth, self.leaf_width = d_in, d_out, depth, leaf_width
        self.activation, self.dropout, self.chunk_neurons = activation, dropout, chunk_neurons
        self.master_width, self.region_leak, self.form = master_width, region_leak, "soft"
        leaves, inner = 2**depth, first_node(depth)
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.w_node = nn.Parameter(empty(inner, d_in)) if depth else None
        self.b_node = nn.Parameter(empty(inner)) if depth else None
        self.w_in = nn.Parameter(empty(leaves, leaf_width, d_in))
        self.b_in = nn.Parameter(empty(leaves, leaf_width))
        self.w_out = nn.Parameter(empty(leaves, leaf_width, d_out))
        self.b_out = nn.Parameter(empty(leaves, d_out))
        self.gated = gated
        self.w_value = nn.Parameter(torch.empty_like(self.w_in)) if gated else None
        self.b_value = nn.Parameter(torch.empty_like(self.b_in)) if gated else None
        shapes = ((master_width, d_in), (master_width,), (master_width, d_out), (d_out,))
        for name, shape in zip((*MASTER, *MASTER_VALUE), (*shapes, *shapes[:2]), strict=True):
            there = master_width and (gated or name in MASTER)
            self.register_parameter(name, nn.Parameter(empty(shape)) if there else None)
        self.mix = nn.Parameter(empty(())) if master_width else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: U(+-1/sqrt(d_in)), and U(+-1/sqrt(leaf's width)) of the second layers."""
        for name, parameter in self.named_parameters():
            if name == "mix":
                nn.init.constant_(parameter, 0.5)
                continue
            width = self.master_width if name.startswith("master") else self.leaf_width
            bound = 1 / math.sqrt(width if name.endswith("out") else self.d_in)
            nn.init.uniform_(parameter, -bound, bound)
        nn.init.ones_(self.temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., d_in) -> (..., d_out), in x's dtype or autocast's.

        Raises:
            ValueError: x has another last dimension, dtype or device than the weights.
        """
        return self._apply_layer(x, with_decisions=False)[0]

    def forward_with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, with the auxiliary losses that `losses` names (see fff.hardening)."""
        y, decisions = self._apply_layer(x, with_decisions=bool(self.losses))
        return y, self.auxiliary_losses(decisions) if decisions is not None else {}

    @property
    def decision_bias(self) -> Tensor:
        """b_node as (1, 2^depth - 1)."""
        return self.b_out.new_zeros(1, 0) if self.b_node is None else self.b_node[None]

    @torch.no_grad()
    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Visited nodes (..., 1, depth + 1) int64 in heap order, and the decisions' scores (..., 1, depth).

        The last node is the leaf: leaf number + 2^depth - 1. The 1 is the number of trees, as in PathFFF.
        """
        x, weights = self._operands(x)
        operands = self._hard_operands(x.reshape(-1, self.d_in), weights)
        nodes, scores = self._provider_for(x).paths(operands)
        return nodes.view(*x.shape[:-1], 1, self.depth + 1), scores.reshape(*x.shape[:-1], 1, self.depth)

    def _apply_layer(self, x: Tensor, *, with_decisions: bool) -> tuple[Tensor, Decisions | None]:
        x, weights = self._operands(x)
        flat = x.reshape(-1, self.d_in)
        apply = self._soft if self.active_form == "soft" and self.depth else self._on_path
        y, decisions = apply(flat, weights, with_decisions)
        if self.mix is not None:
            master = dense(flat, self._leaves(weights, "master_"), self.activation, self._dropout)
            y = torch.lerp(y, master, self.mix.to(y.dtype))
        return y.view(*x.shape[:-1], self.d_out), decisions

    def _on_path(self, x: Tensor, weights: dict[str, Tensor], with_decisions: bool) -> tuple[Tensor, Decisions | None]:
        operands = self._hard_operands(x, weights, self.leak(x.shape[0], self.depth))
        provider = self._provider_for(x)
        if provider.output and not (with_decisions or self.training):
            return provider.output(operands), None
        y, nodes, scores = provider.function(operands)
        return y, Decisions(scores, nodes[..., :-1], torch.ones_like(scores), first_node(self.depth))

    def _provider_for(self, x: Tensor) -> Provider:
        return self._chooser.provider_for(self, x)

    @property
    def computed_by(self) -> frozenset[str]:
        """Names of the providers that have computed hard passes of this layer, as it is set now."""
        return self._chooser.chosen

    def _soft(self, x: Tensor, weights: dict[str, Tensor], with_decisions: bool) -> tuple[Tensor, Decisions | None]:
        tokens, inner = x.shape[0], first_node(self.depth)
        flips = self.leak(tokens, inner)
        fixed = (weights["w_node"], weights["b_node"], self._leaves(weights), self.activation, self._dropout)
        size = max(1, self.chunk_neurons // self.w_in[..., 0].numel())
        spans = [slice(None)] if for_any_size() else [slice(i, i + size) for i in range(0, max(1, tokens), size)]
        again = len(spans) > 1 and torch.is_grad_enabled()
        kept: list[tuple[Tensor, ...]] = []
        for span in spans:
            operands = (x[span], *fixed, self.temperature, None if flips is None else flips[span])
            found = checkpoint(mixture, *operands, use_reentrant=False) if again else mixture(*operands)
            kept.append(found if with_decisions else found[:1])
        y, *rest = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*kept, strict=True))
        if not with_decisions:
            return y, None
        scores, reached = (part[:, None] for part in rest)
        nodes = torch.arange(inner, device=x.device).expand(tokens, 1, -1)
        return y, Decisions(scores, nodes, reached, inner)

    def _hard_operands(self, x: Tensor, weights: dict[str, Tensor], flips: Tensor | None = None) -> LeafOperands:
        """What the hard forms are computed from; x (N, d_in)."""
        return LeafOperands(
            x,
            weights.get("w_node"),
            weights.get("b_node"),
            self._leaves(weights),
            self.activation,
            flips,
            self.temperature,
            self.active_form == "straight_through",
            self._dropout,
        )

    def _leaves(self, weights: dict[str, Tensor], prefix: str = "") -> Leaves:
        always = (weights[prefix + name] for name in WEIGHTS[2:])
        return Leaves(*always, *(weights.get(prefix + name) for name in VALUE))

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _operands(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Input and weights in the dtype of the computation: autocast's as for nn.Linear, else their own."""
        dtype = computing_dtype(x, self.w_in, self.d_in)
        names = (*WEIGHTS, *VALUE) if self.gated else WEIGHTS
        if self.master_width:
            names = (*names, *MASTER, *MASTER_VALUE)
        named = {name: getattr(self, name) for name in names}
        return x.to(dtype), {  # for one token, asking a weight to be what it is takes longer than to look
            name: weight if weight.dtype == dtype else weight.to(dtype)
            for name, weight in named.items()
            if weight is not None
        }

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "provider":
            self._chooser.forget()

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        leaves = f"{2**self.depth} leaves of {self.leaf_width} neurons"
        master = f", master_width={self.master_width}" if self.master_width else ""
        master += ", gated=True" if self.gated else ""
        return (
            f"{self.d_in}, {self.d_out}, depth={self.depth} ({leaves}), activation={self.activation}, "
            f"dropout={self.dropout}{master}, provider={self.provider}"
        )
