"""Provider `cpu`: path nodes only, in C++ (cpp/), forward and backward, float32 and bfloat16. Not how it is compiled.

Inference calls an operator that has no autograd and gives outputs alone: at one token the way of calling costs as much
as the work. Training saves x, the leaves and the scores; of LeafFFF the neurons, too. See docs/kernels.md.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fff.activations import ACTIVATIONS
from fff.kernels.autograd import differentiable, gradients_wanted, register_backward
from fff.kernels.cpu import linear
from fff.kernels.cpu.build import BuildError, load
from fff.kernels.flops import register_flops, register_int8_flops, register_int8_leaf_flops, register_leaf_flops
from fff.kernels.int8 import Int8Operands, int8_masked
from fff.kernels.int8_leaf import Int8LeafOperands, int8_leaf_masked
from fff.kernels.leaf_operator import LeafGradients, register_leaf_backward
from fff.kernels.leaves import LeafOperands, all_leaves, own_leaf, own_walk
from fff.kernels.masked import masked
from fff.kernels.operands import PathGradients, PathOperands, path_to
from fff.reference import PathResult
from fff.topology import child

DTYPES = (torch.float32, torch.bfloat16)
Short = Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]
ACTIVATION_IDS = {name: number for number, name in enumerate(ACTIVATIONS)}  # as cpp/activations.h counts them


def available(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or why this machine cannot: another device or dtype, or the C++ cannot be built."""
    if device.type not in ("cpu", "meta"):
        return f"it computes on the CPU, and the tensors are on {device}"
    if dtype not in DTYPES:
        return f"it takes float32 and bfloat16, not {dtype}"
    return _ready()


# What torch.compiler.assume_constant_result sets, which would import the compiler: tracing takes the answer as it is.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _ready() -> str | None:
    try:
        load()
    except BuildError as error:
        return str(error)
    _register()
    return None


def shortcut(activation: str) -> Short:
    """Inference past torch's dispatcher, see `fff.kernels.Provider` and cpp/python.cpp."""
    return _short("fff_infer", activation)


def int8_shortcut(activation: str) -> Short:
    """The same of int8 trees, by their buffers' names."""
    return _short("fff_int8_infer", activation)


def settle(tensors: Iterable[Tensor]) -> None:
    """Weights into huge pages, where they are large and the system can: bits and addresses stay (cpp/memory.h)."""
    into_huge_pages = load().fff_into_huge_pages
    into_huge_pages.argtypes, into_huge_pages.restype = [ctypes.c_void_p, ctypes.c_size_t], None
    for tensor in tensors:
        if type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.is_contiguous():
            with contextlib.suppress(RuntimeError):  # a tensor of torch.func, which has no memory of its own
                into_huge_pages(tensor.data_ptr(), tensor.nbytes)


@functools.cache
def _short(name: str, activation: str) -> Short:
    function = getattr(load(), name, None)
    if function is None:  # built where Python's headers are missing
        return _ask_operator
    function.argtypes, function.restype = [ctypes.c_long], ctypes.py_object
    return function(ACTIVATION_IDS[activation])


def _ask_operator(x: Tensor, parameters: Mapping[str, Tensor | None]) -> None:
    return None


@differentiable(lambda operands: masked(operands).y)
def output(operands: PathOperands) -> Tensor:
    """y (N, K) alone; otherwise as `cpu`."""
    x, w_in, b_in, w_out, activation, flips, temperature = operands
    number = ACTIVATION_IDS[activation]
    if flips is None and not gradients_wanted(operands):
        return torch.ops.fff.cpu_infer.default(x, w_in, b_in, w_out, number)
    return torch.ops.fff.cpu_forward.default(x, w_in, b_in, w_out, number, flips, temperature)[0]


@differentiable(masked)
def cpu(operands: PathOperands) -> PathResult:
    """PathFFF by path nodes only: x (N, H) -> y (N, K), float32 scores.

    Bits do not depend on the number of threads, nor on which other tokens are in the call.

    Raises:
        ValueError: tensors of another dtype, device or size than x.
    """
    x, w_in, b_in, w_out, activation, flips, temperature = operands
    number = ACTIVATION_IDS[activation]
    y, leaf, scores = torch.ops.fff.cpu_forward.default(x, w_in, b_in, w_out, number, flips, temperature)
    return PathResult(y, path_to(leaf, scores.shape[-1]), scores)


