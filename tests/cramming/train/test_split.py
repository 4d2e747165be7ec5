"""The initial split of a run: which layers, by which tokens, when, and what it is refused for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cramming.errors import UserError
from cramming.model.config import FFNConfig
from cramming.objectives.masked import MaskedTokens
from cramming.parallel.world import open_world
from cramming.train.assemble import assemble, check_layer
from cramming.train.parts import Parts
from cramming.train.split import split_initially
from fff.hardening import hardenable
from fff.regions import recorded_inputs
from fff.usage import measure
from tests.helpers.tiny import tiny_root

LEAF = FFNConfig(kind="leaf", depth=3, leaf_width=4)
SHARED = FFNConfig(trees=2, depth=3, shared=4)


class Noise:
    """Prepared data of random tokens."""

    vocab_size, seq_len = 80, 32

    def __init__(self) -> None:
        self.train = self
        self.tokens = np.random.default_rng(0).integers(7, 80, (60, 32))

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: np.ndarray) -> np.ndarray:
        return self.tokens[indices]

    def token_id(self, token: str) -> int:
        return 6


def parts_of(folder: Path, ffn: FFNConfig | None = None, **train: Any) -> Parts:
    root = tiny_root(folder, initial_split=20, **train)
    world = open_world("train.precision", root.train.precision, cpu=True)
    return assemble(replace(root, ffn=ffn or root.ffn), Noise(), world)


@pytest.mark.parametrize("ffn", [None, SHARED, LEAF])
def test_each_layer_parts_the_tokens_that_the_set_ones_before_it_give(ffn: FFNConfig | None, tmp_path: Path) -> None:
    parts = parts_of(tmp_path, ffn)
    before = {name: value.clone() for name, value in parts.model.named_parameters()}
    state = torch.get_rng_state()
    split_initially(parts)
    assert torch.equal(torch.get_rng_state(), state)
    changed = [name for name, value in parts.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == 2
    assert all(name.endswith(("b_in", "b_node")) for name in changed)
    layers = hardenable(parts.model)
    positions = np.arange(20)
    batch = parts.objective.batch(Noise().take(parts.order.indices(positions)), positions)
    for layer in layers:
        with torch.no_grad(), recorded_inputs(layer) as inputs:
            parts.objective.encode(parts.model.eval(), batch)
        usage = measure(layer.route(inputs[""][0].flatten(0, -2)))
        assert usage.counts.min() >= 79  # of 640 / 8; another batch size may round otherwise
        assert usage.counts.max() <= 81
    assert isinstance(parts.objective, MaskedTokens)


def test_it_is_one_for_all_processes_and_microbatches(tmp_path: Path) -> None:
    def biases(parts: Parts) -> list[torch.Tensor]:
        split_initially(parts)
        return [layer.decision_bias.detach().clone() for layer in hardenable(parts.model)]

    whole = biases(parts_of(tmp_path))
    others = parts_of(tmp_path, microbatch=4)
    assert all(torch.equal(a, b) for a, b in zip(biases(others), whole, strict=True))
    # A process that is not the main one makes no pass, and takes what it is told.
    told = parts_of(tmp_path)
    told.world.main, told.world.tell = False, lambda _: [bias.tolist() for bias in whole]  # type: ignore[assignment]
    told.objective = None  # type: ignore[assignment]
    assert all(torch.equal(a, b) for a, b in zip(biases(told), whole, strict=True))


@pytest.mark.parametrize(
    ("ffn", "words"),
    [
        (FFNConfig(kind="none"), r"ffn=none has no decisions to set; set train\.initial_split=0"),
        (FFNConfig(kind="dense", width=4), "ffn=dense has no decisions"),
        (FFNConfig(kind="moe", experts=4, expert_width=4, top=1), "ffn=moe has no decisions"),
        (FFNConfig(trees=1, depth=3, bias=False), r"ffn\.bias is false.* set ffn\.bias=true or train\.initial_split=0"),
        (FFNConfig(trees=1, depth=3, bias=False, shared=4), r"ffn\.bias is false"),
    ],
    ids=lambda ffn: getattr(ffn, "tag", ""),
)
def test_layers_without_such_decisions_are_refused_before_the_data_are_made(
    ffn: FFNConfig, words: str, tmp_path: Path
) -> None:
    root = replace(tiny_root(tmp_path, initial_split=20), ffn=ffn)
    with pytest.raises(UserError, match=rf"train\.initial_split is 20, and {words}"):
        check_layer(root)
    check_layer(replace(root, train=replace(root.train, initial_split=0)))


def test_more_sequences_than_there_are_and_no_number_are_refused(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts.root = replace(parts.root, train=replace(parts.root.train, initial_split=61))
    with pytest.raises(UserError, match=r"train\.initial_split is 61, and the data have 60 training sequences"):
        split_initially(parts)
    with pytest.raises(UserError, match=r"train\.initial_split is -1; set it to 0 or more"):
        tiny_root(tmp_path, initial_split=-1)
    assert tiny_root(tmp_path).run_name == tiny_root(tmp_path, initial_split=0).run_name
    assert tiny_root(tmp_path).run_name != tiny_root(tmp_path, initial_split=20).run_name
