"""Provider `triton`: path nodes only, on an NVIDIA GPU, forward and backward, float32 and half types. The operators.

Triton is imported when an operator first runs, never with fff. What an H100 said of them: docs/kernels.md.

Floor, for one token of 1x11 at width 768 in bfloat16 on an H100 (nominal: 3.35 TB/s of memory, about 5.5 TB/s of L2
cache, 990 TFLOP/s of dense bfloat16). It needs 12 rows in and 12 rows out, 37 kFLOP and 36.9 KB of weights, which at
12.6 MB for all stay in the 50 MB of L2; and 3 KB of input and output. So memory allows 0.9 ns a token, operations are
nothing, and rows that are fetched for each token take 6.7 ns: what must be saved is the fetching. The dense layer of
4096 neurons, 12.6 MFLOP, takes 13 ns at the very best.

Hence two ways (triton_host.py chooses, triton_kernels.py has the kernels):

- *Few tokens*: a program per token (and some of the trees) walks down with x and y in registers: one launch.
- *Many*: the levels are cut into bands, of 6 and 6 for depth 11. A band's subtree below one node is a dense product of
  63 rows with the tokens that are there, then the walk in registers; tokens are sorted by node between bands. That is
  128 columns for 4095 nodes, 0.3 MFLOP a token with the output, and a row is fetched once for 64 tokens. For that, the
  tokens of a tile share all nodes above their band, so it is one product of 16 rows and one of 63.

The backward is made of the same products. Weight gradients are sums over each node's tokens, one run of the order; runs
of over 1024 tokens are cut and the parts added in order. No atomics. Saved: x, leaves and scores, O(N * (H + T * L)).
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from fff.kernels.autograd import differentiable, gradients_wanted, register_backward
from fff.kernels.flops import register_flops
from fff.kernels.masked import masked
from fff.kernels.operands import (
    BACKWARD_SCHEMA,
    FORWARD_SCHEMA,
    INFER_SCHEMA,
    PathGradients,
    PathOperands,
    check_backward,
    check_forward,
    check_places,
    path_to,
)
from fff.reference import PathResult
from fff.topology import depth_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEEPEST = 15
MOST_TREES = 65535  # a launch's second dimension
_able: set[tuple[torch.device, torch.dtype]] = set()  # GPUs that can, and in which dtypes


def available(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or why this machine cannot: another device or dtype, no GPU, no Triton.

    On the CPU only under Triton's interpreter, a test's means and slow, which TRITON_INTERPRET=1 asks for.
    """
    if dtype not in DTYPES:
        return f"it takes float32, bfloat16 and float16, not {dtype}"
    if device.type == "meta":
        return None
    if device.type == "cpu":
        return _cannot_interpret()
    if device.type != "cuda":
        return f"it computes on NVIDIA GPUs, and the tensors are on {device}"
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "it computes on NVIDIA GPUs, and torch finds none here"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
    return _no_triton()


# As provider cpu's: tracing takes the answer as it is.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install 'fff-cramming[triton]'`, or leave the provider at 'auto'"
    return None


def _cannot_interpret() -> str | None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "it computes on NVIDIA GPUs, and the tensors are on the CPU; move layer and input with .to('cuda')"
    if reason := _no_triton():
        return reason
    if version("triton").startswith("3.6.") and not version("numpy").startswith(("1.", "2.0", "2.1", "2.2", "2.3")):
        return "the interpreter of Triton 3.6 needs NumPy below 2.4; update Triton"
    from fff.kernels.triton import kernels as triton_kernels

    if not triton_kernels.INTERPRETED:
        return "Triton was loaded before TRITON_INTERPRET=1 was set; set it before Python starts"
    return None


@differentiable(masked)
def triton(operands: PathOperands) -> PathResult:
    """PathFFF by path nodes only: x (N, H) -> y (N, K), float32 scores.

    Raises:
        ValueError: tensors of another dtype, device or size than x, or a tree deeper than 15.
    """
    y, leaf, scores = _forward(*operands)
    return PathResult(y, path_to(leaf, scores.shape[-1]), scores)


