"""PathFFF, the fast feedforward layer of arXiv 2311.10770. Not its settings (path_settings), nor how it is computed."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fff.activations import activation_named
from fff.balance import Balanced
from fff.decisions import went_right
from fff.kernels import PATH, Chooser, PathOperands, Provider, check, in_forward_mode
from fff.kernels.masked import soft
from fff.layers.base import Hardenable
from fff.layers.checks import rate_or_weight
from fff.layers.nodes import Neurons
from fff.layers.operands import computing_dtype
from fff.losses import Decisions
from fff.topology import first_node, path_length, trained_neurons, used_neurons, walk

CHOICE_DEPENDS_ON = ("activation", "execution", "provider", "evaluation_form")


class PathFFF(Balanced, Neurons, Hardenable):
    """Trees of neurons of which a token visits one path each: depth + 1 of 2^(depth+1) - 1 nodes.

    y = sum over trees and path nodes i of act(s_i) * w_out[i], with the score s_i = w_in[i] . x + b_in[i]; a token goes
    right if s_i > 0 and left otherwise (arXiv 2311.10770, section 2.1). Shapes: (..., d_in) -> (..., d_out).

    Args:
        depth: decisions on a path; 0 is a layer of `trees` ordinary neurons.
        trees: parallel trees, whose outputs are summed.
        bias: whether nodes have an input bias. There is no output bias.
        activation: gelu, gelu_tanh, relu, silu, tanh or identity.
        execution: "masked" computes all nodes and zeroes those off the path (the authors' training form),
            "conditional" the path nodes alone, forward and backward; "auto" takes what is faster. Same results.
        provider: who computes it, see fff.kernels; "auto" takes the fastest available.
        rebalance_rate: balance without a loss (arXiv 2408.15664, carried over from experts to decisions): how far
            `fff.balance.rebalance`, after each update, lowers b_in of an inner node that sent more of the step's
            tokens to the right than to the left, or raises it where it sent fewer; 0 for not at all. Unlike a
            router's, this bias is trained also, and takes part in the node's value.
        device, dtype: of the parameters; torch's defaults unless given.

    Parameters: w_in (trees, nodes, d_in), b_in (trees, nodes) or None, w_out (trees, nodes, d_out), heap order.

    Raises:
        ValueError: a size below its minimum, an unknown name, or execution and provider contradict each other.
    """

    _chooser: Chooser

    def __init__(
        self,
        d_in: int,
        d_out: int,
        depth: int,
        trees: int = 1,
        *,
        bias: bool = True,
        activation: str = "gelu",
        execution: str = "auto",
        provider: str = "auto",
        rebalance_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value, least in (("d_in", d_in, 1), ("d_out", d_out, 1), ("depth", depth, 0), ("trees", trees, 1)):
            if value < least:
                raise ValueError(f"{name}={value} is too small; it must be {least} or more")
        rate_or_weight("rebalance_rate", rebalance_rate)
        if rebalance_rate and not bias:
            raise ValueError(f"rebalance_rate={rebalance_rate} moves biases, and with bias=False there are none")
        activation_named(activation)
        check(execution, provider)
        super().__init__((trees, first_node(depth)), rebalance_rate)
        self._chooser = Chooser(PATH)
        self.d_in, self.d_out, self.depth, self.trees = d_in, d_out, depth, trees
        self.activation, self.execution, self.provider = activation, execution, provider
        self.make_nodes(d_in, d_out, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation of the nodes, and temperature 1."""
        self.reset_nodes()
        nn.init.ones_(self.temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., d_in) -> (..., d_out), in x's dtype or autocast's.

        Raises:
            ValueError: x has another last dimension, dtype or device than the weights.
        """
        # The provider's shortcut, where there is one: for one token, the checks on the usual way take as long as the
        # layer. It is there from the second call on, so torch.compile must not see it, or it would compile again.
        if not self.training and not is_compiling() and (shortcut := self._chooser.shortcut) is not None:
            y = None if in_forward_mode() else shortcut(x, self._parameters)
            if y is not None:
                return y
        if self.active_form == "soft":
            return self._soft(x)[0]
        if self.counts_now:
            return self._on_path(x)[0]
        provider, operands = self._call(x)
        y = provider.output(operands) if provider.output else provider.function(operands).y
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.d_out)

    def forward_with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, with the auxiliary losses that `losses` names (see fff.hardening)."""
        if not self.losses:
            return self.forward(x), {}
        y, decisions = self._soft(x) if self.active_form == "soft" else self._on_path(x)
        return y, self.auxiliary_losses(decisions)

    def _on_path(self, x: Tensor) -> tuple[Tensor, Decisions]:
        provider, operands = self._call(x)
        y, nodes, scores = provider.function(operands)
        self._count_turns(nodes)
        scores, nodes = scores[..., :-1], nodes[..., :-1]
        return y.view(*x.shape[:-1], self.d_out), Decisions(
            scores, nodes, torch.ones_like(scores), first_node(self.depth)
        )

    def _call(self, x: Tensor) -> tuple[Provider, PathOperands]:
        """Who computes the hard forms for x, and from what."""
        operands = self._operands(x)
        if self.training:
            operands = operands._replace(flips=self.leak(operands.x.shape[0], self.trees, self.depth))
        if self.active_form == "straight_through":
            operands = operands._replace(temperature=self.temperature)
        return self._provider_for(operands.x), operands

    def _provider_for(self, x: Tensor) -> Provider:
        return self._chooser.provider_for(self, x, short=self.evaluation_form == "hard")

    @property
    def computed_by(self) -> frozenset[str]:
        """Names of the providers that have computed hard passes of this layer, as it is set now."""
        return self._chooser.chosen

    def _soft(self, x: Tensor) -> tuple[Tensor, Decisions]:
        operands, inner = self._operands(x), first_node(self.depth)
        operands = operands._replace(flips=self.leak(operands.x.shape[0], self.trees, inner))
        y, scores, reached = soft(operands, self.temperature)
        if self.counts_now:
            self._count_turns(walk(scores.detach(), path_length(self.depth)))
        nodes = torch.arange(inner, device=x.device).expand(*scores.shape[:-1], -1)
        decisions = Decisions(scores[..., :inner], nodes, reached[..., :inner], inner)
        return y.view(*x.shape[:-1], self.d_out), decisions

    @property
    def decision_bias(self) -> Tensor | None:
        """Those of b_in whose nodes decide, (trees, 2^depth - 1); None with bias=False."""
        return None if self.b_in is None else self.b_in[:, : first_node(self.depth)]

    @property
    def balanced_bias(self) -> Tensor:
        """The same, which are there where there is a rate."""
        bias = self.decision_bias
        assert bias is not None
        return bias

    def surplus(self, counts: Tensor) -> Tensor:
        """Tokens that went right less those that went left, which is what is counted."""
        return counts

    def _count_turns(self, nodes: Tensor) -> None:
        """Count which way the tokens went at each node of their paths (N, T, L); in the soft form, would have gone."""
        if self.counts_now:
            first = first_node(self.depth) * torch.arange(self.trees, device=nodes.device)[:, None]
            self.count(nodes[..., :-1] + first, 2 * went_right(nodes).long() - 1)

    def refuse_form(self, form: str) -> str | None:
        """Why this layer cannot take the form: the soft one needs all nodes, and conditional providers compute few."""
        asked = self.provider if self.provider != "auto" else self.execution
        if form == "soft" and asked not in ("auto", "masked"):
            return f"it needs all nodes, and this PathFFF asks for {asked!r}; leave provider and execution at 'auto'"
        return None

    @torch.no_grad()
    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Visited nodes and their scores, both (..., trees, depth + 1): int64 in heap order, and floats.

        By the provider that computes the layer, whose rounding decides where a score is near 0.
        """
        operands = self._operands(x)
        nodes, scores = self._provider_for(operands.x).paths(operands)
        shape = (*x.shape[:-1], self.trees, path_length(self.depth))
        return nodes.view(shape), scores.view(shape)

    def _operands(self, x: Tensor) -> PathOperands:
        """Input (N, d_in) and weights in the dtype of the computation: autocast's as for nn.Linear, else their own."""
        w_in, b_in, w_out = self.w_in, self.b_in, self.w_out
        dtype = computing_dtype(x, w_in, self.d_in)
        flat = x if x.dim() == 2 else x.reshape(-1, self.d_in)
        if dtype == x.dtype == w_in.dtype:
            return PathOperands(flat, w_in, b_in, w_out, self.activation)
        bias = b_in.to(dtype) if b_in is not None else None
        return PathOperands(flat.to(dtype), w_in.to(dtype), bias, w_out.to(dtype), self.activation)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in CHOICE_DEPENDS_ON and "_chooser" in self.__dict__:  # not before the layer is made
            self._chooser.forget()

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        neurons = f"{used_neurons(self.trees, self.depth)} of {trained_neurons(self.trees, self.depth)} neurons"
        return (
            f"{self.d_in}, {self.d_out}, depth={self.depth}, trees={self.trees} ({neurons}), "
            f"bias={self.b_in is not None}, activation={self.activation}, "
            f"execution={self.execution}, provider={self.provider}"
            + (f", rebalance_rate={self.balance_rate}" if self.balance_rate else "")
        )
