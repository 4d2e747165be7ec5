"""Provider `triton`: path nodes only, on an NVIDIA GPU, forward and backward, float32 and half types. The operators.

Triton is imported when an operator first runs, never with fff. Nothing here has run on a GPU: see docs/kernels.md.

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

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.kernels.autograd import register_backward
from fff.reference import PathResult
from fff.topology import depth_of, path_length

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


def triton(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None = None,
    temperature: Tensor | None = None,
) -> PathResult:
    """PathFFF by path nodes only: x (N, H) -> y (N, K), float32 scores; arguments as `fff.reference.path_fff`.

    Raises:
        ValueError: tensors of another dtype, device or size than x, or a tree deeper than 15.
    """
    y, leaf, scores = _forward(x, w_in, b_in, w_out, activation, flips, temperature)
    levels = torch.arange(scores.shape[-1] - 1, -1, -1, device=leaf.device)
    return PathResult(y, ((leaf.long().unsqueeze(-1) + 1) >> levels) - 1, scores)


def output(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None = None,
    temperature: Tensor | None = None,
) -> Tensor:
    """y (N, K) alone; arguments as `triton`."""
    if flips is None and not torch.is_grad_enabled():
        return _infer(x, w_in, b_in, w_out, activation)
    return _forward(x, w_in, b_in, w_out, activation, flips, temperature)[0]


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
        y = _infer(flat, w_in, parameters["b_in"], w_out, activation)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], w_out.shape[-1])

    return infer


@torch.library.custom_op("fff::triton_infer", mutates_args=())
def _infer(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: str) -> Tensor:
    """Y (N, K), without a record for gradients."""
    _check(x, w_in, b_in, w_out, activation, None)
    _check_here(x)
    from fff.kernels.triton import host as triton_host

    with torch.cuda.device_of(x):
        return triton_host.forward(x, w_in, b_in, w_out, activation, None, save=False)[0]


@_infer.register_fake
def _(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: str) -> Tensor:
    _check(x, w_in, b_in, w_out, activation, None)
    return x.new_empty(x.shape[0], w_out.shape[-1])


@torch.library.custom_op("fff::triton_forward", mutates_args=())
def _forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None,
    temperature: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> y (N, K), leaves in heap order (N, T) int32, scores (N, T, L) float32."""
    _check(x, w_in, b_in, w_out, activation, flips)
    _check_here(x)
    from fff.kernels.triton import host as triton_host

    bits = None if flips is None else flips.contiguous().view(torch.uint8)
    with torch.cuda.device_of(x):
        return triton_host.forward(x, w_in, b_in, w_out, activation, bits, save=True)


@_forward.register_fake
def _(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None,
    temperature: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, w_in, b_in, w_out, activation, flips)
    shape = (x.shape[0], w_in.shape[0], path_length(depth_of(w_in.shape[1])))
    leaf = x.new_empty(shape[:2], dtype=torch.int32)
    return x.new_empty(x.shape[0], w_out.shape[-1]), leaf, x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("fff::triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    grad_of_scores: Tensor | None,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    leaf: Tensor,
    scores: Tensor,
    temperature: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K)."""
    from fff.kernels.triton import host as triton_host

    with torch.cuda.device_of(x):
        return triton_host.backward(grad, grad_of_scores, x, w_in, w_out, leaf, scores, temperature, activation)


@_backward.register_fake
def _(
    grad: Tensor,
    grad_of_scores: Tensor | None,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    leaf: Tensor,
    scores: Tensor,
    temperature: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        w_in.new_empty(w_in.shape),
        w_in.new_empty(w_in.shape[:2]),
        w_out.new_empty(w_out.shape),
    )


register_backward("fff::triton_forward", _backward)


def _check(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, activation: str, flips: Tensor | None) -> None:
    """Refuse what the kernels would read wrongly; by what tracing knows too."""
    activation_named(activation)
    if x.dtype not in DTYPES:
        raise ValueError(f"provider 'triton' takes float32, bfloat16 and float16, and x is {x.dtype}")
    for name, tensor in (("w_in", w_in), ("b_in", b_in), ("w_out", w_out), ("flips", flips)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}; move one of them")
        if tensor is not None and tensor is not flips and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}; convert one of them")
    if x.dim() != 2 or w_in.dim() != 3 or x.shape[1] != w_in.shape[2]:
        raise ValueError(f"x must be (N, H) and w_in (T, M, H), got {tuple(x.shape)} and {tuple(w_in.shape)}")
    trees, node_count, _ = w_in.shape
    depth = depth_of(node_count)
    if depth > DEEPEST or trees > MOST_TREES:
        raise ValueError(
            f"provider 'triton' takes up to {MOST_TREES} trees of depth up to {DEEPEST}, and w_in has {trees} of depth "
            f"{depth}; take provider 'gather'"
        )
    if w_out.dim() != 3 or w_out.shape[:2] != w_in.shape[:2]:
        raise ValueError(f"w_out must be ({trees}, {node_count}, K), got {tuple(w_out.shape)}")
    if b_in is not None and b_in.shape != w_in.shape[:2]:
        raise ValueError(f"b_in must be ({trees}, {node_count}), got {tuple(b_in.shape)}")
    if flips is not None and (flips.shape != (x.shape[0], trees, depth) or flips.dtype != torch.bool):
        raise ValueError(f"flips must be bool (N, {trees}, {depth}), got {flips.dtype} {tuple(flips.shape)}")


def _check_here(x: Tensor) -> None:
    """An operator may be called without a question to `available`; of a GPU, which stays, it is asked once."""
    if (key := (x.device, x.dtype)) in _able:
        return
    if reason := available(*key):
        raise ValueError(f"provider 'triton' is not available: {reason}")
    if x.is_cuda:
        _able.add(key)
