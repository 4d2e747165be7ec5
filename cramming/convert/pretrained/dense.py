"""Feedforward blocks as matrices, proved by replay on what the model computes from text. Not how they are replaced.

`fff.surgery` proves structure on noise. Here the weights that it names must recompute what the model's own forward gave
on real inputs, and the norm that reads a block's output is found: errors count behind it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cramming.errors import UserError
from fff.activations import ACTIVATIONS
from fff.surgery import Block, find_feedforward

TOLERANCE = 1e-5
SHIFT = 1e-2  # of a block's output, to see which norm reads it
FEW = 64  # tokens, by which a block's activation and the norm behind it are told; all of them then prove it


@dataclass(frozen=True)
class Dense:
    """A block's weights: y = act(x w_in^T + b_in) [* (x w_value^T + b_value)] w_out^T + b_out.

    w_in, w_value (F, H), w_out (K, F); biases are zeros where the block has none. norm: path of the norm that reads the
    sum of the residual and y, or "". own_residual: whether that residual is the block's input. swapped: whether the
    second linear in, or half of the one, is activated, and the first the value.
    """

    block: Block
    activation: str
    w_in: Tensor
    b_in: Tensor
    w_value: Tensor | None
    b_value: Tensor | None
    w_out: Tensor
    b_out: Tensor
    norm: str
    own_residual: bool
    swapped: bool = False

    def hidden(self, x: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Activations (N, F), or of chosen neurons."""
        active = ACTIVATIONS[self.activation].forward(functional.linear(x, self.w_in[rows], self.b_in[rows]))
        if self.w_value is None or self.b_value is None:
            return active
        return active * functional.linear(x, self.w_value[rows], self.b_value[rows])

    def rows_in(self, neurons: list[int]) -> dict[str, Tensor]:
        """Weights and biases in of chosen neurons, by the names that `fff.layers.leaf.LeafFFF` gives them."""
        found = {"w_in": self.w_in, "b_in": self.b_in, "w_value": self.w_value, "b_value": self.b_value}
        return {name: weight[neurons] for name, weight in found.items() if weight is not None}

    def output(self, x: Tensor) -> Tensor:
        """(N, H) -> (N, K)."""
        return functional.linear(self.hidden(x), self.w_out, self.b_out)


