"""LeafFFF's operator as autograd sees it: operands, gradients of any order, operations. Not who computes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fff.activations import ACTIVATIONS
from fff.kernels.leaves import LeafOperands, Leaves, along
from fff.kernels.operands import path_to

Gradients = tuple[Tensor, ...]


class LeafGradients(NamedTuple):
    """What the backward operator takes, for the gradients of x, w_node, b_node, w_in, b_in, w_out and b_out.

    grad (N, K); grad_of_scores (N, D) or None; weights as in `LeafOperands`; leaf (N,) int32 in heap order; scores
    (N, D); neurons (N, W) before their activation, both float32; temperature asks for straight-through gradients.
    """

    grad: Tensor
    grad_of_scores: Tensor | None
    x: Tensor
    w_node: Tensor
    w_in: Tensor
    w_out: Tensor
    b_out: Tensor
    leaf: Tensor
    scores: Tensor
    neurons: Tensor
    temperature: Tensor | None
    activation: int

    def empty(self) -> Gradients:
        """Gradients of the right shapes, without content."""
        rows = (self.w_node, self.w_in, self.w_out)
        node, w_in, w_out = (weight.new_empty(weight.shape) for weight in rows)
        node_bias, bias = (weight.new_empty(weight.shape[:-1]) for weight in rows[:2])
        return (
            self.x.new_empty(self.x.shape),
            node,
            node_bias,
            w_in,
            bias,
            w_out,
            self.b_out.new_empty(self.b_out.shape),
        )


def register_leaf_backward(forward: str, backward: Callable[..., Gradients]) -> None:
    """Give the operator `forward` its gradients from the operator `backward`.

    forward: x, w_node, b_node, w_in, b_in, w_out, b_out, activation, flips, temperature -> y (N, K), leaf, scores and
    neurons, as `LeafGradients` has them; so does `backward`.
    """

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *weights, ctx.activation, _, temperature = inputs
        ctx.shape = output[0].shape
        ctx.save_for_backward(*weights, *output[1:], temperature)
        ctx.set_materialize_grads(False)

    def formula(ctx: Any, grad: Any, _: Any, grad_of_scores: Any, __: Any) -> tuple[Any, ...]:
        if grad is None and grad_of_scores is None:
            return (None,) * 10
        x, w_node, b_node, w_in, b_in, w_out, b_out, leaf, scores, neurons, temperature = ctx.saved_tensors
        if grad is None:
            grad = x.new_zeros(ctx.shape)
        if torch.is_grad_enabled():
            inputs = (x, w_node, b_node, w_in, b_in, w_out, b_out)
            found = _differentiable(grad, grad_of_scores, inputs, leaf, temperature, ctx.activation)
        else:
            kept = (leaf, scores, neurons, temperature, ctx.activation)
            found = backward(*LeafGradients(grad, grad_of_scores, x, w_node, w_in, w_out, b_out, *kept))
        return *found, None, None, None

    torch.library.register_autograd(forward, formula, setup_context=setup_context)


def _differentiable(
    grad: Tensor,
    grad_of_scores: Tensor | None,
    inputs: tuple[Tensor, ...],
    leaf: Tensor,
    temperature: Tensor | None,
    activation: int,
) -> tuple[Tensor | None, ...]:
    """The gradients through all leaves, in plain torch, so that they have gradients themselves."""
    x, w_node, b_node, *leaves = inputs
    name, warmth = list(ACTIVATIONS)[activation], x.new_ones(()) if temperature is None else temperature
    operands = LeafOperands(x, w_node, b_node, Leaves(*leaves), name, None, warmth, temperature is not None)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    with torch.autocast(x.device.type, enabled=False):
        y, _, scores = along(path_to(leaf[:, None], operands.depth + 1)[:, 0], operands)
        results, gradients = [y], [grad]
        if grad_of_scores is not None:
            results, gradients = [y, scores[:, 0]], [grad, grad_of_scores.to(scores.dtype)]
        found = iter(torch.autograd.grad(results, wanted, gradients, create_graph=True, materialize_grads=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)
