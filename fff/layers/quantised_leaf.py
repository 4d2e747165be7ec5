"""LeafFFF for inference on eight-bit integers, made of a trained one. Not the arithmetic (`fff.int8_leaf`)."""

from typing import Any, Self

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.int8 import WIDEST, quantised
from fff.int8_leaf import Int8Networks
from fff.kernels import INT8_LEAF, Chooser, Int8LeafOperands, Provider, check
from fff.kernels.int8_leaf import Sizes, pack_networks, packed_rows, packed_width
from fff.layers.int8_trees import Int8Trees
from fff.layers.leaf import MASTER, MASTER_VALUE, VALUE, WEIGHTS, LeafFFF
from fff.topology import first_node

NODES = ("w_node", "scale_node", "b_node")
NETWORK = Int8Networks._fields
MASTERS = tuple(f"master_{name}" for name in NETWORK)


class QuantisedLeaf(Int8Trees):
    """LeafFFF's hard form with leaves and master in whole numbers from -127 to 127: a quarter of float32's bytes.

    Tokens and hidden neurons are quantised as they come; decisions have finer numbers, of 16 bits, because a decision
    that turns round costs a token all of its leaf. Shapes: (..., d_in) -> (..., d_out), in the input's dtype, float32
    or bfloat16. For inference alone: there are no gradients.

    Args:
        provider: who computes it: reference, masked (plain torch) or cpu (C++), with the same decisions, to the last
            bit; "auto" takes the fastest available.
        others: as LeafFFF's.

    Buffers, saved with the model, of all of which the scales and biases stay float32 whatever the model is converted
    to: w_node (2^depth - 1, d_in) int16, scale_node and b_node; w_in and w_out int8, packed for the processor as
    `fff.kernels.int8_leaf.pack` says, with scales and biases, padded; with a master leaf the same of one, master_*. The
    factor that mixes leaf and master is in their output's scales and biases.

    Raises:
        ValueError: an unknown name, or d_in, leaf_width or master_width is above 2^17.
    """

    trees, execution = 1, "auto"

    def __init__(
        self,
        d_in: int,
        d_out: int,
        depth: int,
        leaf_width: int,
        *,
        activation: str = "gelu",
        master_width: int = 0,
        gated: bool = False,
        provider: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, width in (("d_in", d_in), ("leaf_width", leaf_width), ("master_width", master_width)):
            if width > WIDEST:
                raise ValueError(f"{name}={width} is too large; sums of products of int8 are exact up to {WIDEST}")
        activation_named(activation)
        check("auto", provider, INT8_LEAF)
        self._chooser = Chooser(INT8_LEAF)
        self.sizes = Sizes(d_in, d_out, leaf_width, master_width, gated)
        self.depth, self.activation, self.provider = depth, activation, provider
        shapes = self._shapes()
        for name in (*NODES, *NETWORK, *MASTERS):
            shape, kind = shapes.get(name), torch.float32
            if name.endswith(("w_in", "w_out")):
                kind = torch.int8
            elif name == "w_node":
                kind = torch.int16
            self.register_buffer(name, None if shape is None else torch.zeros(shape, dtype=kind, device=device))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        sizes, nodes = self.sizes, first_node(self.depth)
        found: dict[str, tuple[int, ...]] = {"w_node": (nodes, sizes.d_in), "scale_node": (nodes,), "b_node": (nodes,)}
        for prefix, count, width in (("", 2**self.depth, sizes.leaf_width), ("master_", 1, sizes.master_width)):
            if not width:
                continue
            rows = packed_rows(width) * (2 if sizes.gated else 1)
            sides = (("in", rows, sizes.d_in), ("out", packed_rows(sizes.d_out), packed_rows(width)))
            for side, height, numbers in sides:
                found[f"{prefix}w_{side}"] = (count, height // 16, packed_width(numbers) // 4, 16, 4)
                found[f"{prefix}scale_{side}"] = found[f"{prefix}b_{side}"] = (count, height)
        return found

    @classmethod
    @torch.no_grad()
    def from_float(cls, layer: LeafFFF, provider: str = "auto") -> Self:
        """The layer with its rows quantised, on its device.

        Raises:
            ValueError: a weight that is not finite; names it.
        """
        for name in (*WEIGHTS, *VALUE, *MASTER, *MASTER_VALUE, "mix"):
            weight = getattr(layer, name)
            if weight is not None and not weight.float().isfinite().all():
                raise ValueError(f"{name} holds values that are not finite, or not in float32; it cannot be quantised")
        made = cls(
            layer.d_in,
            layer.d_out,
            layer.depth,
            layer.leaf_width,
            activation=layer.activation,
            master_width=layer.master_width,
            gated=layer.gated,
            provider=provider,
            device=layer.w_in.device,
        )
        if layer.w_node is not None and layer.b_node is not None:
            made.w_node, made.scale_node = quantised(layer.w_node, made.sizes.levels)
            made.b_node = layer.b_node.detach().float().clone()
        mix = 0.0 if layer.mix is None else float(layer.mix)
        ours = {name: getattr(layer, name) for name in (*WEIGHTS[2:], *VALUE)}
        made._take("", ours, 1 - mix)
        if layer.master_width:
            whole = {name: getattr(layer, f"master_{name}") for name in ours}
            made._take("master_", {name: None if t is None else t[None] for name, t in whole.items()}, mix)
        return made.train(layer.training)

    def _take(self, prefix: str, weights: dict[str, Tensor | None], factor: float) -> None:
        """Quantise and pack float networks, their outputs times a factor."""

        def joined(name: str, value: str) -> Tensor:
            return torch.cat([t.float() for t in (weights[name], weights[value]) if t is not None], 1)

        assert weights["w_out"] is not None
        assert weights["b_out"] is not None
        w_in, scale_in = quantised(joined("w_in", "w_value"))
        w_out, scale_out = quantised(weights["w_out"].float().transpose(1, 2).contiguous())
        b_out = weights["b_out"].float() * factor
        whole = Int8Networks(w_in, scale_in, joined("b_in", "b_value"), w_out, scale_out * factor, b_out)
        for name, tensor in zip(NETWORK, pack_networks(whole, gated=self.sizes.gated), strict=True):
            setattr(self, prefix + name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., d_in) -> (..., d_out), in x's dtype or autocast's.

        Raises:
            ValueError: x has another last dimension, dtype or device.
            RuntimeError: gradients are wanted, or the layer is in training mode.
        """
        provider, operands = self._call(x)
        y = provider.output(operands) if provider.output else provider.function(operands).y
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.sizes.d_out)

    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Visited nodes (..., 1, depth + 1) int64 in heap order, and the decisions' scores (..., 1, depth) float32."""
        provider, operands = self._call(x)
        nodes, scores = provider.paths(operands)
        return nodes.view(*x.shape[:-1], 1, self.depth + 1), scores.view(*x.shape[:-1], 1, self.depth)

    def _call(self, x: Tensor) -> tuple[Provider, Int8LeafOperands]:
        flat = self._flat(x, self.sizes.d_in)
        tensors: Any = self._buffers
        nodes = tensors["w_node"], tensors["scale_node"], tensors["b_node"]
        leaves = [tensors[name] for name in NETWORK]
        master = Int8Networks(*(tensors[name] for name in MASTERS)) if self.sizes.master_width else None
        operands = Int8LeafOperands(flat, nodes, Int8Networks(*leaves), master, self.sizes, self.activation)
        return self._chooser.provider_for(self, flat, short=True), operands

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        sizes = self.sizes
        return (
            f"{sizes.d_in}, {sizes.d_out}, depth={self.depth}, leaf_width={sizes.leaf_width}, "
            f"master_width={sizes.master_width}, gated={sizes.gated}, int8, activation={self.activation}, "
            f"provider={self.provider}"
        )
