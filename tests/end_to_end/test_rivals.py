"""The rivals through Hydra and a whole tiny run: trained, measured, stopped and continued, saved, loaded elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramming.train.history import read_history
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.composed import composed
from tests.helpers.repeated import loaded_with_the_layers_alone, stopped_and_continued, weights
from tests.helpers.tiny import tiny_root

SIZES = {
    "moe": [
        "ffn.experts=4",
        "ffn.expert_width=8",
        "ffn.top=2",
        "ffn.balance_rate=0.01",
        "ffn.expert_balance_weight=0.1",
    ],
    "peer": ["ffn.keys=8", "ffn.heads=2", "ffn.top=3", "ffn.query_width=8"],
}
OTHERS = ["ffn.trees=null", "ffn.depth=null"]  # keys that the default experiment sets
TAGS = {"moe": "moe8x4top2", "peer": "peer8x8h2top3"}


def root_of(kind: str, folder: Path) -> PretrainRoot:
    """The tiny run with the layer as the command line composes it."""
    return replace(tiny_root(folder), ffn=composed("pretrain", f"ffn={kind}", *OTHERS, *SIZES[kind]).ffn)


@pytest.mark.parametrize("kind", SIZES)
def test_a_rival_is_trained_measured_stopped_continued_and_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = root_of(kind, tmp_path / "whole"), root_of(kind, tmp_path / "stopped")
    pretrain(whole)
    ours, theirs = stopped_and_continued(stopped, monkeypatch), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    (path,) = (tmp_path / "whole/results/runs").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["ffn"]) == ("finished", TAGS[kind])
    assert record["resolved"]["ffn"]["neurons_used"] == {"moe": 16, "peer": 6}[kind]
    assert 0 < record["metrics"]["usage_entropy"] <= {"moe": 2, "peer": 6}[kind]
    rows = read_history(whole.run_folder / "metrics.jsonl")
    assert ("train/aux_expert_balance" in rows[0]) == (kind == "moe")
    if kind == "moe":
        biases = torch.stack([value for name, value in theirs.items() if name.endswith("b_balance")])
        moves = biases / 0.01  # of 12 steps, each one up, one down or none
        torch.testing.assert_close(moves, moves.round(), atol=1e-4, rtol=0)
        assert 0 < moves.abs().max() <= 12

    assert loaded_with_the_layers_alone(whole, tmp_path) == {"moe": "MoE", "peer": "PEER"}[kind]