@differentiable(lambda operands: all_leaves(operands).y)
def leaf_output(operands: LeafOperands) -> Tensor:
    """y (N, K) alone; otherwise as `leaf`."""
    x, w_node, b_node, leaves, activation, flips, *_ = operands
    if in_plain_torch(operands) or gradients_wanted((*operands, *leaves)) or flips is not None:
        return leaf(operands).y
    return torch.ops.fff.cpu_leaf_infer.default(x, w_node, b_node, *leaves, ACTIVATION_IDS[activation])


def in_plain_torch(operands: LeafOperands) -> bool:
    """Whether `fff.kernels.leaves.own_leaf` computes it: depth 0, which is a dense layer, and dropout."""
    return operands.w_node is None or bool(operands.dropout)


@differentiable(all_leaves)
def leaf(operands: LeafOperands) -> PathResult:
    """LeafFFF's hard forms by one small network per leaf with tokens: y (N, K), float32 scores (N, 1, D).

    Bits as `cpu`'s, but for what `in_plain_torch` names.

    Raises:
        ValueError: tensors of another dtype, device or size than x.
    """
    x, w_node, b_node, leaves, activation, flips, temperature, straight_through, _ = operands
    if in_plain_torch(operands):
        return own_leaf(operands)
    warmth = temperature if straight_through else None
    given = (x, w_node, b_node, *leaves, ACTIVATION_IDS[activation], flips, warmth)
    y, place, scores, _ = torch.ops.fff.cpu_leaf_forward.default(*given)
    return PathResult(y, path_to(place[:, None], operands.depth + 1), scores[:, None])


def leaf_walk(operands: LeafOperands) -> tuple[Tensor, Tensor]:
    """LeafFFF's nodes (N, 1, D + 1) and scores (N, 1, D), as `leaf_output` walks in inference."""
    w, b = operands.w_node, operands.b_node
    if w is None or b is None or in_plain_torch(operands):
        return own_walk(operands)
    # The decisions are a PathFFF of depth D - 1 of which the walk alone is wanted.
    _, nodes, scores = cpu(PathOperands(operands.x, w[None], b[None], w.new_zeros(1, len(w), 1), "identity"))
    return torch.cat((nodes, child(nodes[..., -1:], scores[..., -1:])), -1), scores


@differentiable(lambda operands: int8_masked(operands).y)
def int8_output(operands: Int8Operands) -> Tensor:
    """y (N, K) alone; otherwise as `int8`."""
    *tensors, activation = operands
    return torch.ops.fff.cpu_int8_infer.default(*tensors, ACTIVATION_IDS[activation])


@differentiable(int8_masked)
def int8(operands: Int8Operands) -> PathResult:
    """Int8 trees by path nodes only, with the definition's decisions and scores to the last bit; without gradients.

    Raises:
        ValueError: tensors of another dtype, device or size than they must have.
    """
    *tensors, activation = operands
    y, leaf, scores = torch.ops.fff.cpu_int8_forward.default(*tensors, ACTIVATION_IDS[activation])
    return PathResult(y, path_to(leaf, scores.shape[-1]), scores)


@differentiable(lambda operands: int8_leaf_masked(operands).y)
def int8_leaf_output(operands: Int8LeafOperands) -> Tensor:
    """y (N, K) alone; otherwise as `int8_leaf`."""
    return torch.ops.fff.cpu_int8_leaf_infer.default(*_given(operands))


@differentiable(int8_leaf_masked)
def int8_leaf(operands: Int8LeafOperands) -> PathResult:
    """Int8 leaves by each token's own, with the definition's decisions and scores to the last bit; without gradients.

    Raises:
        ValueError: tensors of another dtype, device or size than they must have.
    """
    y, leaf, scores = torch.ops.fff.cpu_int8_leaf_forward.default(*_given(operands))
    return PathResult(y, path_to(leaf[:, None], operands.depth + 1), scores[:, None])


