"""Regions: which tokens reach which leaf, and edits that reach one region alone. Not figures of usage (usage.py).

A layer divides its input space into one region per leaf and tree. The regions "can also be used as a partition of the
input space for interpretability, surgical model editing" (arXiv 2308.14711, section 1). An edit holds for the hard and
straight-through forms, where a token computes its own path alone; in the soft form every leaf reaches every token.
"""

import contextlib
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from fff.layers.base import Routed
from fff.layers.path import PathFFF
from fff.topology import first_node


def assign(layer: Routed, x: Tensor) -> Tensor:
    """The leaf that each token reaches in each tree: x (..., d_in) -> (..., trees) int64, from 0 to 2^depth - 1.

    Leaves are numbered from left to right. Without region leak, so it is what the layer does in evaluation. Of another
    routed layer, the unit of each group; (..., groups, K) where a token uses K units.

    Raises:
        ValueError: x has another last dimension, dtype or device than the layer.
    """
    return layer.route(x).units.squeeze(-1)


def tokens_in(layer: Routed, x: Tensor, leaf: int, tree: int = 0) -> Tensor:
    """The tokens of one region: x (..., d_in) -> (count,) int64, ascending, counted over x's flattened leading shape.

    Raises:
        ValueError: no such leaf or tree, or x does not fit the layer.
    """
    _check(layer, leaf, tree)
    return (layer.route(x).units[..., tree, :] == leaf).any(-1).flatten().nonzero()[:, 0]


def routed_layers(model: nn.Module) -> dict[str, Routed]:
    """The layers of a model of which tokens use parts, by name, in order; a layer by itself has the name ""."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Routed)}


@contextlib.contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, each forward pass of the model adds to each FFF layer's list its input (..., d_in), detached.

    The lists may be cleared between passes, which bounds the memory. Meant for evaluation: in training with auxiliary
    losses a block calls `forward_with_losses`, which hooks do not see. The hooks are gone afterwards, also after an
    error.

    Yields:
        Layer name -> list of its inputs, on their device and in their dtype.

    Raises:
        ValueError: the model has no FFF layer.
    """
    layers = routed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no FFF layer, so there is no region to look at")
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = []
    try:
        for name, layer in layers.items():
            # The default binds this layer's list, not the loop's last one.
            def keep(_: nn.Module, arguments: tuple[Tensor, ...], kept: list[Tensor] = inputs[name]) -> None:
                kept.append(arguments[0].detach())

            handles.append(layer.register_forward_pre_hook(keep))
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def editable(layer: nn.Module) -> TypeGuard[PathFFF]:
    """Whether `edit_leaf` takes this layer."""
    return isinstance(layer, PathFFF)


@torch.no_grad()
def edit_leaf(layer: PathFFF, leaf: int, w_out: Tensor, tree: int = 0) -> Tensor:
    """Replace what one leaf writes to the output, in place; every other token's output keeps its bits.

    Only tokens of the leaf's region use this row: y changes by act(s) * (new - old) for them, with s the leaf's score.
    In a model, later layers mix tokens (attention), so there other positions may follow.

    Args:
        w_out: (d_out,), finite; taken to the layer's dtype and device.

    Returns:
        The old row (d_out,), with which `edit_leaf` takes the edit back exactly.

    Raises:
        TypeError: the layer is not a PathFFF.
        ValueError: no such leaf or tree, another shape, or a value that is not finite in the layer's dtype: provider
            `masked` multiplies the rows that a token does not use by 0, and 0 * infinity is not 0.
    """
    if not editable(layer):
        raise TypeError(f"edits are defined for PathFFF, not for {type(layer).__name__}")
    _check(layer, leaf, tree)
    if w_out.shape != (layer.d_out,):
        raise ValueError(f"w_out has shape {tuple(w_out.shape)}, but one leaf's row has shape ({layer.d_out},)")
    row = w_out.to(layer.w_out)
    if not row.isfinite().all():
        raise ValueError(f"w_out has values that are not finite in {layer.w_out.dtype}; they would reach other regions")
    node = first_node(layer.depth) + leaf
    old = layer.w_out[tree, node].clone()
    layer.w_out[tree, node] = row
    return old


def ablate_leaf(layer: PathFFF, leaf: int, tree: int = 0) -> Tensor:
    """Silence one leaf: its region keeps the contribution of the nodes above it alone.

    Returns and raises as `edit_leaf`, which takes the returned row (d_out,) to undo it.
    """
    if not editable(layer):
        raise TypeError(f"edits are defined for PathFFF, not for {type(layer).__name__}")
    return edit_leaf(layer, leaf, layer.w_out.new_zeros(layer.d_out), tree)


@contextlib.contextmanager
def edited_leaf(layer: PathFFF, leaf: int, w_out: Tensor | None = None, tree: int = 0) -> Iterator[None]:
    """Inside, the leaf is edited, or silenced where `w_out` is None; afterwards its old row stands again, bit for bit.

    Raises as `edit_leaf`.
    """
    old = ablate_leaf(layer, leaf, tree) if w_out is None else edit_leaf(layer, leaf, w_out, tree)
    try:
        yield
    finally:
        edit_leaf(layer, leaf, old, tree)


def _check(layer: Routed, leaf: int, tree: int) -> None:
    for name, value, count in (("leaf", leaf, layer.units), ("tree", tree, layer.groups)):
        if not 0 <= value < count:
            raise ValueError(f"{name}={value} does not exist; the layer has {count}, numbered from 0")