@dataclass
class Seen:
    """What a call of the model gave: each block's x and y, and the input of the norm behind it."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    u: dict[str, Tensor]
    calls: Counter[str]


def prove(model: nn.Module, inputs: dict[str, Tensor]) -> list[Dense]:
    """All blocks of a model. UserError names a block that is not recomputed, or says that there is none."""
    found = find_feedforward(model)
    if not found.blocks:
        left = "; ".join(map(str, found.left))
        raise UserError(
            "distill.model: no feedforward block was found, two linears with an activation between or a gated one."
            + (f" What looks like one: {left}." if left else "")
        )
    with torch.no_grad(), watched(model, found.blocks) as seen:
        model(**inputs)
    few = {name: tensor[:1, :FEW] for name, tensor in inputs.items()}
    return [_proved(model, block, seen, few) for block in found.blocks]


@contextmanager
def watched(model: nn.Module, blocks: Any, norms: dict[str, str] | None = None) -> Iterator[Seen]:
    """Inside, calls of the model leave here what its blocks are given and give, flat (N, ...), of the last call."""
    seen = Seen({}, {}, {}, Counter())

    def keep(table: dict[str, Tensor], path: str, *, given: bool) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...], y: Any = None) -> None:
            table[path] = (args[0] if given else y).detach()
            seen.calls[path] += table is seen.y

        return note

    hooks = []
    for block in blocks:
        first, out = model.get_submodule(block.ins[0]), model.get_submodule(block.out)
        hooks.append(first.register_forward_pre_hook(keep(seen.x, block.path, given=True)))
        hooks.append(out.register_forward_hook(keep(seen.y, block.path, given=False)))
        if norms and norms.get(block.path):
            norm = model.get_submodule(norms[block.path])
            hooks.append(norm.register_forward_pre_hook(keep(seen.u, block.path, given=True)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _proved(model: nn.Module, block: Block, seen: Seen, few: dict[str, Tensor]) -> Dense:
    if seen.calls[block.path] != 1:
        raise UserError(
            f"{block.path} is called {seen.calls[block.path]} times in a pass of the model; blocks that layers share, "
            "or that some input leaves out, are not converted."
        )
    x, y = (table[block.path].flatten(0, -2).float() for table in (seen.x, seen.y))

    def error(dense: Dense, rows: slice) -> float:
        return float((dense.output(x[rows]) - y[rows]).norm() / y[rows].norm().clamp_min(1e-30))

    found = min(_readings(model, block), key=lambda dense: error(dense, slice(FEW)))
    if not (least := error(found, slice(None))) <= TOLERANCE:
        raise UserError(
            f"{block.path}: its weights recompute what it gives on the text to {least:.1e} alone, not to "
            f"{TOLERANCE:.0e}; it computes more than a feedforward block, so it is not replaced."
        )
    norm, own = _norm_behind(model, block, few)
    return Dense(**{**vars(found), "norm": norm, "own_residual": own})


def _readings(model: nn.Module, block: Block) -> Iterator[Dense]:
    """The block by every activation, and either half as the gate."""
    linears = [_matrix(model.get_submodule(name)) for name in block.ins]
    w_out, b_out = _matrix(model.get_submodule(block.out))
    sides: list[list[tuple[Tensor, Tensor]]] = [linears]
    if block.gated:
        if len(linears) == 1:
            linears = list(zip(*(part.chunk(2) for part in linears[0]), strict=True))
        sides = [linears, linears[::-1]]
    for name in ACTIVATIONS:
        for swapped, ((w_in, b_in), *value) in enumerate(sides):
            w_value, b_value = value[0] if value else (None, None)
            yield Dense(block, name, w_in, b_in, w_value, b_value, w_out, b_out, "", False, bool(swapped))


def _matrix(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a linear, or of transformers' Conv1D."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator]
    if not isinstance(linear, nn.Linear):
        weight = weight.t().contiguous()
    bias = getattr(linear, "bias", None)
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach()


def _norm_behind(model: nn.Module, block: Block, inputs: dict[str, Tensor]) -> tuple[str, bool]:
    """Path of the first norm that is called after the block on residual + y, and whether the residual is x.

    Proved: what is added to y arrives at it.
    """
    out, first = model.get_submodule(block.out), model.get_submodule(block.ins[0])
    called: list[tuple[str, Tensor]] = []
    given: list[Tensor] = []
    y: list[Tensor] = []
    shift = torch.zeros(())

    def add(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        called.clear()
        y.append(result)
        return result + shift

    norms = [(name, each) for name, each in model.named_modules() if _is_norm(each, block.d_out)]
    hooks = [
        each.register_forward_pre_hook(lambda module, args, name=name: called.append((name, args[0].detach())))
        for name, each in norms
    ]
    hooks += [out.register_forward_hook(add), first.register_forward_pre_hook(lambda m, args: given.append(args[0]))]
    try:
        with torch.no_grad():
            model(**inputs)
            before = list(called)
            generator = torch.Generator().manual_seed(0)
            shift = SHIFT * y[0].std() * torch.randn(block.d_out, generator=generator).to(y[0].device)
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not before or not called or before[0][0] != called[0][0] or before[0][1].shape != y[0].shape:
        return "", False
    moved = called[0][1] - before[0][1] - shift
    if float(moved.norm()) > 1e-2 * float(shift.norm()) * moved[..., 0].numel() ** 0.5:
        return "", False
    residual = before[0][1] - y[0]
    own = residual.shape == given[0].shape and torch.allclose(residual, given[0], rtol=1e-4, atol=1e-4)
    return before[0][0], own


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return not any(module.children()) and isinstance(weight, Tensor) and weight.shape == (width,)
