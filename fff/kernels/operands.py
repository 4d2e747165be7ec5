"""What PathFFF's operation takes, saves and refuses, the same for every provider. Not who computes it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.topology import depth_of, first_node, path_length

# The schemas of the providers that are torch operators, written in Python; cpp/ops.cpp has the same.
INFER_SCHEMA = "(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, str activation) -> Tensor"
FORWARD_SCHEMA = (
    "(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, str activation, Tensor? flips, Tensor? temperature) "
    "-> (Tensor, Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor? grad_of_scores, Tensor x, Tensor w_in, Tensor w_out, Tensor places, Tensor scores, "
    "Tensor? temperature, str activation) -> (Tensor, Tensor, Tensor, Tensor)"
)


class PathOperands(NamedTuple):
    """x (N, H), w_in (T, M, H), b_in (T, M) or None, w_out (T, M, K), all of one dtype; as `fff.reference.path_fff`.

    flips (N, T, D) bool: decisions that the region leak turns round. temperature: 0-dim, asks for straight-through
    gradients.
    """

    x: Tensor
    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    activation: str
    flips: Tensor | None = None
    temperature: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, L)."""
        return self.x.shape[0], self.w_in.shape[0], path_length(depth_of(self.w_in.shape[1]))


class PathGradients(NamedTuple):
    """What a backward operator takes, for the gradients of x (N, H), w_in (T, M, H), b_in (T, M), w_out (T, M, K).

    grad (N, K); grad_of_scores (N, T, L) or None; x, w_in and w_out as in the forward. places: where tokens were,
    leaves in heap order (N, T) int32, or flat rows t * M + node of the whole path (N, T, L) int32; scores (N, T, L).
    """

    grad: Tensor
    grad_of_scores: Tensor | None
    x: Tensor
    w_in: Tensor
    w_out: Tensor
    places: Tensor
    scores: Tensor
    temperature: Tensor | None
    activation: str | int

    @property
    def nodes(self) -> Tensor:
        """The paths, (N, T, L) int64 in heap order."""
        if self.places.dim() == 2:
            return path_to(self.places, self.scores.shape[-1])
        return self.places.long() % self.w_in.shape[1]

    def empty(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the right shapes, without content."""
        x, w_in, w_out = self.x, self.w_in, self.w_out
        bias = w_in.new_empty(w_in.shape[:2])
        return x.new_empty(x.shape), w_in.new_empty(w_in.shape), bias, w_out.new_empty(w_out.shape)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that conditional providers keep scores in: float32 for half types."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def path_to(leaf: Tensor, length: int) -> Tensor:
    """Leaves in heap order (N, T) -> the paths down to them (N, T, L) int64."""
    levels = torch.arange(length - 1, -1, -1, device=leaf.device)
    return ((leaf.long().unsqueeze(-1) + 1) >> levels) - 1


def check_forward(operands: PathOperands, provider: str, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse what would be read wrongly, by what tracing knows too.

    Raises:
        ValueError: a dtype, device or size that does not fit, or an unknown activation; names the operand.
    """
    x, w_in, b_in, w_out, activation, flips, temperature = operands
    activation_named(activation)
    _check_weights(x, w_in, w_out, provider, dtypes)
    trees, node_count, _ = w_in.shape
    depth = depth_of(node_count)
    if b_in is not None:
        _check_like(x, "b_in", b_in)
        if b_in.shape != w_in.shape[:2]:
            raise ValueError(f"b_in must be ({trees}, {node_count}), got {tuple(b_in.shape)}")
    if flips is not None:
        _check_device(x, "flips", flips)
        if flips.shape != (x.shape[0], trees, depth) or flips.dtype != torch.bool:
            raise ValueError(f"flips must be bool (N, {trees}, {depth}), got {flips.dtype} {tuple(flips.shape)}")
    _check_temperature(x, temperature)


def check_backward(given: PathGradients, provider: str, dtypes: Sequence[torch.dtype]) -> None:
    """The same of a backward operator's operands, but for the numbers in `places`: see `check_places`."""
    grad, grad_of_scores, x, w_in, w_out, places, scores, temperature, activation = given
    activation_named(str(activation))
    _check_weights(x, w_in, w_out, provider, dtypes)
    shape = (x.shape[0], w_in.shape[0], path_length(depth_of(w_in.shape[1])))
    _check_like(x, "grad", grad)
    _check_shape("grad", grad, (x.shape[0], w_out.shape[-1]), "(N, K)")
    for name, tensor in (("scores", scores), ("grad_of_scores", grad_of_scores)):
        if tensor is not None:
            _check_device(x, name, tensor)
            _check_shape(name, tensor, shape, "(N, T, L)")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} is {tensor.dtype}; it must be floats")
    if scores.dtype != score_dtype(x.dtype):
        raise ValueError(f"scores is {scores.dtype}; it must be {score_dtype(x.dtype)} where x is {x.dtype}")
    _check_device(x, "places", places)
    if places.dtype != torch.int32:
        raise ValueError(f"places is {places.dtype}; it must be torch.int32")
    _check_temperature(x, temperature)


