"""Providers held to the definition on any device: nodes, outputs, all gradients. Not how fast they are."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF
from fff.reference import path_fff

# A score nearer to 0 may be rounded to either side. Half types round sums once more.
MARGINS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}
# Of the largest value, where nodes are equal. Half types round each activation, output and gradient.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
PARTS = ("y", "x", "w_in", "b_in", "w_out")
CLUSTERS = 32  # of skewed inputs, visited by Zipf's law


def inputs(kind: str, tokens: int, width: int = 768, count: int = 1) -> list[Tensor]:
    """`count` inputs (tokens, width): "iid" visits all leaves, "skewed" is near one of 32 points, few of them often."""
    if kind == "iid":
        return [torch.randn(tokens, width) for _ in range(count)]
    share = 1 / torch.arange(1, CLUSTERS + 1)
    centres = torch.randn(CLUSTERS, width)
    return [
        centres[torch.multinomial(share, tokens, replacement=True)] + 0.1 * torch.randn(tokens, width)
        for _ in range(count)
    ]


@dataclass(frozen=True)
class ParityCase:
    """One shape on which a provider is held to the definition."""

    trees: int
    depth: int
    d_in: int
    d_out: int
    tokens: int
    dtype: torch.dtype
    inputs: str = "iid"  # iid, or skewed (few leaves)
    activation: str = "gelu"
    bias: bool = True
    straight_through: bool = False

    @property
    def title(self) -> dict[str, Any]:
        """The row's first columns."""
        return {
            "shape": f"{self.trees}x{self.depth}",
            "d_in": self.d_in,
            "d_out": self.d_out,
            "tokens": self.tokens,
            "dtype": str(self.dtype)[6:],
            "inputs": self.inputs,
            "activation": self.activation,
            "bias": self.bias,
            "straight_through": self.straight_through,
        }


def parity(provider: str, case: ParityCase, device: torch.device) -> dict[str, Any]:
    """How far a provider is from the float64 definition on one shape.

    A tree is discontinuous, so this has two parts. Nodes are compared wherever no score on the path is within the
    margin (`tokens_clear` of them); outputs and gradients on those tokens alone, where paths must be equal.

    Returns:
        the case's columns, `nodes_differ` (of the clear tokens' path nodes), `errors` of y and of the gradients of x,
        w_in, b_in and w_out, relative to the largest value of each, `tolerance`, and `ok`.

    Raises:
        RuntimeError: the provider is not available for the device and dtype, with the reason.
    """
    if reason := PROVIDERS[provider].available(device, case.dtype):
        raise RuntimeError(f"provider={provider!r} is not available: {reason}")
    torch.manual_seed(0)
    layer = PathFFF(case.d_in, case.d_out, case.depth, case.trees, bias=case.bias, activation=case.activation)
    layer = layer.to(device, case.dtype)
    x, grad = _tokens(case, device)
    temperature = torch.tensor(0.7, device=device) if case.straight_through else None
    clear = _clear(layer, x, MARGINS[case.dtype])
    x, grad = x[clear], grad[clear]
    weights = [layer.w_in, layer.b_in, layer.w_out]
    with poisoned():
        ours = _everything(PROVIDERS[provider].function, x, weights, grad, case.activation, temperature)
    wide = [None if w is None else w.detach().double() for w in weights]
    wide_temperature = None if temperature is None else temperature.double()
    theirs = _everything(path_fff, x.double(), wide, grad.double(), case.activation, wide_temperature)
    differ = int((ours["nodes"] != theirs["nodes"]).sum())
    errors = {part: _error(ours[part], theirs[part]) for part in PARTS if theirs[part] is not None}
    tolerance = TOLERANCES[case.dtype]
    return {
        "provider": provider,
        **case.title,
        "tokens_clear": len(x),
        "nodes_differ": differ,
        "errors": errors,
        "tolerance": tolerance,
        "ok": not differ and all(error <= tolerance for error in errors.values()),
    }


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that is given out holds NaN until it is written; it might else hold an earlier, right answer."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)  # on a GPU it would refuse cumsum
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _tokens(case: ParityCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs (N, d_in) and the output's gradient (N, d_out), on the device in the case's dtype."""
    x = inputs(case.inputs, case.tokens, case.d_in)[0]
    return x.to(device, case.dtype), torch.randn(case.tokens, case.d_out).to(device, case.dtype)


@torch.no_grad()
def _clear(layer: PathFFF, x: Tensor, margin: float) -> Tensor:
    """bool (N,): no score on the token's path is within the margin, by the definition."""
    w_in, b_in, w_out = (None if w is None else w.double() for w in (layer.w_in, layer.b_in, layer.w_out))
    assert w_in is not None
    assert w_out is not None
    scores = path_fff(x.double(), w_in, b_in, w_out, layer.activation).scores
    return (scores.abs() > margin).flatten(1).all(1)


def _everything(
    function: Any, x: Tensor, weights: list[Any], grad: Tensor, activation: str, temperature: Tensor | None
) -> dict[str, Any]:
    """Nodes, y, and the gradients of x and the weights."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, *weights)]
    result = function(*leaves, activation, None, temperature)
    result.y.backward(grad)
    found = dict(zip(("x", "w_in", "b_in", "w_out"), (t if t is None else t.grad for t in leaves), strict=True))
    return {"nodes": result.nodes, "y": result.y.detach(), **found}


def _error(ours: Tensor | None, theirs: Tensor) -> float:
    """Largest difference relative to the largest value; infinity where something is missing or no number."""
    if ours is None or ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    difference = float((ours.double() - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-30)
    return difference if difference == difference else float("inf")
