"""Providers held to the definition on any device: nodes, outputs, all gradients. Not how fast they are."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fff.kernels import LEAF, PATH, PathOperands, Provider
from fff.kernels.leaves import LeafOperands, Leaves
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.reference import PathResult, leaf_fff, path_fff

# A score nearer to 0 may be rounded to either side. Half types round sums once more.
MARGINS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}
# Of the largest value, where nodes are equal. Half types round each activation, output and gradient.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
LEAF_WEIGHTS = ("w_node", "b_node", "w_in", "b_in", "w_out", "b_out")
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
    """One shape on which a provider is held to the definition; of LeafFFF where `leaf_width` is given."""

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
    leaf_width: int | None = None

    @property
    def title(self) -> dict[str, Any]:
        """The row's first columns."""
        return {
            "shape": f"leaf{self.leaf_width}x{self.depth}" if self.leaf_width else f"{self.trees}x{self.depth}",
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
    margin (`tokens_clear` of them); outputs and gradients on those tokens alone, where paths must be equal. Inference,
    which a provider may do another way, is compared besides.

    Returns:
        the case's columns, `nodes_differ` (of the clear tokens' path nodes, in training and inference), `errors` of y,
        of y in inference, and of the gradients of x and the weights, relative to the largest value of each,
        `tolerance`, and `ok`.

    Raises:
        RuntimeError: the provider is not available for the device and dtype, with the reason.
    """
    computing = (LEAF if case.leaf_width else PATH).providers[provider]
    if reason := computing.available(device, case.dtype):
        raise RuntimeError(f"provider={provider!r} is not available: {reason}")
    torch.manual_seed(0)
    weights = _weights(case, device)
    x, grad = _tokens(case, device)
    wide = {name: weight.double() for name, weight in weights.items()}
    scores = _defined(case, x.double(), wide, None).scores
    clear = (scores.abs() > MARGINS[case.dtype]).flatten(1).all(1)
    x, grad = x[clear], grad[clear]
    with poisoned():
        ours = _everything(case, computing, x, weights, grad)
    theirs = _everything(case, None, x.double(), wide, grad.double())
    differ = sum(int((ours[nodes] != theirs["nodes"]).sum()) for nodes in ("nodes", "inferred nodes"))
    theirs |= {"inference": theirs["y"]}
    parts = [part for part in theirs if part != "nodes"]
    errors = {part: _error(ours[part], theirs[part]) for part in parts}
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


def _weights(case: ParityCase, device: torch.device) -> dict[str, Tensor]:
    """A layer's parameters, by name."""
    layer: PathFFF | LeafFFF
    if case.leaf_width:
        layer = LeafFFF(case.d_in, case.d_out, case.depth, case.leaf_width)
    else:
        layer = PathFFF(case.d_in, case.d_out, case.depth, case.trees, bias=case.bias)
    return {name: weight.detach().to(device, case.dtype) for name, weight in layer.named_parameters()}


def _defined(case: ParityCase, x: Tensor, weights: dict[str, Tensor], temperature: Tensor | None) -> PathResult:
    """What the definition says of x (N, d_in)."""
    if case.leaf_width:
        without = {"w_node": x.new_zeros(0, case.d_in), "b_node": x.new_zeros(0)}  # depth 0 has no decisions
        return leaf_fff(x, **without | weights, activation=case.activation, temperature=temperature)
    return path_fff(x, weights["w_in"], weights.get("b_in"), weights["w_out"], case.activation, None, temperature)


def _operands(
    case: ParityCase, x: Tensor, weights: dict[str, Tensor], temperature: Tensor | None
) -> PathOperands | LeafOperands:
    if case.leaf_width:
        leaves = Leaves(*(weights[name] for name in LEAF_WEIGHTS[2:]))
        t, straight = (torch.ones((), device=x.device), False) if temperature is None else (temperature, True)
        return LeafOperands(x, weights.get("w_node"), weights.get("b_node"), leaves, case.activation, None, t, straight)
    return PathOperands(x, weights["w_in"], weights.get("b_in"), weights["w_out"], case.activation, None, temperature)


def _everything(
    case: ParityCase, provider: Provider | None, x: Tensor, weights: dict[str, Tensor], grad: Tensor
) -> dict[str, Any]:
    """Nodes, y and the gradients of x and the weights, of a provider also in inference; None for the definition."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in {"x": x, **weights}.items()}
    given = {name: t for name, t in leaves.items() if name != "x"}
    temperature = torch.tensor(0.7, device=x.device) if case.straight_through else None
    found: dict[str, Any] = {}
    if provider is None:
        result = _defined(case, leaves["x"], given, None if temperature is None else temperature.double())
    else:
        operands = _operands(case, leaves["x"], given, temperature)
        result = provider.function(operands)
        with torch.no_grad():
            found["inferred nodes"] = provider.paths(operands)[0]
            found["inference"] = provider.output(operands) if provider.output else provider.function(operands).y
    result.y.backward(grad)
    # Hard decisions have no gradient in the definition, and one of zeros in a provider.
    gradients = {name: t.grad if t.grad is not None else torch.zeros_like(t) for name, t in leaves.items()}
    return {"nodes": result.nodes, "y": result.y.detach(), **found, **gradients}


def _error(ours: Tensor | None, theirs: Tensor) -> float:
    """Largest difference relative to the largest value; infinity where something is missing or no number."""
    if ours is None or ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    difference = float((ours.double() - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-30)
    return difference if difference == difference else float("inf")
