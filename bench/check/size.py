"""How large the measurement of a machine is: in full on a GPU, small to be tried anywhere. Not what is measured."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.encoder import EAGER, Scale
from cramming.machine import this_device
from fff.testing import ParityCase

DENSE, PATH = "dense 3072", "1x11"  # as bench.encoder names them
GRAPHS = "reduce-overhead"
PRETRAIN_OVERHEAD_S = 60.0  # start, and compiling twice what the part before has compiled; not measured


@dataclass(frozen=True)
class Size:
    """Shapes and times. `model` is the whole model's; its feedforwards are DENSE and PATH."""

    cases: tuple[ParityCase, ...]
    trees: int
    depth: int
    tokens: int  # of the layer's timings
    dtype: torch.dtype  # of the layer's timings
    compiled: bool
    layer_seconds: float  # for each case
    model: Scale
    pretrain_seconds: float  # for each feedforward
    limit_s: float = math.inf  # of the part that runs

    def within(self, limit_s: float) -> "Size":
        """The same for a part with so much time: less for pretraining, but not below a third."""
        each = (limit_s - PRETRAIN_OVERHEAD_S) / 2
        least = self.pretrain_seconds / 3
        return replace(self, limit_s=limit_s, pretrain_seconds=min(self.pretrain_seconds, max(least, each)))


def full_size() -> Size:
    """The paper's layer and model at 16384 tokens, for a GPU."""
    half, single = torch.bfloat16, torch.float32
    wide = {"d_in": 768, "d_out": 768}
    ragged = {"d_in": 48, "d_out": 80}
    cases = tuple(
        ParityCase(trees, depth, tokens=tokens, dtype=dtype, **more)
        for dtype in (half, single, torch.float16)
        for trees, depth, tokens, more in (
            (1, 11, 4096, wide),
            (1, 11, 4096, wide | {"inputs": "skewed"}),
            (1, 11, 1, wide),
            (32, 6, 512, wide),
            (128, 4, 256, wide),
            (3, 2, 33, ragged | {"bias": False, "activation": "relu"}),
            (2, 5, 1000, ragged | {"straight_through": True}),
            (5, 0, 17, ragged),
        )
    )
    cuda, ways = torch.device("cuda"), (EAGER, GRAPHS)
    model = Scale(cuda, (DENSE, PATH), (1,), 128, ways, ("default",), (torch.bfloat16,), turns=5, seconds=2.0)
    return Size(cases, 1, 11, 16384, half, True, 1.0, model, 60.0)


def small_size() -> Size:
    """Seconds on a CPU: the same parts on tiny shapes, uncompiled."""
    ragged: dict[str, Any] = {"d_in": 16, "d_out": 24}
    cases = (
        ParityCase(1, 4, tokens=9, dtype=torch.float32, **ragged),
        ParityCase(2, 3, tokens=5, dtype=torch.bfloat16, **ragged),
    )
    model = Scale(
        this_device(),
        (DENSE, PATH),
        (1,),
        2,
        hidden_size=16,
        heads=2,
        layers=1,
        vocab_size=64,
        length=16,
        turns=1,
    )
    return Size(cases, 1, 3, 8, torch.float32, False, 0.0, model, 1.0)
