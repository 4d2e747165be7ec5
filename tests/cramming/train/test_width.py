"""Output weights of wide layers: how much smaller they begin and how much slower they learn, and that no others do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming.errors import UserError
from cramming.model.config import FFNConfig
from cramming.parallel.world import open_world
from cramming.train.assemble import assemble
from cramming.train.parts import Parts
from cramming.train.width import output_weights, width_factor
from tests.cramming.train.test_split import Noise
from tests.helpers.tiny import tiny_root

DENSE = FFNConfig(kind="dense", width=64)
KINDS = {
    "dense": (DENSE, 16 / 64),
    "gated": (FFNConfig(kind="dense", width=128, activation="gated_gelu"), 16 / 128),
    "trees": (FFNConfig(trees=8, depth=3), 16 / 32),
    "shared": (FFNConfig(trees=4, depth=3, shared=4), 16 / 20),
    "leaf": (FFNConfig(kind="leaf", depth=2, leaf_width=20), 16 / 20),
    "moe": (FFNConfig(kind="moe", experts=4, expert_width=10, top=2), 16 / 20),
}


def parts_of(folder: Path, ffn: FFNConfig, base: int, **train: Any) -> Parts:
    root = replace(tiny_root(folder, width_base=base, **train), ffn=ffn)
    return assemble(root, Noise(), open_world("train.precision", root.train.precision, cpu=True))


@pytest.mark.parametrize("kind", KINDS)
def test_output_weights_alone_begin_smaller_by_the_root_and_learn_at_the_share(kind: str, tmp_path: Path) -> None:
    ffn, factor = KINDS[kind]
    plain, scaled = parts_of(tmp_path, ffn, 0), parts_of(tmp_path, ffn, 16)
    wide = output_weights(scaled.model)
    assert width_factor(scaled.root) == factor
    assert len(wide) == (2 if kind == "shared" else 1) * scaled.root.model.layers
    before = dict(plain.model.named_parameters())
    for name, weight in scaled.model.named_parameters():
        expected = before[name] * factor**0.5 if name in wide else before[name]
        assert torch.equal(weight, expected), name
    slow = [group for group in scaled.optimiser.param_groups if "lr_factor" in group]
    assert {id(p) for group in slow for p in group["params"]} == {id(weight) for weight in wide.values()}
    assert [(group["lr_factor"], group["weight_decay"] * factor) for group in slow] == [(factor, pytest.approx(0.01))]
    counted = [sum(len(group["params"]) for group in parts.optimiser.param_groups) for parts in (plain, scaled)]
    assert counted[0] == counted[1]


def test_up_to_the_base_nothing_changes(tmp_path: Path) -> None:
    plain, same = parts_of(tmp_path, DENSE, 0), parts_of(tmp_path, DENSE, 64)
    assert all(map(torch.equal, plain.model.parameters(), same.model.parameters()))
    assert [group.keys() for group in plain.optimiser.param_groups] == [g.keys() for g in same.optimiser.param_groups]
    assert plain.root.run_name != parts_of(tmp_path, DENSE, 16).root.run_name


def test_a_step_moves_output_weights_by_the_share(tmp_path: Path) -> None:
    """AdamW's first step is the rate in every weight, whatever the gradient's size."""
    from cramming.train.loop import Trainer

    parts = parts_of(tmp_path, DENSE, 16, weight_decay=0.0)
    before = {name: weight.detach().clone() for name, weight in parts.model.named_parameters()}
    for weight in parts.model.parameters():
        weight.grad = torch.full_like(weight, 1e-3)
    Trainer(parts, iter([]), []).update(torch.zeros(()), 0.01)
    wide = output_weights(parts.model)
    for name, weight in parts.model.named_parameters():
        moved = (before[name] - weight).detach()
        assert torch.allclose(moved, torch.full_like(moved, 0.01 / 4 if name in wide else 0.01), rtol=1e-3), name


def test_a_base_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.width_base is -1; set it to 0 or more"):
        tiny_root(tmp_path, width_base=-1)