@differentiable(lambda operands: masked(operands).y)
def output(operands: PathOperands) -> Tensor:
    """y (N, K) alone; otherwise as `triton`."""
    if operands.flips is None and not gradients_wanted(operands):
        return _infer(*operands[:5])
    return _forward(*operands)[0]


def shortcut(activation: str) -> Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]:
    """Inference with few questions asked in Python, see `fff.kernels.Provider`; the operator is the usual one."""

    def infer(x: Tensor, parameters: Mapping[str, Tensor | None]) -> Tensor | None:
        w_in, w_out = parameters.get("w_in"), parameters.get("w_out")
        if w_in is None or w_out is None or "b_in" not in parameters or torch.is_grad_enabled():
            return None
        if x.device != w_in.device or x.dtype != w_in.dtype or x.shape[-1:] != w_in.shape[-1:]:
            return None
        if not x.is_cuda and (not x.is_cpu or _cannot_interpret()):
            return None
        if torch.is_autocast_enabled(x.device.type):
            return None
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        y: Tensor = output(PathOperands(flat, w_in, parameters["b_in"], w_out, activation))
        return y if x.dim() == 2 else y.view(*x.shape[:-1], w_out.shape[-1])

    return infer


@torch.library.custom_op("fff::triton_infer", mutates_args=(), schema=INFER_SCHEMA)
def _infer(*given: Any) -> Tensor:
    """Y (N, K), without a record for gradients."""
    operands = PathOperands(*given)
    _check(operands)
    _check_here(operands.x)
    from fff.kernels.triton import host as triton_host

    with torch.cuda.device_of(operands.x):
        return triton_host.forward(operands, save=False)[0]


@_infer.register_fake
def _(*given: Any) -> Tensor:
    operands = PathOperands(*given)
    _check(operands)
    return operands.x.new_empty(operands.x.shape[0], operands.w_out.shape[-1])


@torch.library.custom_op("fff::triton_forward", mutates_args=(), schema=FORWARD_SCHEMA)
def _forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """-> y (N, K), leaves in heap order (N, T) int32, scores (N, T, L) float32."""
    operands = PathOperands(*given)
    _check(operands)
    _check_here(operands.x)
    from fff.kernels.triton import host as triton_host

    with torch.cuda.device_of(operands.x):
        return triton_host.forward(operands, save=True)


@_forward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands = PathOperands(*given)
    _check(operands)
    x, shape = operands.x, operands.shape
    leaf = x.new_empty(shape[:2], dtype=torch.int32)
    return x.new_empty(x.shape[0], operands.w_out.shape[-1]), leaf, x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("fff::triton_backward", mutates_args=(), schema=BACKWARD_SCHEMA)
def _backward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K)."""
    gradients = PathGradients(*given)
    _check_gradients(gradients)
    check_places(gradients, leaves=True)
    _check_here(gradients.x)
    from fff.kernels.triton import host as triton_host

    with torch.cuda.device_of(gradients.x):
        return triton_host.backward(gradients)


@_backward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = PathGradients(*given)
    _check_gradients(gradients)
    return gradients.empty()


register_backward("fff::triton_forward", _backward)
register_flops(torch.ops.fff.triton_infer, torch.ops.fff.triton_forward, torch.ops.fff.triton_backward)


def _check(operands: PathOperands) -> None:
    check_forward(operands, "triton", DTYPES)
    _check_size(operands.w_in)


def _check_gradients(gradients: PathGradients) -> None:
    check_backward(gradients, "triton", DTYPES)
    _check_size(gradients.w_in)


def _check_size(w_in: Tensor) -> None:
    trees, depth = w_in.shape[0], depth_of(w_in.shape[1])
    if depth > DEEPEST or trees > MOST_TREES:
        raise ValueError(
            f"provider 'triton' takes up to {MOST_TREES} trees of depth up to {DEEPEST}, and w_in has {trees} of depth "
            f"{depth}; take provider 'gather'"
        )


def _check_here(x: Tensor) -> None:
    """An operator may be called without a question to `available`; of a GPU, which stays, it is asked once."""
    if (key := (x.device, x.dtype)) in _able:
        return
    if reason := available(*key):
        raise ValueError(f"provider 'triton' is not available: {reason}")
    if x.is_cuda:
        _able.add(key)
