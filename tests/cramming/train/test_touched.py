"""Rows that gradients reached: of whom, and how many of them are shared. Not what travels at a meeting."""

from pathlib import Path

import torch
from torch import nn

from cramming.parallel.world import open_world
from cramming.train.touched import Touched
from fff.layers.path import PathFFF
from tests.helpers.several import several


def layer() -> PathFFF:
    torch.manual_seed(0)
    return PathFFF(4, 4, depth=3)


def pull(tree: PathFFF, x: torch.Tensor) -> set[int]:
    """One backward pass; returns the nodes on the tokens' paths."""
    tree.zero_grad()
    (tree(x) ** 2).sum().backward()
    return set(tree.path(x)[0].flatten().tolist())


def touched_by(sign: float) -> tuple[set[int], dict[str, float], dict[str, float]]:
    tree, draw = layer(), torch.Generator().manual_seed(1)
    world = open_world("train.precision", "fp32", cpu=True, apart=True)
    touched, nodes = Touched(nn.Sequential(tree)), set[int]()
    for _ in range(2):
        nodes |= pull(tree, sign * torch.rand(2, 4, generator=draw))
        touched.note()
    found = touched.taken(world)
    return nodes, found, touched.taken(world)


def test_rows_are_counted_over_all_steps_and_workers(tmp_path: Path) -> None:
    ended = several(touched_by, tmp_path, lambda rank: 1.0 if rank else -1.0)
    (one, found, _), (other, same, after) = (each.value for each in ended)
    assert one != other
    anybody, both = one | other, one & other
    assert found == same
    assert found == {"exchange/touched": len(anybody) / 15, "exchange/overlap": len(both) / len(anybody)}
    assert after == {"exchange/touched": 0.0, "exchange/overlap": 0.0}


def test_one_worker_shares_with_nobody() -> None:
    nodes, found, _ = touched_by(1.0)
    assert found == {"exchange/touched": len(nodes) / 15}
