"""PathFFF for inference on eight-bit integers, made of a trained one. Not the arithmetic, which `fff.int8` defines."""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fff.activations import activation_named
from fff.int8 import WIDEST, quantised
from fff.kernels import INT8, Chooser, Int8Operands, Provider, check, in_forward_mode
from fff.layers.int8_trees import Int8Trees
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.layers.quantised_leaf import QuantisedLeaf
from fff.topology import nodes_in_tree, path_length, used_neurons

NUMBERS = ("scale_in", "b_in", "scale_out")  # buffers that stay float32


class QuantisedPath(Int8Trees):
    """PathFFF's trees with rows of whole numbers from -127 to 127 and one scale each: a quarter of float32's bytes.

    Tokens are quantised as they come, once each; scores and sums are float32. Shapes: (..., d_in) -> (..., d_out), in
    the input's dtype, float32 or bfloat16. For inference alone: there are no gradients.

    Args:
        provider: who computes it: reference, masked (plain torch) or cpu (C++), with the same decisions, to the last
            bit; "auto" takes the fastest available.
        others: as PathFFF's.

    Buffers, saved with the model: w_in (trees, nodes, d_in) and w_out (trees, nodes, d_out) int8; scale_in, b_in or
    None, and scale_out (trees, nodes) float32, whatever dtype the model is converted to.

    Raises:
        ValueError: an unknown name, or d_in is above 2^17.
    """

    scale_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    scale_out: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        depth: int,
        trees: int = 1,
        *,
        bias: bool = True,
        activation: str = "gelu",
        provider: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if d_in > WIDEST:
            raise ValueError(f"d_in={d_in} is too large; sums of products of int8 are exact up to {WIDEST}")
        activation_named(activation)
        check("auto", provider, INT8)
        self._chooser = Chooser(INT8)
        self.d_in, self.d_out, self.depth, self.trees = d_in, d_out, depth, trees
        self.activation, self.execution, self.provider = activation, "auto", provider
        shape = (trees, nodes_in_tree(depth))
        for name, width in (("w_in", d_in), ("w_out", d_out)):
            self.register_buffer(name, torch.zeros(*shape, width, dtype=torch.int8, device=device))
        for name in NUMBERS:
            there = bias or name != "b_in"
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32, device=device) if there else None)

    @classmethod
    @torch.no_grad()
    def from_float(cls, layer: PathFFF, provider: str = "auto") -> Self:
        """The layer with its rows quantised, on its device.

        Raises:
            ValueError: a weight that is not finite; names it.
        """
        for name in ("w_in", "b_in", "w_out"):
            weight = getattr(layer, name)
            if weight is not None and not weight.float().isfinite().all():
                raise ValueError(f"{name} holds values that are not finite, or not in float32; it cannot be quantised")
        made = cls(
            layer.d_in,
            layer.d_out,
            layer.depth,
            layer.trees,
            bias=layer.b_in is not None,
            activation=layer.activation,
            provider=provider,
            device=layer.w_in.device,
        )
        made.w_in, made.scale_in = quantised(layer.w_in)
        made.w_out, made.scale_out = quantised(layer.w_out)
        if layer.b_in is not None:
            made.b_in = layer.b_in.detach().float().clone()
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., d_in) -> (..., d_out), in x's dtype or autocast's.

        Raises:
            ValueError: x has another last dimension, dtype or device.
            RuntimeError: gradients are wanted, or the layer is in training mode.
        """
        # The provider's shortcut as in PathFFF.
        if not self.training and not is_compiling() and (shortcut := self._chooser.shortcut) is not None:
            y = None if in_forward_mode() else shortcut(x, self._buffers)
            if y is not None:
                return y
        provider, operands = self._call(x)
        y = provider.output(operands) if provider.output else provider.function(operands).y
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.d_out)

    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Visited nodes and their scores, both (..., trees, depth + 1): int64 in heap order, and float32."""
        provider, operands = self._call(x)
        nodes, scores = provider.paths(operands)
        shape = (*x.shape[:-1], self.trees, path_length(self.depth))
        return nodes.view(shape), scores.view(shape)

    def _call(self, x: Tensor) -> tuple[Provider, Int8Operands]:
        flat = self._flat(x, self.d_in)
        operands = Int8Operands(flat, self.w_in, self.scale_in, self.b_in, self.w_out, self.scale_out, self.activation)
        return self._chooser.provider_for(self, flat, short=True), operands

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        return (
            f"{self.d_in}, {self.d_out}, depth={self.depth}, trees={self.trees} "
            f"({used_neurons(self.trees, self.depth)} neurons used), int8, bias={self.b_in is not None}, "
            f"activation={self.activation}, provider={self.provider}"
        )


INT8_FORMS: dict[type[nn.Module], Any] = {PathFFF: QuantisedPath, LeafFFF: QuantisedLeaf}


def int8_form(layer: nn.Module) -> Any:
    """The class of a layer's int8 form, whose `from_float` makes it, or None."""
    return next((form for kind, form in INT8_FORMS.items() if isinstance(layer, kind)), None)


class Quantised(NamedTuple):
    """What became of a model's trees: how many layers, and the bytes of their weights before and after."""

    layers: int
    bytes_before: int
    bytes_after: int


def quantise_trees(model: nn.Module) -> Quantised:
    """Replace every PathFFF and LeafFFF inside a model by its int8 form, in place; one in two places stays one layer.

    Raises:
        ValueError: the model is itself such a layer, or a weight is not finite; the model is as it was.
    """
    for kind, into in INT8_FORMS.items():
        if isinstance(model, kind):
            raise ValueError(f"a {kind.__name__} cannot be replaced in itself; take {into.__name__}.from_float(layer)")
    made = {layer: form.from_float(layer) for layer in model.modules() if (form := int8_form(layer))}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in made:
                setattr(parent, name, made[child])
    return Quantised(len(made), sum(map(_bytes, made)), sum(map(_bytes, made.values())))


def _bytes(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensors in (layer.parameters(), layer.buffers()) for tensor in tensors)
