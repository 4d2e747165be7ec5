"""What takes a module's place in a model made fast on a CPU: which kind, why none, and putting it there. Not the call.

Linears become `Int8Linear` or `Bfloat16Linear`, trees their int8 form or themselves in bfloat16 (`InBfloat16`).
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fff.layers.base import Hardenable
from fff.layers.bfloat16_linear import Bfloat16Linear
from fff.layers.int8_linear import Int8Linear
from fff.layers.int8_trees import Int8Trees
from fff.layers.quantised import int8_form
from fff.store import StoredPath
from fff.surgery.replace import leave_fused_path


class InBfloat16(nn.Module):
    """Trees in bfloat16 inside a model of another type: (..., d_in) -> (..., d_out) in the dtype of x."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).to(torch.bfloat16)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.layer(x.to(torch.bfloat16)).to(x.dtype)


OURS = (Int8Trees, Int8Linear, InBfloat16, Bfloat16Linear)
ALREADY = "it is bfloat16 already"
Make = Callable[..., nn.Module]


def candidates(model: nn.Module, linears: str, trees: str, least: int) -> Iterator[tuple[str, nn.Module, Make | str]]:
    """Path, module and what makes its successor, or the reason for which it stays; each module once."""
    for path, module in model.named_modules():
        if isinstance(module, Hardenable) and trees != "keep":
            yield path, module, tree_maker(module, trees, linears)
        elif isinstance(module, nn.Linear) and linears == "int8":
            yield path, module, int8_maker(module, least)
        elif isinstance(module, nn.Linear) and linears == "bfloat16":
            yield path, module, bfloat16_maker(module)


def tree_maker(layer: Hardenable, trees: str, linears: str) -> Make | str:
    """What makes a tree's successor, or why there is none."""
    if layer.evaluation_form != "hard":
        return "it is in its soft form, which computes all nodes"
    if isinstance(layer, StoredPath):
        return "its rows stay on the disk"
    if trees == "int8" and (form := int8_form(layer)):
        make: Make = form.from_float
        return make
    if trees == "bfloat16" or linears == "bfloat16":
        return InBfloat16 if layer.w_in.dtype != torch.bfloat16 else ALREADY
    return f"{type(layer).__name__} has no int8 form"


def int8_maker(linear: nn.Linear, least: int) -> Make | str:
    """What makes a linear's int8 successor, or why there is none."""
    if type(linear) is not nn.Linear:  # torch's attention reads its own kind's weight past its forward
        return f"{type(linear).__name__} may be more than a linear"
    if linear.weight.numel() < least:
        return "it is small"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "it has hooks"
    return Int8Linear


def bfloat16_maker(linear: nn.Linear) -> Make | str:
    """The same in bfloat16; one that stays a plain linear is bfloat16 all the same, as the whole model is."""
    if linear.weight.dtype == torch.bfloat16:
        return ALREADY
    if type(linear) is not nn.Linear:
        return f"{type(linear).__name__} is converted as it is"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "it has hooks, and is converted as it is"
    return Bfloat16Linear


def put(model: nn.Module, made: dict[nn.Module, nn.Module]) -> None:
    """Put the successors wherever their modules stand: layers may be shared."""
    for parent in list(model.modules()):
        if any(child in made for child in parent._modules.values()):
            leave_fused_path(model, parent)
        for name, child in list(parent._modules.items()):
            if child in made:
                setattr(parent, name, made[child])


def title(module: nn.Module) -> str:
    """A module's kind and type of weights, e.g. "Linear float32"."""
    if isinstance(module, InBfloat16):
        return title(module.layer)
    kind = "int8" if isinstance(module, Int8Linear | Int8Trees) else str(next(module.parameters()).dtype)
    return f"{type(module).__name__} {kind.removeprefix('torch.')}"


def size(model: nn.Module) -> int:
    """Bytes of parameters, buffers and packed weights, each once."""
    tensors = {id(each): each.nbytes for group in (model.parameters(), model.buffers()) for each in group}
    return sum(tensors.values()) + sum(each.nbytes for each in model.modules() if isinstance(each, Int8Linear))
