"""Provider `gather`: path nodes only, forward and backward, in plain torch on any device. Not a compiled kernel.

The top levels, which all tokens share, are a small dense product; below them rows are gathered, a chunk at a time so
that they stay in cache. Sums of weighted rows (the output, the gradients) are embedding bags. The whole is one torch
operator with a fake and an autograd formula, so that torch.compile and torch.export see one node and the chunking may
depend on the sizes. Saved for the backward: inputs, path and scores, so the layer needs O(N * (H + T * L)) memory.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fff.activations import activation_named
from fff.decisions import straight_through_gradient
from fff.kernels.autograd import differentiable, register_backward
from fff.kernels.flops import register_flops
from fff.kernels.masked import masked
from fff.kernels.operands import (
    BACKWARD_SCHEMA,
    FORWARD_SCHEMA,
    PathGradients,
    PathOperands,
    check_backward,
    check_forward,
    check_places,
    score_dtype,
)
from fff.reference import PathResult
from fff.topology import child, depth_of, first_node, path_length, walk

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# M / L from which this is faster than provider masked. On a CPU depth 4; elsewhere not measured: a GPU's products are
# faster still against its gathers.
PAYS_FROM = {"cpu": 5.0}
PAYS_FROM_OTHER = 20.0
# Levels done densely. On a CPU one gathered row costs as much as about 20 rows of a product; 4 is best for several
# trees and within 4 % of the best for one.
DENSE_LEVELS = 4
# A chunk of gathered rows stays in a core's L2 cache; elsewhere than on a CPU few large launches are better.
CHUNK_BYTES = {"cpu": 3 * 2**19}
CHUNK_BYTES_OTHER = 2**28
# Dense scores of the top levels, (tokens, T * 2 ** levels), held at a time.
CHUNK_SCORES = 2**22
# Terms of a sum in one product on a CPU. MKL divides vectors and longer sums among its threads (measured with AVX-512).
CHUNK_TERM_BYTES = 2**9


@differentiable(masked)
def gather(operands: PathOperands) -> PathResult:
    """PathFFF by path nodes only: x (N, H) -> y (N, K); scores and decisions in float32 for half types, else as x.

    Raises:
        ValueError: operands of another dtype, device or size than x.
    """
    y, rows, scores = _forward(*operands)
    return PathResult(y, rows.long() % operands.w_in.shape[1], scores)


def visit(operands: PathOperands) -> tuple[Tensor, Tensor]:
    """Visited nodes in heap order and their scores, both (N, T, L), without outputs and gradients."""
    rows, scores = _visit(operands.x, operands.w_in, operands.b_in, operands.flips)
    return rows.long() % operands.w_in.shape[1], scores


@torch.library.custom_op("fff::gather_forward", mutates_args=(), schema=FORWARD_SCHEMA)
def _forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """-> y (N, K), flat rows t * M + node (N, T, L) int32, scores (N, T, L)."""
    operands = PathOperands(*given)
    check_forward(operands, "gather", DTYPES)
    x, w_in, b_in, w_out, activation, flips, _ = operands
    with torch.autocast(x.device.type, enabled=False):
        rows, scores = _visit(x, w_in, b_in, flips)
        active = activation_named(activation).forward(scores).to(x.dtype)
        return weighted_rows(rows.flatten(1), active.flatten(1), w_out.flatten(0, 1)), rows, scores


@_forward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands = PathOperands(*given)
    check_forward(operands, "gather", DTYPES)
    x, rows = operands.x, operands.x.new_empty(operands.shape, dtype=torch.int32)
    y = x.new_empty(x.shape[0], operands.w_out.shape[-1])
    return y, rows, x.new_empty(operands.shape, dtype=score_dtype(x.dtype))


@torch.library.custom_op("fff::gather_backward", mutates_args=(), schema=BACKWARD_SCHEMA)
def _backward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K)."""
    gradients = PathGradients(*given)
    check_backward(gradients, "gather", DTYPES)
    check_places(gradients, leaves=False)
    grad, grad_of_scores, x, w_in, w_out, rows, scores, temperature, activation = gradients
    with torch.autocast(x.device.type, enabled=False):
        act = activation_named(str(activation))
        grad = grad.contiguous()
        active, dots = act.forward(scores), _dots(grad, w_out, rows)
        grad_scores = act.backward(dots, scores)
        if temperature is not None:
            grad_scores[..., :-1] += straight_through_gradient(gradients.nodes, scores, active * dots, temperature)
        if grad_of_scores is not None:
            grad_scores += grad_of_scores
        grad_x = weighted_rows(rows.flatten(1), grad_scores.to(x.dtype).flatten(1), w_in.flatten(0, 1))
        grad_in, grad_out = torch.zeros_like(w_in), torch.zeros_like(w_out)
        grad_bias = torch.zeros(w_in.shape[:2], dtype=scores.dtype, device=x.device)
        if x.shape[0]:
            _sum_per_node(rows, ((grad_scores, x, grad_in), (active, grad, grad_out)))
            _sum_scores_per_node(rows, grad_scores, grad_bias)
        return grad_x, grad_in, grad_bias.to(w_in.dtype), grad_out