def _given(operands: Int8LeafOperands) -> tuple[Any, ...]:
    x, nodes, leaves, master, sizes, activation = operands
    number = ACTIVATION_IDS[activation]
    return x, [*nodes], [*leaves], [*(master or ())], sizes.d_out, sizes.levels, sizes.gated, number


def _register() -> None:
    """What torch.compile, torch.export, autograd and counters of operations must know of the operators."""
    ops = torch.ops.fff
    torch.library.register_fake("fff::cpu_infer", _infer_shapes)
    torch.library.register_fake("fff::cpu_leaf_infer", _leaf_infer_shapes)
    torch.library.register_fake("fff::cpu_leaf_forward", _leaf_forward_shapes)
    torch.library.register_fake("fff::cpu_leaf_backward", lambda *given: LeafGradients(*given).empty())
    torch.library.register_fake("fff::cpu_forward", _forward_shapes)
    torch.library.register_fake("fff::cpu_int8_infer", _int8_infer_shapes)
    torch.library.register_fake("fff::cpu_int8_forward", _int8_forward_shapes)
    torch.library.register_fake("fff::cpu_int8_leaf_infer", _int8_leaf_infer_shapes)
    torch.library.register_fake("fff::cpu_int8_leaf_forward", _int8_leaf_forward_shapes)
    torch.library.register_fake("fff::cpu_backward", lambda *given: PathGradients(*given).empty())
    register_backward("fff::cpu_forward", ops.cpu_backward.default)
    register_flops(ops.cpu_infer, ops.cpu_forward, ops.cpu_backward)
    register_leaf_backward("fff::cpu_leaf_forward", ops.cpu_leaf_backward.default)
    register_leaf_flops(ops.cpu_leaf_infer, ops.cpu_leaf_forward, ops.cpu_leaf_backward)
    register_int8_flops(ops.cpu_int8_infer, ops.cpu_int8_forward)
    linear.register()
    register_int8_leaf_flops(ops.cpu_int8_leaf_infer, ops.cpu_int8_leaf_forward)


def _infer_shapes(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_out.shape[-1])


def _leaf_infer_shapes(x: Tensor, w_node, b_node, w_in, b_in, w_out: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_out.shape[-1])


def _leaf_forward_shapes(
    x: Tensor, w_node, b_node, w_in: Tensor, b_in, w_out: Tensor, b_out, w_value: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    tokens, depth = x.shape[0], w_in.shape[0].bit_length() - 1
    leaf = x.new_empty(tokens, dtype=torch.int32)
    rows_in = w_in.shape[1] * (1 if w_value is None else 2)
    scores, neurons = (x.new_empty(tokens, size, dtype=torch.float32) for size in (depth, rows_in))
    return x.new_empty(tokens, w_out.shape[-1]), leaf, scores, neurons


def _forward_shapes(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands = PathOperands(*given)
    x, (tokens, trees, length) = operands.x, operands.shape
    leaf = x.new_empty(tokens, trees, dtype=torch.int32)
    scores = x.new_empty(tokens, trees, length, dtype=torch.float32)
    return x.new_empty(tokens, operands.w_out.shape[-1]), leaf, scores


def _int8_infer_shapes(x: Tensor, w_in: Tensor, scale_in, b_in, w_out: Tensor, scale_out, activation: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_out.shape[-1])


def _int8_forward_shapes(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, w_in, _, b_in, w_out, _, activation = given
    return _forward_shapes(x, w_in, b_in, w_out, activation)


def _int8_leaf_infer_shapes(x: Tensor, nodes, leaves, master, d_out: int, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], d_out)


def _int8_leaf_forward_shapes(x: Tensor, nodes, leaves, master, d_out: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, depth = x.shape[0], leaves[0].shape[0].bit_length() - 1
    leaf = x.new_empty(tokens, dtype=torch.int32)
    return x.new_empty(tokens, d_out), leaf, x.new_empty(tokens, depth, dtype=torch.float32)
