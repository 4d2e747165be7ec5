"""Derivatives of the providers that are torch operators of their own, of any order and mode. Not what they compute.

First-order gradients have an operator. A gradient that is itself to be differentiated is written out in plain torch.
Forward mode and torch.func know nothing of our operators: there `differentiable` lets plain torch do all of it.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_exporting

from fff.activations import ACTIVATIONS, activation_named
from fff.decisions import straight_through_gates
from fff.kernels.flops import let_count
from fff.kernels.operands import PathGradients

Operands = TypeVar("Operands")
Result = TypeVar("Result")
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def in_forward_mode() -> bool:
    """Whether derivatives are taken in forward mode."""
    return forward_ad._current_level >= 0


def transformed() -> bool:
    """Whether this call is differentiated in forward mode, or is inside of a transform of torch.func."""
    return in_forward_mode() or _in_func()


def _in_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# What torch.compiler.assume_constant_result sets. torch.compile guards the stack of transforms by itself.
_in_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def for_any_size() -> bool:
    """Whether this call is written down to be run on other numbers of tokens: torch.jit.trace or torch.export."""
    return torch.jit.is_tracing() or is_exporting()


def gradients_wanted(tensors: Iterable[object]) -> bool:
    """Whether the call is to leave a record for gradients.

    torch.jit.trace checks itself by a second trace without gradients, which must come to the same graph.
    """
    if not torch.jit.is_tracing():
        return torch.is_grad_enabled()
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def differentiable(
    plain: Callable[[Any], Result],
) -> Callable[[Callable[[Operands], Result]], Callable[[Operands], Result]]:
    """A decorator of what calls our operators.

    `plain`, of torch's own operators, takes over where the function's derivatives are not known. A counter of
    operations is told of ours, and an export to ONNX refused.
    """

    def wrap(function: Callable[[Operands], Result]) -> Callable[[Operands], Result]:
        @functools.wraps(function)
        def either(operands: Operands) -> Result:
            if for_any_size() and torch.onnx.is_in_onnx_export():
                raise RuntimeError(
                    "ONNX has no operators for what this provider does; use fff.export.onnx, or set layer.provider = "
                    "'masked', whose products torch.onnx.export can write, and export again"
                )
            if not is_compiling():
                let_count()
            return plain(operands) if transformed() else function(operands)

        return either

    return wrap


def register_backward(forward: str, backward: Callable[..., Gradients]) -> None:
    """Give the operator `forward` its gradients from the operator `backward`.

    forward: PathOperands' fields -> y (N, K), places, scores (N, T, L). backward: PathGradients' fields -> gradients of
    x, w_in, b_in and w_out.
    """

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w_in, b_in, w_out, ctx.activation, _, temperature = inputs
        ctx.has_bias = b_in is not None
        ctx.shape = output[0].shape
        ctx.save_for_backward(x, w_in, w_out, *output[1:], temperature)
        ctx.set_materialize_grads(False)

    def formula(ctx: Any, grad: Any, _: Any, grad_of_scores: Any) -> tuple[Any, ...]:
        if grad is None and grad_of_scores is None:
            return (None,) * 7
        if grad is None:
            grad = ctx.saved_tensors[0].new_zeros(ctx.shape)
        given = PathGradients._make((grad, grad_of_scores, *ctx.saved_tensors, ctx.activation))
        x, w_in, b_in, w_out = differentiable_gradients(given) if torch.is_grad_enabled() else backward(*given)
        return x, w_in, b_in if ctx.has_bias else None, w_out, None, None, None

    torch.library.register_autograd(forward, formula, setup_context=setup_context)


def differentiable_gradients(given: PathGradients) -> Gradients:
    """The gradients by products with all nodes, in plain torch, so that they have gradients themselves.

    The scores stand for x, w_in and b_in: they are the forward operator's output, whose gradient comes back to it.
    """
    grad, grad_of_scores, x, w_in, w_out, _, scores, temperature, activation = given
    act = activation_named(activation if isinstance(activation, str) else list(ACTIVATIONS)[activation]).forward
    nodes, wide = given.nodes, scores.dtype
    if not scores.requires_grad:
        scores = scores.detach().requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        grad, x, all_in, all_out = grad.to(wide), x.to(wide), w_in.to(wide).flatten(0, 1), w_out.to(wide).flatten(0, 1)
        active = act(scores)
        if temperature is not None:
            active = active * straight_through_gates(nodes, scores, temperature)
        dots = (grad @ all_out.t()).view(x.shape[0], *w_in.shape[:2]).gather(-1, nodes)
        (grad_scores,) = torch.autograd.grad(active, scores, dots, create_graph=True)
        if grad_of_scores is not None:
            grad_scores = grad_scores + grad_of_scores
        nothing = dots.new_zeros(x.shape[0], *w_in.shape[:2])
        spread, used = (nothing.scatter(-1, nodes, part).flatten(1) for part in (grad_scores, active))
        found = spread @ all_in, spread.t() @ x, spread.sum(0), used.t() @ grad
    shapes = (given.x.shape, w_in.shape, w_in.shape[:2], w_out.shape)
    by_x, by_in, by_bias, by_out = (t.view(size).to(given.x.dtype) for t, size in zip(found, shapes, strict=True))
    return by_x, by_in, by_bias, by_out
