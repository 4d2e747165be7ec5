"""The autograd formula of the providers that are torch operators of their own. Not what they compute."""

from collections.abc import Callable
from typing import Any

import torch


def register_backward(forward: str, backward: Callable[..., Any]) -> None:
    """Give the operator `forward` its gradients from `backward`.

    forward (x, w_in, b_in or None, w_out, activation, flips, temperature) -> y (N, K), places, scores (N, T, L): places
    are whatever the backward needs to find the paths again. backward (grad, gradient of the scores or None, x, w_in,
    w_out, places, scores, temperature, activation) -> gradients of x, w_in, b_in and w_out.
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
        x, w_in, b_in, w_out = backward(grad, grad_of_scores, *ctx.saved_tensors, ctx.activation)
        return x, w_in, b_in if ctx.has_bias else None, w_out, None, None, None

    torch.library.register_autograd(forward, formula, setup_context=setup_context)
