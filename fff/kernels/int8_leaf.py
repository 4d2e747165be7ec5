"""Int8 leaves in plain torch: what the operation takes, how rows are packed, and all leaves by two products.

The definition is `fff.int8_leaf`. Packed, 16 rows are a group, and a line of 64 bytes has four neighbouring numbers of
each: what the processor's tiles and its products of four bytes read (cpp/tiles.h). It is a layout alone, the same on
every machine, so that packed rows can be saved.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fff.activations import activation_named
from fff.int8 import quantised
from fff.int8_leaf import Int8Networks, decision_levels, int8_leaf_fff
from fff.kernels.int8 import EXACT, LARGEST
from fff.reference import PathResult
from fff.topology import first_node, walk

GROUP, QUAD, TILE = 16, 4, 64  # rows, and numbers, of a line; numbers that a tile takes


class Sizes(NamedTuple):
    """Of the layer without what it is padded by: H, K, W, the master's W or 0, and whether leaves are gated."""

    d_in: int
    d_out: int
    leaf_width: int
    master_width: int
    gated: bool

    @property
    def levels(self) -> int:
        """The largest number of a decision's row, and of a token for it."""
        return decision_levels(self.d_in)


class Int8LeafOperands(NamedTuple):
    """x (N, H) float32 or bfloat16; packed networks, the decisions' and the leaves' as `fff.int8_leaf.int8_leaf_fff`.

    nodes: w_node (2^D - 1, H) int16, scale_node and b_node (2^D - 1) float32. leaves, master (one or None): packed.
    """

    x: Tensor
    nodes: tuple[Tensor, Tensor, Tensor]
    leaves: Int8Networks
    master: Int8Networks | None
    sizes: Sizes
    activation: str

    @property
    def depth(self) -> int:
        """D."""
        return len(self.nodes[0]).bit_length()


