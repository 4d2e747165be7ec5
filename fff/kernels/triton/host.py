"""Launches the kernels of provider `triton` (triton_kernels.py): bands, orders, grids, block sizes. Imports Triton.

Everything is on the device: no size is read back, so a call never waits and can be captured in a CUDA graph.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fff.activations import activation_named
from fff.decisions import straight_through_gradient
from fff.kernels.operands import PathGradients, PathOperands
from fff.kernels.triton import kernels
from fff.topology import depth_of, path_length

# None of these numbers is measured; see docs/kernels.md.
# Rows that a walk token by token would fetch from the L2 cache (bytes) from which sorting tokens pays: at 5.5 TB/s this
# much takes 24 us, about what the sorts and the launches take.
GROUPED_FROM_BYTES = 2**27
WALK_WIDEST = 4096  # a token's x, y and rows are kept in registers
WALK_PROGRAMS = 264  # a few tokens' trees are divided among so many programs: two for each of an H100's 132 SMs
# Tokens in one piece of a weight gradient, see `_chunk`.
CHUNK = 1024
ABOVE = 16  # columns for the levels above a band; a product's least


class Blocks(NamedTuple):
    """Block sizes of a dtype: levels of a band at most, tokens, inner and outer columns, programs' warps."""

    levels: int
    n: int
    h: int
    k: int
    warps: int
    stages: int


# Half types go through tensor cores, 127 rows in a product at most. float32 without TF32 does not, so its bands are
# narrower: three of 4 levels for depth 11, 45 rows.
HALF = Blocks(levels=7, n=64, h=64, k=128, warps=8, stages=3)
SINGLE = Blocks(levels=5, n=32, h=32, k=64, warps=4, stages=2)


class Band(NamedTuple):
    """Levels [level, level + levels) of the trees, a dense product per group of 2^level."""

    level: int
    levels: int

    @property
    def groups(self) -> int:
        """Nodes at the band's first level."""
        return 2**self.level


