"""Chosen rows of a matrix, multiplied with and summed, as operators with gradients. Not who chooses them.

Rows are never gathered for all tokens at once, and sums are embedding bags, so that memory is that of inputs and
outputs. Three operators are one another's gradients, of any order. With rows r[n, j] of a matrix w (R, H), they are
dots[n, j] = x[n] . w[r[n, j]]; weighted[n] = sum over j of c[n, j] w[r[n, j]]; and sums[r], the sum of c[n, j] x[n]
over all n and j whose r[n, j] is r.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fff.kernels.autograd import transformed
from fff.kernels.flops import let_count, register_row_flops
from fff.kernels.gather import row_dots, weighted_rows
from fff.kernels.operands import score_dtype


def dots(x: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    """x[n] . w[rows[n, j]]: x (N, H), w (R, H), rows (N, J) int64 -> (N, J), in float32 for half types."""
    if transformed():
        return (x @ w.t()).gather(-1, rows).to(score_dtype(x.dtype))
    if not torch.compiler.is_compiling():
        let_count()
    return _dots(x, w, rows)


def weighted(weights: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    """Sum over j of weights[n, j] w[rows[n, j]]: weights (N, J), w (R, H), rows (N, J) int64 -> (N, H) as w."""
    if transformed():
        return weights.new_zeros(len(rows), len(w)).scatter_add(-1, rows, weights).to(w.dtype) @ w
    if not torch.compiler.is_compiling():
        let_count()
    return _weighted(weights, w, rows)


@torch.library.custom_op("fff::row_dots", mutates_args=())
def _dots(x: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return row_dots(x, w, rows)


@torch.library.custom_op("fff::weighted_rows", mutates_args=())
def _weighted(weights: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    with torch.autocast(w.device.type, enabled=False):
        return weighted_rows(rows, weights.to(w.dtype), w.contiguous())


@torch.library.custom_op("fff::row_sums", mutates_args=())
def _sums(weights: Tensor, x: Tensor, rows: Tensor, count: int) -> Tensor:
    """(R, H) with R = count. Visits are sorted by row: each sum has one order, whatever the threads do."""
    if not rows.numel():
        return x.new_zeros(count, x.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        ordered, order = torch.sort(rows.flatten(), stable=True)
        starts = torch.searchsorted(ordered, torch.arange(count, device=x.device))
        sorted_weights = weights.flatten()[order].to(x.dtype)
        tokens = order // rows.shape[1]
        return functional.embedding_bag(tokens, x.contiguous(), starts, mode="sum", per_sample_weights=sorted_weights)


@_dots.register_fake
def _(x: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(rows.shape, dtype=score_dtype(x.dtype))


@_weighted.register_fake
def _(weights: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    return w.new_empty(rows.shape[0], w.shape[1])


@_sums.register_fake
def _(weights: Tensor, x: Tensor, rows: Tensor, count: int) -> Tensor:
    return x.new_empty(count, x.shape[1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])


def _dots_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, w, rows = ctx.saved_tensors
    return _weighted(grad, w, rows), _sums(grad, x, rows, len(w)), None


def _weighted_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    weights, w, rows = ctx.saved_tensors
    return _dots(grad, w, rows).to(weights.dtype), _sums(weights, grad, rows, len(w)), None


def _sums_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    weights, x, rows = ctx.saved_tensors
    return _dots(x, grad, rows).to(weights.dtype), _weighted(weights, grad, rows), None, None


torch.library.register_autograd("fff::row_dots", _dots_backward, setup_context=_keep)
torch.library.register_autograd("fff::weighted_rows", _weighted_backward, setup_context=_keep)
torch.library.register_autograd("fff::row_sums", _sums_backward, setup_context=_keep)
register_row_flops(torch.ops.fff.row_dots, torch.ops.fff.weighted_rows, torch.ops.fff.row_sums)