def packed_width(numbers: int) -> int:
    """Numbers in a packed row: whole tiles, or of less than one whole quads."""
    unit = TILE if numbers > TILE else QUAD
    return -(-numbers // unit) * unit


def packed_rows(rows: int) -> int:
    """Rows in whole groups."""
    return -(-rows // GROUP) * GROUP


def pack(rows: Tensor, parts: int = 1, width: int = 0) -> Tensor:
    """Rows (leaves, parts * W, H) int8, each part padded to whole groups -> (leaves, groups, quads, 16, 4).

    width: numbers for which there must be room, where these are more than H.
    """
    split = rows.unflatten(1, (parts, -1))
    count, held = split.shape[2:]
    more = packed_width(max(held, width)) - held
    split = functional.pad(split, (0, more, 0, packed_rows(count) - count)).flatten(1, 2)
    return split.unflatten(1, (-1, GROUP)).unflatten(3, (-1, QUAD)).transpose(2, 3).contiguous()


def unpack(packed: Tensor, rows: int, width: int, parts: int = 1) -> Tensor:
    """The rows (leaves, parts * rows, width) of `pack`."""
    flat = packed.transpose(2, 3).flatten(3).flatten(1, 2)
    return flat.unflatten(1, (parts, -1))[:, :, :rows, :width].flatten(1, 2)


def pack_numbers(numbers: Tensor, parts: int = 1) -> Tensor:
    """Scales or biases (leaves, parts * W), padded as the rows are."""
    split = numbers.unflatten(1, (parts, -1))
    return functional.pad(split, (0, packed_rows(split.shape[2]) - split.shape[2])).flatten(1)


def unpack_numbers(packed: Tensor, rows: int, parts: int = 1) -> Tensor:
    """The numbers of `pack_numbers`."""
    return packed.unflatten(1, (parts, -1))[:, :, :rows].flatten(1)


def pack_networks(networks: Int8Networks, *, gated: bool) -> Int8Networks:
    """All of some networks' tensors, packed."""
    w_in, scale_in, b_in, w_out, scale_out, b_out = networks
    parts = 2 if gated else 1
    ins = pack(w_in, parts), pack_numbers(scale_in, parts), pack_numbers(b_in, parts)
    out = pack(w_out, width=packed_rows(w_out.shape[-1]))  # hidden neurons come in whole groups
    return Int8Networks(*ins, out, pack_numbers(scale_out), pack_numbers(b_out))


def unpack_networks(networks: Int8Networks, width: int, sizes: Sizes) -> Int8Networks:
    """The networks of `pack_networks`, of `width` neurons."""
    w_in, scale_in, b_in, w_out, scale_out, b_out = networks
    parts, d_out = 2 if sizes.gated else 1, sizes.d_out
    return Int8Networks(
        unpack(w_in, width, sizes.d_in, parts),
        unpack_numbers(scale_in, width, parts),
        unpack_numbers(b_in, width, parts),
        unpack(w_out, d_out, width),
        unpack_numbers(scale_out, d_out),
        unpack_numbers(b_out, d_out),
    )


def _unpacked(operands: Int8LeafOperands) -> tuple[Int8Networks, Int8Networks | None]:
    sizes, master = operands.sizes, operands.master
    leaves = unpack_networks(operands.leaves, sizes.leaf_width, sizes)
    return leaves, None if master is None else unpack_networks(master, sizes.master_width, sizes)


def int8_leaf_definition(operands: Int8LeafOperands) -> PathResult:
    """`fff.int8_leaf.int8_leaf_fff`."""
    leaves, master = _unpacked(operands)
    return int8_leaf_fff(operands.x, *operands.nodes, leaves, master, operands.activation, gated=operands.sizes.gated)


def int8_leaf_masked(operands: Int8LeafOperands) -> PathResult:
    """All leaves, those of other tokens zeroed, with the definition's decisions and scores to the last bit.

    Memory: (N, leaves * W) float32 several times, and the weights in float32.
    """
    x, (w_node, scale_node, b_node), _, _, sizes, activation = operands
    leaves, master = _unpacked(operands)
    depth = operands.depth
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        fine, fine_scale = quantised(x, sizes.levels)
        scores = (fine.double() @ w_node.double().t()).float() * fine_scale[:, None] * scale_node + b_node
        path = walk(scores, depth + 1) if depth else torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
        tokens = quantised(x)
        y = _own(tokens, leaves, path[:, -1] - first_node(depth), sizes.gated, activation)
        if master is not None:
            y = y + _own(tokens, master, torch.zeros_like(path[:, 0]), sizes.gated, activation)
        scores = scores.gather(-1, path[:, :-1])
    return PathResult(y.to(x.dtype), path[:, None], scores[:, None])


def _own(tokens: tuple[Tensor, Tensor], networks: Int8Networks, leaf: Tensor, gated: bool, activation: str) -> Tensor:
    """(N, K) of each token's own network; leaf (N,)."""
    (whole, scale), (w_in, scale_in, b_in, w_out, scale_out, b_out) = tokens, networks
    count, rows, _ = w_in.shape
    dots = _exact(whole, w_in.flatten(0, 1)).view(-1, count, rows)
    own = dots.gather(1, leaf[:, None, None].expand(-1, 1, rows))[:, 0]
    found = own * scale[:, None] * scale_in[leaf] + b_in[leaf]
    act = activation_named(activation).forward
    neurons, *values = found.chunk(2, -1) if gated else (found,)
    hidden, hidden_scale = quantised(act(neurons) * values[0] if values else act(neurons))
    spread = hidden[:, None] * functional.one_hot(leaf, count).to(torch.int8)[..., None]
    sums = _exact(spread.flatten(1), w_out.transpose(1, 2).flatten(0, 1).t(), terms=hidden.shape[-1])
    return sums * hidden_scale[:, None] * scale_out[leaf] + b_out[leaf]


def _exact(whole: Tensor, rows: Tensor, terms: int | None = None) -> Tensor:
    """Sums of products of whole numbers (N, H) and (R, H), of which at most `terms` are not 0, rounded once."""
    wide = torch.float32 if (terms or whole.shape[-1]) * LARGEST <= EXACT else torch.float64
    return (whole.to(wide) @ rows.to(wide).t()).float()
