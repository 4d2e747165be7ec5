"""LeafFFF's operator as autograd sees it: operands, gradients of any order, operations. Not who computes it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fff.activations import ACTIVATIONS
from fff.kernels.leaves import LeafOperands, Leaves, along
from fff.kernels.operands import path_to

Gradients = list[Tensor]


class LeafGradients(NamedTuple):
    """What the backward operator takes, for the gradients of x, w_node, b_node, w_in, b_in, w_out, b_out.

    Of gated leaves, w_value is no None, and there are gradients of w_value and b_value, too.

    grad (N, K); grad_of_scores (N, D) or None; weights as in `LeafOperands`; leaf (N,) int32 in heap order; scores
    (N, D); neurons (N, W) before their activation, of gated leaves (N, 2 W) with their values, both float32;
    temperature asks for straight-through gradients.
    """

    grad: Tensor
    grad_of_scores: Tensor | None
    x: Tensor
    w_node: Tensor
    w_in: Tensor
    w_out: Tensor
    b_out: Tensor
    w_value: Tensor | None
    leaf: Tensor
    scores: Tensor
    neurons: Tensor
    temperature: Tensor | None
    activation: int

    def empty(self) -> Gradients:
        """Gradients of the right shapes, without content."""
        shapes = [self.x.shape]
        for weight in (self.w_node, self.w_in):
            shapes += [weight.shape, weight.shape[:-1]]
        shapes += [self.w_out.shape, self.b_out.shape]
        if self.w_value is not None:
            shapes += [self.w_value.shape, self.w_value.shape[:-1]]
        return [self.x.new_empty(shape) for shape in shapes]


def register_leaf_backward(forward: str, backward: Callable[..., Gradients]) -> None:
    """Give the operator `forward` its gradients from the operator `backward`.

    forward: x, w_node, b_node, w_in, b_in, w_out, b_out, w_value, b_value, activation, flips, temperature -> y (N, K),
    leaf, scores and neurons, as `LeafGradients` has them; so does `backward`.
    """

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *weights, ctx.activation, _, temperature = inputs
        ctx.shape = output[0].shape
        ctx.save_for_backward(*weights, *output[1:], temperature)
        ctx.set_materialize_grads(False)

    def formula(ctx: Any, grad: Any, _: Any, grad_of_scores: Any, __: Any) -> tuple[Any, ...]:
        if grad is None and grad_of_scores is None:
            return (None,) * 12
        *inputs, leaf, scores, neurons, temperature = ctx.saved_tensors
        x, w_node, _, w_in, _, w_out, b_out, w_value, _ = inputs
        if grad is None:
            grad = x.new_zeros(ctx.shape)
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            found = _differentiable(grad, grad_of_scores, inputs, leaf, temperature, ctx.activation)
        else:
            kept = (leaf, scores, neurons, temperature, ctx.activation)
            found = backward(*LeafGradients(grad, grad_of_scores, x, w_node, w_in, w_out, b_out, w_value, *kept))
        return *found, *(None,) * (12 - len(found))

    torch.library.register_autograd(forward, formula, setup_context=setup_context)


def _differentiable(
    grad: Tensor,
    grad_of_scores: Tensor | None,
    inputs: list[Any],
    leaf: Tensor,
    temperature: Tensor | None,
    activation: int,
) -> Sequence[Tensor | None]:
    """The gradients through all leaves, in plain torch, so that they have gradients themselves."""
    x, w_node, b_node, *leaves = inputs
    name, warmth = list(ACTIVATIONS)[activation], x.new_ones(()) if temperature is None else temperature
    operands = LeafOperands(x, w_node, b_node, Leaves(*leaves), name, None, warmth, temperature is not None)
    needed = [tensor is not None and tensor.requires_grad for tensor in inputs]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    with torch.autocast(x.device.type, enabled=False):
        y, _, scores = along(path_to(leaf[:, None], operands.depth + 1)[:, 0], operands)
        results, gradients = [y], [grad]
        if grad_of_scores is not None:
            results, gradients = [y, scores[:, 0]], [grad, grad_of_scores.to(scores.dtype)]
        found = iter(torch.autograd.grad(results, wanted, gradients, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needed]