def check_places(given: PathGradients, *, leaves: bool) -> None:
    """Refuse places that are none: `leaves` (N, T), or rows (N, T, L) of a path each on its level.

    On a GPU nothing is read back: a wrong number ends as torch's assertion on the device.

    Raises:
        ValueError: wrong shape or, on a CPU, a number out of range.
    """
    places, (trees, node_count) = given.places, given.w_in.shape[:2]
    shape = tuple(given.scores.shape)
    depth = shape[-1] - 1
    if leaves:
        _check_shape("leaf", places, shape[:2], "(N, T)")
        lowest, highest = first_node(depth), first_node(depth + 1) - 1
        good = (places >= lowest) & (places <= highest)
        what = f"leaf must be nodes of the last level, from {lowest} to {highest}"
    else:
        _check_shape("rows", places, shape, "(N, T, L)")
        above = 2 ** torch.arange(depth + 1, device=places.device) - 1
        node = places - node_count * torch.arange(trees, device=places.device)[:, None]
        good = (node >= above) & (node <= 2 * above)
        what = "rows must be tree * M + node, with one node of each level"
    if places.device.type == "cpu":
        if not good.all():
            raise ValueError(f"{what}; got {places[~good][0].item()}")
    elif places.numel():
        torch._assert_async(good.all(), what)


def _check_weights(x: Tensor, w_in: Tensor, w_out: Tensor, provider: str, dtypes: Sequence[torch.dtype]) -> None:
    if x.dtype not in dtypes:
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        raise ValueError(f"provider {provider!r} takes {', '.join(names[:-1])} and {names[-1]}, and x is {x.dtype}")
    _check_like(x, "w_in", w_in)
    _check_like(x, "w_out", w_out)
    if x.dim() != 2 or w_in.dim() != 3 or x.shape[1] != w_in.shape[2]:
        raise ValueError(f"x must be (N, H) and w_in (T, M, H), got {tuple(x.shape)} and {tuple(w_in.shape)}")
    trees, node_count, _ = w_in.shape
    depth_of(node_count)
    if trees * node_count >= 2**31:
        raise ValueError(f"w_in has {trees} * {node_count} nodes; at most 2^31 - 1 can be numbered")
    if w_out.dim() != 3 or w_out.shape[:2] != w_in.shape[:2]:
        raise ValueError(f"w_out must be ({trees}, {node_count}, K), got {tuple(w_out.shape)}")


def _check_device(x: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}; move one of them")


def _check_like(x: Tensor, name: str, tensor: Tensor) -> None:
    _check_device(x, name, tensor)
    if tensor.dtype != x.dtype:
        raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}; convert one of them")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], letters: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {letters} = {shape}, got {tuple(tensor.shape)}")


def _check_temperature(x: Tensor, temperature: Tensor | None) -> None:
    if temperature is not None:
        _check_device(x, "temperature", temperature)
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one number, got {tuple(temperature.shape)}")