class Order(NamedTuple):
    """Tokens of each tree by group of a band: tokens (T, N) int64, starts (T, groups + 1) int32; None for one group."""

    band: Band
    tokens: Tensor | None
    starts: Tensor | None

    def of(self, band: Band) -> "Order":
        """The same tokens by the groups of a band further up: its groups are runs of this band's."""
        if self.starts is None or band.level == 0:
            return Order(band, None, None)
        return Order(band, self.tokens, self.starts[:, :: self.band.groups // band.groups].contiguous())


def blocks_for(dtype: torch.dtype) -> Blocks:
    """The block sizes for operands of a dtype."""
    return SINGLE if dtype == torch.float32 else HALF


def bands_of(depth: int, most: int) -> list[Band]:
    """The levels of a tree in as few bands of at most `most` levels as do, as even as may be."""
    total = path_length(depth)
    count = -(-total // most)
    cuts = [total * i // count for i in range(count + 1)]
    return [Band(a, b - a) for a, b in pairwise(cuts)]


def forward(operands: PathOperands, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, K), leaves (N, T) int32 in heap order, scores (N, T, L) float32; only the first is sure without `save`.

    The operands are checked, of any strides.
    """
    operands = PathOperands._make(t.contiguous() if isinstance(t, Tensor) else t for t in operands)
    if operands.flips is not None:
        operands = operands._replace(flips=operands.flips.view(torch.uint8))
    x, w_in, b_in, w_out, activation, flips, _ = operands
    if x.shape[0] == 0 or not _grouping_pays(x, w_in, w_out):
        return _walk_each(operands, save)
    scores, leaf, order = _walk_bands(x, w_in, b_in, flips)
    active = activation_named(activation).forward(scores)
    return _weighted_rows(active, w_out, leaf, order), leaf, scores


def backward(given: PathGradients) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K)."""
    given = PathGradients._make(t.contiguous() if isinstance(t, Tensor) else t for t in given)
    grad, grad_of_scores, x, w_in, w_out, leaf, scores, temperature, activation = given
    if x.shape[0] == 0:
        zeros = torch.zeros_like
        return zeros(x), zeros(w_in), w_in.new_zeros(w_in.shape[:2]), zeros(w_out)
    depth = depth_of(w_in.shape[1])
    bands = bands_of(depth, blocks_for(x.dtype).levels)
    above = bands[-1].level
    order = _order(bands[-1], (((leaf + 1) >> (depth - above)) - 2**above).t().contiguous())
    act = activation_named(str(activation))
    active, dots = act.forward(scores), _path_dots(grad, w_out, leaf, order)
    grad_scores = act.backward(dots, scores)
    if temperature is not None and depth:
        grad_scores[..., :-1] += straight_through_gradient(given.nodes, scores, active * dots, temperature)
    if grad_of_scores is not None:
        grad_scores += grad_of_scores
    grad_x = _weighted_rows(grad_scores, w_in, leaf, order)
    sums = torch.empty_like(w_in), torch.empty_like(w_out), w_in.new_empty(w_in.shape[:2])
    for band in bands:
        here = order.of(band)
        _node_sums(grad_scores, x, leaf, here, sums[0], sums[2])
        _node_sums(active, grad, leaf, here, sums[1], None)
    return grad_x, sums[0], sums[2], sums[1]


def _grouping_pays(x: Tensor, w_in: Tensor, w_out: Tensor) -> bool:
    widest = max(w_in.shape[-1], w_out.shape[-1])
    row_bytes = (w_in.shape[-1] + w_out.shape[-1]) * x.element_size()
    visited = x.shape[0] * w_in.shape[0] * path_length(depth_of(w_in.shape[1]))
    return widest > WALK_WIDEST or visited * row_bytes > GROUPED_FROM_BYTES


def _walk_each(operands: PathOperands, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, w_in, b_in, w_out, activation, flips, _ = operands
    (tokens, width), (trees, node_count, width_out) = x.shape, w_out.shape
    depth = depth_of(node_count)
    leaf = torch.empty((tokens, trees) if save else 0, dtype=torch.int32, device=x.device)
    scores = torch.empty((tokens, trees, depth + 1) if save else 0, dtype=torch.float32, device=x.device)
    if tokens == 0:
        return x.new_empty(0, width_out), leaf, scores
    share = triton.cdiv(trees, max(1, min(trees, WALK_PROGRAMS // tokens)))
    shares = triton.cdiv(trees, share)
    y = torch.empty(shares, tokens, width_out, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    block_h, block_k = triton.next_power_of_2(width), triton.next_power_of_2(width_out)
    kernels.walk_token[(tokens, shares)](
        x, w_in, b_in, w_out, flips, y, leaf, scores, tokens, width, width_out, trees, share,
        NODE_COUNT=node_count, DEPTH=depth, ACTIVATION=activation,
        HAS_BIAS=b_in is not None, HAS_FLIPS=flips is not None, SAVE=save,
        BLOCK_H=block_h, BLOCK_K=block_k, num_warps=4 if max(block_h, block_k) <= 1024 else 8,
    )  # fmt: skip
    return y[0] if shares == 1 else y.sum(0).to(x.dtype), leaf, scores


def _walk_bands(x: Tensor, w_in: Tensor, b_in: Tensor | None, flips: Tensor | None) -> tuple[Tensor, Tensor, Order]:
    """Scores (N, T, L), leaves (N, T), and the order by the last band's groups."""
    (tokens, width), (trees, node_count, _), blocks = x.shape, w_in.shape, blocks_for(x.dtype)
    depth = depth_of(node_count)
    scores = torch.empty(tokens, trees, depth + 1, dtype=torch.float32, device=x.device)
    leaf = torch.empty(tokens, trees, dtype=torch.int32, device=x.device)
    bands = bands_of(depth, blocks.levels)
    places = torch.empty(trees, tokens, dtype=torch.int32, device=x.device)
    for band in bands:
        order = _order(band, places)
        kernels.walk_band[(_pieces(band, tokens, blocks.n), trees)](
            x, w_in, b_in, flips, order.tokens, order.starts, scores,
            leaf if band is bands[-1] else places, tokens, width, band.groups,
            NODE_COUNT=node_count, DEPTH=depth, HAS_BIAS=b_in is not None, HAS_FLIPS=flips is not None,
            BLOCK_H=blocks.h, **_of_band(band), **_common(x.dtype, blocks),
        )  # fmt: skip
    return scores, leaf, order


def _order(band: Band, groups: Tensor) -> Order:
    """Tokens by group: groups (T, N) int32 -> the order; stable, so that it is one and the same on every run."""
    if band.level == 0:
        return Order(band, None, None)
    ordered, tokens = torch.sort(groups, dim=-1, stable=True)
    bounds = torch.arange(band.groups + 1, dtype=torch.int32, device=groups.device)
    bounds = bounds.expand(groups.shape[0], -1).contiguous()
    return Order(band, tokens, torch.searchsorted(ordered, bounds, out_int32=True))


def _path_dots(x: Tensor, w: Tensor, leaf: Tensor, order: Order) -> Tensor:
    (tokens, width), (trees, node_count, _), blocks = x.shape, w.shape, blocks_for(x.dtype)
    depth = depth_of(node_count)
    dots = torch.empty(tokens, trees, depth + 1, dtype=torch.float32, device=x.device)
    kernels.path_dots[(_pieces(order.band, tokens, blocks.n), trees)](
        x, w, leaf, order.tokens, order.starts, dots, tokens, width, order.band.groups,
        NODE_COUNT=node_count, DEPTH=depth, ABOVE=ABOVE, BLOCK_H=blocks.h,
        **_of_band(order.band), **_common(x.dtype, blocks),
    )  # fmt: skip
    return dots


def _weighted_rows(coefficients: Tensor, w: Tensor, leaf: Tensor, order: Order) -> Tensor:
    """(N, T, L) times the path nodes' rows of w (T, M, K) -> (N, K), in w's dtype.

    Trees with orders of their own are added one after the other, in float32.
    """
    tokens, (trees, node_count, width), blocks = leaf.shape[0], w.shape, blocks_for(w.dtype)
    at_once = trees if order.tokens is None else 1
    y = torch.empty(tokens, width, dtype=w.dtype if at_once == trees else torch.float32, device=w.device)
    grid = (_pieces(order.band, tokens, blocks.n), triton.cdiv(width, blocks.k))
    for first in range(0, trees, at_once):
        kernels.weighted_rows[grid](
            coefficients, w, leaf, order.tokens, order.starts, y, tokens, width, order.band.groups,
            trees, first, first + at_once,
            NODE_COUNT=node_count, DEPTH=depth_of(node_count), ABOVE=ABOVE, ADD=first > 0, BLOCK_K=blocks.k,
            **_of_band(order.band), **_common(w.dtype, blocks),
        )  # fmt: skip
    return y.to(w.dtype)


def _node_sums(coefficients: Tensor, x: Tensor, leaf: Tensor, order: Order, sums: Tensor, plain: Tensor | None) -> None:
    """sums (T, M, H) of the band's nodes = coefficients (N, T, L) times x (N, H), summed by path node.

    plain (T, M), if wanted, is written too: the coefficients' own sums.
    """
    (tokens, width), (trees, node_count, _), blocks = x.shape, sums.shape, blocks_for(x.dtype)
    band, chunk = order.band, _chunk(order.band, trees)
    places = 2 * (tokens // chunk)
    shape = {**_of_band(band), "NODE_COUNT": node_count, "CHUNK": chunk, "PLAIN": plain is not None}
    partial = torch.empty(trees * places * shape["NODES"], width, dtype=torch.float32, device=x.device)
    partial_plain = torch.empty(partial.shape[0], dtype=torch.float32, device=x.device)
    # Beside 128 nodes there are registers for half as many columns.
    block_h = blocks.k if shape["NODES"] < 128 else blocks.k // 2
    columns = triton.cdiv(width, block_h)
    kernels.node_sums[(_pieces(band, tokens, chunk), columns, trees)](
        coefficients, x, leaf, order.tokens, order.starts, sums, plain, partial, partial_plain,
        tokens, width, band.groups, places,
        DEPTH=depth_of(node_count), BLOCK_H=block_h, **shape, **_common(x.dtype, blocks),
    )  # fmt: skip
    if places:
        kernels.add_partials[(band.groups, columns, trees)](
            order.starts, sums, plain, partial, partial_plain, tokens, width, band.groups, places,
            BLOCK_H=block_h, **shape,
        )  # fmt: skip


def _chunk(band: Band, trees: int) -> int:
    """Tokens in one piece: partial sums take 8 * T * NODES / chunk bytes for each number of x, at most half a byte."""
    return max(CHUNK, 16 * trees * _of_band(band)["NODES"])


def _pieces(band: Band, tokens: int, size: int) -> int:
    """How far pieces of `size` tokens in the band's groups can be numbered."""
    return triton.cdiv(tokens, size) if band.groups == 1 else tokens // size + band.groups


def _of_band(band: Band) -> dict[str, int]:
    """A band's compile-time arguments. Products have 16 columns at least."""
    return {
        "LEVEL": band.level,
        "LEVELS": band.levels,
        "NODES": max(16, 2**band.levels),
        "GROUPS": band.groups,
    }


def _common(dtype: torch.dtype, blocks: Blocks) -> dict[str, Any]:
    """Compile-time arguments of the kernels with products. "ieee": float32 without TF32, as decisions need."""
    return {
        "BLOCK_N": blocks.n,
        "PRECISION": "ieee",
        "WIDEN": kernels.INTERPRETED and dtype == torch.bfloat16,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
