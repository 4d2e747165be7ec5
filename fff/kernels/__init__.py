"""Providers of PathFFF behind one registry: who computes it, what they can do, which one `auto` takes. Not the kernels.

`auto` weighs the nodes in a tree against the nodes visited, M / L: conditional execution pays only where that is well
above 1, because a product of all nodes runs at a better rate than a walk. Time of masked / gather on a CPU (one
thread, about 4095 neurons, width 768, 2048 tokens): depth 0 0.5, depth 2 0.9, depth 3 1.1 to 1.3, depth 4 1.3,
depth 5 2.0, depth 6 3.3, depth 11 18 in training and 38 in inference. Of masked / cpu: see docs/kernels.md.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fff.kernels.cpu import operators as cpu
from fff.kernels.gather import gather
from fff.kernels.masked import masked
from fff.kernels.triton import operators as triton
from fff.reference import PathResult, path_fff
from fff.topology import nodes_in_tree, path_length

# (x (N, H), w_in, b_in, w_out, activation, flips or None, temperature or None), as `fff.reference.path_fff`.
Function = Callable[[Tensor, Tensor, Tensor | None, Tensor, str, Tensor | None, Tensor | None], PathResult]
Output = Callable[[Tensor, Tensor, Tensor | None, Tensor, str, Tensor | None, Tensor | None], Tensor]
Shortcut = Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]

EXECUTIONS = ("auto", "masked", "conditional")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# M / L from which a conditional provider is faster than masked.
PAYS_FROM = {
    ("cpu", "cpu"): 2.3,  # depth 2
    ("gather", "cpu"): 5.0,  # depth 4
    ("triton", "cuda"): 50.0,  # depth 9; not measured
}
PAYS_FROM_OTHER = 20.0  # not measured: a GPU's products are faster still against its gathers

log = logging.getLogger("fff")


def _anywhere(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if dtype in FLOATS else f"dtype {dtype} is not supported (float64, float32, bfloat16 and float16 are)"


@dataclass(frozen=True)
class Provider:
    """Who computes the layer.

    `available(device, dtype)` is None, or the reason why this machine cannot. `output` gives y alone, where that is
    faster than the whole result. `shortcut(activation)` is a function (x (..., H), parameters by name) -> y (..., K),
    or None for a call that it does not take. It must see by itself what it cannot do: a mode of torch's, autocast,
    gradients, another device or dtype, parameters that are missing.
    """

    name: str
    execution: str
    function: Function
    available: Callable[[torch.device, torch.dtype], str | None] = _anywhere
    output: Output | None = None
    shortcut: Callable[[str], Shortcut] | None = None


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("reference", "conditional", path_fff),
        Provider("masked", "masked", masked),
        Provider("gather", "conditional", gather),
        Provider("cpu", "conditional", cpu.cpu, cpu.available, cpu.output, cpu.shortcut),
        Provider("triton", "conditional", triton.triton, triton.available, triton.output, triton.shortcut),
    )
}
CONDITIONAL_BY_SPEED = ("cpu", "triton", "gather")
_told: set[object] = set()


def check(execution: str, provider: str) -> None:
    """Refuse unknown names and contradictions (ValueError names the argument and what is allowed)."""
    if execution not in EXECUTIONS:
        raise ValueError(f"execution={execution!r} is unknown; allowed: {', '.join(EXECUTIONS)}")
    if provider != "auto" and provider not in PROVIDERS:
        raise ValueError(f"provider={provider!r} is unknown; allowed: auto, {', '.join(PROVIDERS)}")
    if provider != "auto" and execution not in ("auto", PROVIDERS[provider].execution):
        raise ValueError(
            f"provider={provider!r} computes {PROVIDERS[provider].execution}, but execution={execution!r} was asked "
            "for; leave one of them at 'auto'"
        )


def choose(execution: str, provider: str, device: torch.device, dtype: torch.dtype, trees: int, depth: int) -> Provider:
    """The provider for a call; `auto` says once per shape which one it took.

    Raises:
        RuntimeError: the provider asked for is not available here, with the reason.
    """
    if provider != "auto":
        chosen = PROVIDERS[provider]
        if reason := chosen.available(device, dtype):
            raise RuntimeError(f"provider={provider!r} is not available: {reason}")
        return chosen
    if reason := _anywhere(device, dtype):
        raise RuntimeError(f"provider='auto' found none: {reason}")
    name = "masked" if execution == "masked" else _fastest(execution, device, dtype, depth)
    chosen = PROVIDERS[name]
    _say((name, trees, depth), "PathFFF %dx%d: provider %s (%s execution)", trees, depth, chosen.name, chosen.execution)
    return chosen


def _fastest(execution: str, device: torch.device, dtype: torch.dtype, depth: int) -> str:
    """The first conditional provider that can and, with execution "auto", pays; else masked.

    It asks whether one pays before whether it can, which may compile it. Says once why provider `cpu` cannot.
    """
    for name in CONDITIONAL_BY_SPEED:
        if name == "triton" and (device.type != "cuda" or depth > triton.DEEPEST):
            continue  # on the CPU it is Triton's interpreter
        pays = nodes_in_tree(depth) >= PAYS_FROM.get((name, device.type), PAYS_FROM_OTHER) * path_length(depth)
        if execution == "auto" and not pays:
            continue
        reason = PROVIDERS[name].available(device, dtype)
        if reason is None:
            return name
        if name == "cpu" and device.type == "cpu" and dtype in cpu.DTYPES:
            _say(reason, "PathFFF: provider cpu is not available, gather takes its place: %s", reason)
    return "masked"


def _say(key: object, message: str, *values: object) -> None:
    if not torch.compiler.is_compiling() and key not in _told:
        _told.add(key)
        log.info(message, *values)
