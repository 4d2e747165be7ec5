"""Provider `aten`: path nodes only, in operators that exporters know, for any number of tokens. Not the fastest here.

Every operator is torch's own, nothing is chunked, and no shape follows from values: so torch.export, AOTInductor and
ONNX can write the whole layer down, see fff.export. The top levels are one dense product, as in provider `gather`;
below them each level gathers one row per token and tree, all tokens at once, which takes O(N * T * H) memory.
"""

import contextlib

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.decisions import straight_through_gates
from fff.int8 import quantised
from fff.kernels.gather import DENSE_LEVELS
from fff.kernels.int8 import EXACT, LARGEST, Int8Operands
from fff.kernels.leaves import LeafOperands, by_own_leaf, own_walk
from fff.kernels.operands import PathOperands, score_dtype
from fff.reference import PathResult
from fff.topology import child, depth_of, first_node, path_length, walk


def path(operands: PathOperands) -> PathResult:
    """PathFFF: x (N, H) -> y (N, K); scores and sums in float32 for half types, else as x. Gradients are autograd's."""
    nodes, scores = visit(operands)
    active = activation_named(operands.activation).forward(scores)
    if operands.temperature is not None:
        active = active * straight_through_gates(nodes, scores, operands.temperature).to(active.dtype)
    with _as_they_are(operands.x):
        y = _weighted(nodes, active, operands.w_out)
    return PathResult(y.to(operands.x.dtype), nodes, scores)


def visit(operands: PathOperands) -> tuple[Tensor, Tensor]:
    """Visited nodes in heap order and their scores, both (N, T, L)."""
    with _as_they_are(operands.x):
        return _visit(operands.x, operands.w_in, operands.b_in, operands.flips)


def leaf(operands: LeafOperands) -> PathResult:
    """LeafFFF's hard forms by each token's own leaf: y (N, K), nodes (N, 1, D + 1), scores (N, 1, D)."""
    nodes, scores = leaf_walk(operands)
    return by_own_leaf(nodes[:, 0], scores[:, 0], operands)


def leaf_walk(operands: LeafOperands) -> tuple[Tensor, Tensor]:
    """Nodes (N, 1, D + 1) and scores (N, 1, D) of `leaf`."""
    x, w, b, _, _, flips, *_ = operands
    if w is None or b is None:
        return own_walk(operands)
    # The decisions are a PathFFF of depth D - 1 of which the walk alone is wanted.
    above = None if flips is None else flips[:, None]
    with _as_they_are(x):
        nodes, scores = _visit(x, w[None], b[None], None if above is None else above[..., :-1])
    last = child(nodes[..., -1:], scores[..., -1:].detach(), None if above is None else above[..., -1:])
    return torch.cat((nodes, last), -1), scores


def int8(operands: Int8Operands) -> PathResult:
    """Int8 trees, with the definition's decisions and scores to the last bit; without gradients."""
    x, w_in, scale_in, b_in, w_out, scale_out, activation = operands
    trees, node_count, width = w_in.shape
    whole, scale = quantised(x)
    rows_in, exact = w_in.flatten(0, 1), torch.float32 if width * LARGEST <= EXACT else torch.float64
    offset = node_count * torch.arange(trees, device=x.device)
    scale, wide = scale[:, None], whole.int()[:, None]

    def score(dots: Tensor, row: Tensor) -> Tensor:
        found = dots.float() * scale * scale_in.flatten()[row]
        return found if b_in is None else found + b_in.flatten()[row]

    node, visited, scored = offset.new_zeros(x.shape[0], trees), [], []
    levels = path_length(depth_of(node_count))
    top, count = _top(levels)
    with _as_they_are(x):
        dots = (whole.to(exact) @ w_in[:, :count].flatten(0, 1).to(exact).t()).unflatten(-1, (trees, count))
        for level in range(levels):
            row = node + offset
            if level < top:
                found = dots.gather(-1, node[..., None])[..., 0]
            else:
                found = (wide * rows_in[row].int()).sum(-1, dtype=torch.int32)
            visited.append(node)
            scored.append(score(found, row))
            node = child(node, scored[-1])
        nodes, scores = torch.stack(visited, -1), torch.stack(scored, -1)
        active = activation_named(activation).forward(scores) * scale_out.flatten()[nodes + offset[:, None]]
        return PathResult(_weighted(nodes, active, w_out).to(x.dtype), nodes, scores)


def _visit(x: Tensor, w_in: Tensor, b_in: Tensor | None, flips: Tensor | None) -> tuple[Tensor, Tensor]:
    trees, node_count, _ = w_in.shape
    levels, wide = path_length(depth_of(node_count)), score_dtype(x.dtype)
    top, count = _top(levels)
    x, rows, offset = x.to(wide), w_in.flatten(0, 1), node_count * torch.arange(trees, device=x.device)
    block = (x @ w_in[:, :count].flatten(0, 1).to(wide).t()).unflatten(-1, (trees, count))
    if b_in is not None:
        block = block + b_in[:, :count].to(wide)
    nodes = walk(block.detach(), top, flips)
    visited, scored = [nodes], [block.gather(-1, nodes)]
    for level in range(top, levels):
        flip = None if flips is None else flips[..., level - 1]
        node = child(visited[-1][..., -1], scored[-1][..., -1].detach(), flip)
        score = (x[:, None] * rows[node + offset].to(wide)).sum(-1)
        if b_in is not None:
            score = score + b_in.flatten()[node + offset].to(wide)
        visited.append(node[..., None])
        scored.append(score[..., None])
    return torch.cat(visited, -1), torch.cat(scored, -1)


def _weighted(nodes: Tensor, active: Tensor, w_out: Tensor) -> Tensor:
    """Sum over trees and path nodes of active * w_out[node]: (N, T, L) twice, (T, M, K) -> (N, K) in active's dtype."""
    trees, node_count, _ = w_out.shape
    top, count = _top(nodes.shape[-1])
    rows, offset = w_out.flatten(0, 1), node_count * torch.arange(trees, device=w_out.device)
    nothing = active.new_zeros(*active.shape[:2], count)
    spread = nothing.scatter(-1, nodes[..., :top], active[..., :top])
    y = spread.flatten(1) @ w_out[:, :count].flatten(0, 1).to(active.dtype)
    for level in range(top, nodes.shape[-1]):
        row = rows[nodes[..., level] + offset].to(active.dtype)
        y = y + (active[..., level, None] * row).sum(1)
    return y


def _top(levels: int) -> tuple[int, int]:
    """How many levels are done densely, and their nodes."""
    top = min(levels, DENSE_LEVELS)
    return top, first_node(top)


def _as_they_are(x: Tensor) -> contextlib.AbstractContextManager:
    """Inside, autocast narrows no product. Nothing where it is off, for an exporter would write it down."""
    kind = "cpu" if x.is_meta else x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)
