"""Provider `cpu`: path nodes only, in C++ (cpp/), forward and backward, float32 and bfloat16. Not how it is compiled.

Inference calls an operator that has no autograd and gives outputs alone: at one token the way of calling costs as much
as the work. Training saves x, the leaves and the scores. See docs/kernels.md.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fff.activations import ACTIVATIONS
from fff.kernels.autograd import register_backward
from fff.kernels.cpu.build import BuildError, load
from fff.reference import PathResult
from fff.topology import depth_of, path_length

DTYPES = (torch.float32, torch.bfloat16)
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


@functools.cache
def shortcut(activation: str) -> Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]:
    """Inference past torch's dispatcher, see `fff.kernels.Provider` and cpp/python.cpp."""
    library = load()
    if not hasattr(library, "fff_infer"):  # built where Python's headers are missing
        return _ask_operator
    library.fff_infer.argtypes, library.fff_infer.restype = [ctypes.c_long], ctypes.py_object
    return library.fff_infer(ACTIVATION_IDS[activation])


def _ask_operator(x: Tensor, parameters: Mapping[str, Tensor | None]) -> None:
    return None


def output(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None = None,
    temperature: Tensor | None = None,
) -> Tensor:
    """y (N, K) alone; arguments as `cpu`."""
    number = ACTIVATION_IDS[activation]
    if flips is None and not torch.is_grad_enabled():
        return torch.ops.fff.cpu_infer.default(x, w_in, b_in, w_out, number)
    return torch.ops.fff.cpu_forward.default(x, w_in, b_in, w_out, number, flips, temperature)[0]


def cpu(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None = None,
    temperature: Tensor | None = None,
) -> PathResult:
    """PathFFF by path nodes only: x (N, H) -> y (N, K), float32 scores; arguments as `fff.reference.path_fff`.

    Bits do not depend on the number of threads, nor on which other tokens are in the call.

    Raises:
        ValueError: tensors of another dtype, device or size than x.
    """
    number = ACTIVATION_IDS[activation]
    y, leaf, scores = torch.ops.fff.cpu_forward.default(x, w_in, b_in, w_out, number, flips, temperature)
    levels = torch.arange(scores.shape[-1] - 1, -1, -1)
    return PathResult(y, ((leaf.long().unsqueeze(-1) + 1) >> levels) - 1, scores)


def leaf_output(x: Tensor, w_node: Tensor, b_node: Tensor, leaves: tuple[Tensor, ...], activation: str) -> Tensor:
    """LeafFFF's hard inference: x (N, H) -> y (N, K), without gradients; one small network per leaf with tokens.

    w_node (2^D - 1, H), b_node (2^D - 1,), D at least 1; leaves: w_in, b_in, w_out, b_out as `fff.reference.leaf_fff`.
    """
    return torch.ops.fff.cpu_leaf_infer.default(x, w_node, b_node, *leaves, ACTIVATION_IDS[activation])


def _register() -> None:
    """What torch.compile, torch.export and autograd must know of the operators."""
    torch.library.register_fake("fff::cpu_infer", _infer_shapes)
    torch.library.register_fake("fff::cpu_leaf_infer", _leaf_infer_shapes)
    torch.library.register_fake("fff::cpu_forward", _forward_shapes)
    torch.library.register_fake("fff::cpu_backward", _backward_shapes)
    register_backward("fff::cpu_forward", torch.ops.fff.cpu_backward.default)


def _infer_shapes(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_out.shape[-1])


def _leaf_infer_shapes(x: Tensor, w_node, b_node, w_in, b_in, w_out: Tensor, b_out, activation: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], w_out.shape[-1])


def _forward_shapes(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: int,
    flips: Tensor | None,
    temperature: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, trees = x.shape[0], w_in.shape[0]
    leaf = x.new_empty(tokens, trees, dtype=torch.int32)
    scores = x.new_empty(tokens, trees, path_length(depth_of(w_in.shape[1])), dtype=torch.float32)
    return x.new_empty(tokens, w_out.shape[-1]), leaf, scores


def _backward_shapes(
    grad: Tensor,
    grad_of_scores: Tensor | None,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    leaf: Tensor,
    scores: Tensor,
    temperature: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        w_in.new_empty(w_in.shape),
        w_in.new_empty(w_in.shape[:2]),
        w_out.new_empty(w_out.shape),
    )