@_backward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = PathGradients(*given)
    check_backward(gradients, "gather", DTYPES)
    return gradients.empty()


register_backward("fff::gather_forward", _backward)
register_flops(torch.ops.fff.gather_forward, torch.ops.fff.gather_backward)


def _spans(total: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _dense_levels(levels: int) -> tuple[int, int]:
    """How many top levels are done densely, and how many leading nodes that takes (an even count is faster)."""
    dense = min(levels, DENSE_LEVELS)
    return dense, min(2**dense, 2**levels - 1)


def _visit(x: Tensor, w_in: Tensor, b_in: Tensor | None, flips: Tensor | None) -> tuple[Tensor, Tensor]:
    trees, node_count, _ = w_in.shape
    levels = path_length(depth_of(node_count))
    dense, _ = _dense_levels(levels)
    nodes, scores = _visit_densely(x, w_in, b_in, flips)
    base = torch.arange(trees, device=x.device).mul_(node_count)
    all_nodes, all_scores = [nodes], [scores]
    node, score = nodes[..., -1], scores[..., -1]
    for level in range(dense, levels):
        node = child(node, score, None if flips is None else flips[..., level - 1])
        row = node + base
        score = row_dots(x, w_in.flatten(0, 1), row)
        if b_in is not None:
            score += b_in.flatten()[row]
        all_nodes.append(node.unsqueeze(-1))
        all_scores.append(score.unsqueeze(-1))
    rows = torch.cat(all_nodes, -1).add_(base[:, None])
    return rows.int(), torch.cat(all_scores, -1)


def _visit_densely(x: Tensor, w_in: Tensor, b_in: Tensor | None, flips: Tensor | None) -> tuple[Tensor, Tensor]:
    """Nodes and scores (N, T, dense levels) of the top levels."""
    dense, count = _dense_levels(path_length(depth_of(w_in.shape[1])))
    bias = b_in[:, :count].to(score_dtype(x.dtype)) if b_in is not None else None
    nodes = torch.empty(x.shape[0], w_in.shape[0], dense, dtype=torch.int64, device=x.device)
    scores = torch.empty_like(nodes, dtype=score_dtype(x.dtype))
    for span, block in _dense_products(x, w_in, count):
        if bias is not None:
            block += bias
        nodes[span] = walk(block, dense, None if flips is None else flips[span])
        scores[span] = block.gather(-1, nodes[span])
    return nodes, scores


def _dense_products(x: Tensor, w: Tensor, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Products (n, T, count) of chunks of x with the first `count` rows of each tree of w."""
    top = w[:, :count].flatten(0, 1).to(score_dtype(x.dtype)).t()
    for span in _spans(x.shape[0], CHUNK_SCORES // top.shape[1]):
        yield span, _product(x[span].to(top.dtype), top).view(-1, w.shape[0], count)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (I, K) @ b (K, J); on a CPU in the same bits for any number of threads, wherever a long sum is in a product."""
    if a.device.type != "cpu":
        return a @ b
    rows, columns, terms = a.shape[0], b.shape[1], b.shape[0]
    if rows == 1:
        a = a.t().repeat(1, 2).t()
    if columns == 1:
        b = b.repeat(1, 2)
    # Parts of even sizes, because a rest of one term would be a product of vectors.
    parts = -(-terms * b.element_size() // CHUNK_TERM_BYTES)
    cuts = [terms * part // parts for part in range(parts + 1)]
    total = a[:, : cuts[1]] @ b[: cuts[1]]
    for start, end in pairwise(cuts[1:]):
        total.addmm_(a[:, start:end], b[start:end])
    return total[:rows, :columns]


def row_dots(x: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    """x[n] . w[rows[n, j]] as (N, J); rows (N, J) of w (R, H)."""
    dtype = score_dtype(x.dtype)
    result = torch.empty(rows.shape, dtype=dtype, device=x.device)
    row_bytes = max(1, rows.shape[1] * x.shape[1] * x.element_size())
    for span in _spans(x.shape[0], CHUNK_BYTES.get(x.device.type, CHUNK_BYTES_OTHER) // row_bytes):
        gathered = w.index_select(0, rows[span].flatten()).to(dtype).view(*rows[span].shape, -1)
        torch.sum(gathered.mul_(x[span].unsqueeze(1)), -1, out=result[span])
    return result


def _dots(x: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    """x[n] . w[path nodes of n] as (N, T, L): the top levels from a dense product, the others gathered."""
    node_count = w.shape[1]
    dense, count = _dense_levels(rows.shape[-1])
    result = torch.empty(rows.shape, dtype=score_dtype(x.dtype), device=x.device)
    top = rows[..., :dense].long() % node_count
    for span, block in _dense_products(x, w, count):
        result[span, :, :dense] = block.gather(-1, top[span])
    for level in range(dense, rows.shape[-1]):
        result[..., level] = row_dots(x, w.flatten(0, 1), rows[..., level])
    return result


def weighted_rows(rows: Tensor, weights: Tensor, w: Tensor) -> Tensor:
    """Sum over j of weights[n, j] * w[rows[n, j]]: (N, H)."""
    if rows.shape[0] == 0:
        return w.new_empty(0, w.shape[1])
    return functional.embedding_bag(rows, w, mode="sum", per_sample_weights=weights)


def _sum_per_node(rows: Tensor, jobs: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> None:
    """For each job (coefficients (N, T, L), x (N, H), result (T, M, H)): result[row] += coefficient * x, by path node.

    Tokens are sorted by node, so each sum has one fixed order: no atomics, the same bits on every run.
    """
    trees, levels = rows.shape[1:]
    node_count = jobs[0][2].shape[1]
    dense, count = _dense_levels(levels)
    top = rows[..., :dense].long() % node_count
    for coefficients, x, result in jobs:
        _sum_densely(top, coefficients[..., :dense], x, result[:, :count])
    base = torch.arange(trees, device=rows.device) * node_count
    for level in range(dense, levels):
        width = 2**level
        local = rows[..., level] - base - first_node(level) + torch.arange(trees, device=rows.device) * width
        ordered, order = torch.sort(local.flatten(), stable=True)
        starts = torch.searchsorted(ordered, torch.arange(trees * width, device=rows.device))
        sources = order // trees
        for coefficients, x, result in jobs:
            weights = coefficients[..., level].flatten()[order].to(x.dtype)
            bags = functional.embedding_bag(sources, x, starts, mode="sum", per_sample_weights=weights)
            result[:, first_node(level) : first_node(level + 1)] = bags.view(trees, width, -1)


def _sum_densely(nodes: Tensor, coefficients: Tensor, x: Tensor, result: Tensor) -> None:
    trees, count, width = result.shape
    total = torch.zeros(trees * count, width, dtype=score_dtype(x.dtype), device=x.device)
    for span in _spans(x.shape[0], CHUNK_SCORES // (trees * count)):
        block = torch.zeros((*nodes[span].shape[:2], count), dtype=total.dtype, device=x.device)
        block.scatter_(-1, nodes[span], coefficients[span])
        total += _product(block.flatten(1).t(), x[span].to(total.dtype))
    result.copy_(total.view(trees, count, width))


def _sum_scores_per_node(rows: Tensor, grad_scores: Tensor, grad_bias: Tensor) -> None:
    """grad_bias[row] = sum of the scores' gradients of the tokens that visit the row, in one fixed order.

    Not index_put_ with accumulate: on a CPU with several threads it adds atomically, in whatever order they come.
    """
    ordered, order = torch.sort(rows.flatten(), stable=True)
    starts = torch.searchsorted(ordered, torch.arange(grad_bias.numel(), device=rows.device, dtype=rows.dtype))
    sums = functional.embedding_bag(order, grad_scores.reshape(-1, 1), starts, mode="sum")
    grad_bias.copy_(sums.view_as(grad_bias))
