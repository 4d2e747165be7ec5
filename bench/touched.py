"""Bytes of weights that a pass reads, counted module by module while it runs. Not how long that takes.

Of linears all, of embeddings the rows of the tokens, of trees the rows of the nodes visited, each once in a pass.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear

from fff.layers.int8_linear import Int8Linear
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath


def bytes_touched(model: nn.Module, call: Callable[[], object]) -> int:
    """Bytes of the model's weights that `call` reads, each module's own at every call of it.

    Raises:
        TypeError: a module with weights of which it is not known what a call reads.
    """
    total = 0

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += bytes_of_call(module, inputs)

    with hooked(model.modules(), hook), torch.no_grad():
        call()
    return total


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """Forward hooks that are there inside alone."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def bytes_of_call(module: nn.Module, inputs: tuple[Any, ...]) -> int:
    """What one call of a module reads of its own weights."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, PathFFF | QuantisedPath):
        return rows_visited(module, inputs[0]) * bytes_of_node(module)
    if isinstance(module, nn.Embedding):
        return inputs[0].unique().numel() * module.weight[0].nbytes
    if isinstance(module, nn.Linear):
        return sum(each.nbytes for each in own)
    if isinstance(module, Int8Linear):
        return module.nbytes
    if isinstance(module, DynamicLinear):
        return quantised_bytes(module)
    if any(each.dim() > 1 for each in own):
        raise TypeError(f"{type(module).__name__} has matrices of which it is not known what a call reads")
    return sum(each.nbytes for each in own)  # norms and biases


def rows_visited(layer: PathFFF | QuantisedPath, x: Tensor) -> int:
    """Distinct nodes on the paths of x (..., d_in), over all trees."""
    nodes = layer.path(x)[0].flatten(0, -3)
    return sum(tree.unique().numel() for tree in nodes.unbind(1))


def bytes_of_node(layer: PathFFF | QuantisedPath) -> int:
    """One node's row in, row out, and numbers beside them."""
    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    return sum(each[0, 0].nbytes for each in tensors if each.dim() >= 2)


def quantised_bytes(linear: Any) -> int:
    """Of a dynamically quantised linear: whole numbers, scales, zero points, bias."""
    weight, bias = linear.weight(), linear.bias()
    found = weight.numel() * weight.element_size() + (0 if bias is None else bias.nbytes)
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        return found + weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    return found + 8 + 8  # one of each, a double and an int64
