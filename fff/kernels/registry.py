"""The providers of each operation with what is known of them: one entry each. Not how one is chosen (choice.py).

When a conditional provider pays is a matter of M / L, the nodes in a tree against the nodes on a path: only where that
is well above 1 does its walk, which runs at a lower rate, win against one product with all nodes. Time of provider
masked divided by that of gather, on a CPU (one thread, about 4095 neurons, width 768, 2048 tokens): depth 0 0.5,
depth 2 0.9, depth 3 1.1 to 1.3, depth 4 1.3, depth 5 2.0, depth 6 3.3, depth 11 18 in training and 38 in inference. Of
masked divided by cpu: see docs/kernels.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fff.kernels import aten, gather, leaves
from fff.kernels.cpu import operators as cpu
from fff.kernels.int8 import int8_definition, int8_masked
from fff.kernels.int8_leaf import int8_leaf_definition, int8_leaf_masked
from fff.kernels.masked import masked
from fff.kernels.operands import PathOperands
from fff.kernels.triton import operators as triton
from fff.reference import PathResult, path_fff

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Shortcut = Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]


def takes_floats(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or why plain torch cannot."""
    return None if dtype in FLOATS else f"dtype {dtype} is not supported (float64, float32, bfloat16 and float16 are)"


@dataclass(frozen=True)
class Provider:
    """Who computes an operation, and what is known of that.

    Attributes:
        execution: "masked" (all nodes, off-path ones zeroed) or "conditional" (path nodes alone).
        function: the operation's operands -> y, nodes and scores (`fff.reference.PathResult`).
        available: (device, dtype) -> None, or the reason why this machine cannot.
        output: the operands -> y alone, where that is faster than the whole result.
        walk: the operands -> nodes and scores alone, those of `output`, where that is less than the whole result.
        shortcut: activation -> a function (x (..., H), the layer's tensors by name) -> y (..., K), or None for a call
            that it does not take. It must see by itself what it cannot do: a mode of torch's, autocast, gradients,
            another device or dtype, tensors that are missing; forward-mode derivatives its caller sees.
        settle: what it does once with a layer's weights, in place, before it infers with them.
        rank: its place where "auto" looks for the fastest; None where "auto" never takes it.
        devices: kinds of devices that "auto" considers it for; None for all.
        dtypes: what it takes where it is available.
        deepest: depth of the deepest trees that it takes; None for any.
        pays_from: M / L from which it is faster than masked, by kind of device.
        pays_from_other: the same for other kinds of devices.
        timed: whether its speed is of interest: not that of the definition, nor of what is there for exports.
    """

    name: str
    execution: str
    function: Callable[[Any], PathResult]
    available: Callable[[torch.device, torch.dtype], str | None] = takes_floats
    output: Callable[[Any], Tensor] | None = None
    walk: Callable[[Any], tuple[Tensor, Tensor]] | None = None
    shortcut: Callable[[str], Shortcut] | None = None
    settle: Callable[[Iterable[Tensor]], None] | None = None
    rank: int | None = None
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] = FLOATS
    deepest: int | None = None
    pays_from: Mapping[str, float] = field(default_factory=dict)
    pays_from_other: float = gather.PAYS_FROM_OTHER
    timed: bool = True

    def paths(self, operands: Any) -> tuple[Tensor, Tensor]:
        """Nodes and scores, as this provider computes them."""
        return self.walk(operands) if self.walk else self.function(operands)[1:]


@dataclass(frozen=True)
class Operation:
    """What a kind of layer computes, by provider."""

    layer: str
    providers: dict[str, Provider]


def _by_name(*providers: Provider) -> dict[str, Provider]:
    return {provider.name: provider for provider in providers}


def _definition(operands: PathOperands) -> PathResult:
    return path_fff(*operands)


PATH = Operation(
    "PathFFF",
    _by_name(
        Provider("reference", "conditional", _definition, timed=False),
        Provider("masked", "masked", masked),
        Provider(
            "gather", "conditional", gather.gather, walk=gather.visit, rank=3, dtypes=gather.DTYPES,
            pays_from=gather.PAYS_FROM,
        ),
        Provider("aten", "conditional", aten.path, walk=aten.visit, timed=False),
        Provider(
            "cpu", "conditional", cpu.cpu, cpu.available, cpu.output, shortcut=cpu.shortcut, settle=cpu.settle,
            rank=1, devices=("cpu", "meta"), dtypes=cpu.DTYPES, pays_from={"cpu": 2.3},  # depth 2
        ),
        Provider(
            "triton", "conditional", triton.triton, triton.available, triton.output, shortcut=triton.shortcut, rank=2,
            devices=("cuda",),  # on the CPU it is Triton's interpreter
            dtypes=triton.DTYPES, deepest=triton.DEEPEST, pays_from={"cuda": 50.0},  # depth 9; not measured
        ),
    ),
)  # fmt: skip
# Here masked costs all leaves, so "auto" never takes it, and the others pay at every depth.
LEAF = Operation(
    "LeafFFF",
    _by_name(
        Provider("masked", "masked", leaves.all_leaves),
        Provider("gather", "conditional", leaves.own_leaf, walk=leaves.own_walk, rank=2, pays_from_other=0.0),
        Provider("aten", "conditional", aten.leaf, walk=aten.leaf_walk, timed=False),
        Provider(
            "cpu", "conditional", cpu.leaf, cpu.available, cpu.leaf_output, cpu.leaf_walk, rank=1,
            devices=("cpu",), dtypes=cpu.DTYPES, pays_from_other=0.0,
        ),
    ),
)  # fmt: skip
# Its masked form turns all weights into floats in each call: the C++ pays at every depth.
INT8 = Operation(
    "QuantisedPath",
    _by_name(
        Provider("reference", "conditional", int8_definition, timed=False),
        Provider("masked", "masked", int8_masked),
        Provider("aten", "conditional", aten.int8, timed=False),
        Provider(
            "cpu", "conditional", cpu.int8, cpu.available, cpu.int8_output, shortcut=cpu.int8_shortcut,
            settle=cpu.settle, rank=1, devices=("cpu", "meta"), dtypes=cpu.DTYPES, pays_from_other=0.0,
        ),
    ),
)  # fmt: skip
# The same of leaves; its masked form is written in operators that exporters have.
INT8_LEAF = Operation(
    "QuantisedLeaf",
    _by_name(
        Provider("reference", "conditional", int8_leaf_definition, timed=False),
        Provider("masked", "masked", int8_leaf_masked),
        Provider("aten", "masked", int8_leaf_masked, timed=False),
        Provider(
            "cpu", "conditional", cpu.int8_leaf, cpu.available, cpu.int8_leaf_output, settle=cpu.settle,
            rank=1, devices=("cpu", "meta"), dtypes=cpu.DTYPES, pays_from_other=0.0,
        ),
    ),
)  # fmt: skip
PROVIDERS = PATH.providers
OPERATIONS = {operation.layer: operation for operation in (PATH, LEAF, INT8, INT8_LEAF)}
