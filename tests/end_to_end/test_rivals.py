"""Rivals and controls in a whole tiny run: trained, measured, stopped and continued, saved, loaded elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming.model import CrammedConfig, CrammedForMaskedLM
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


def root_of(folder: Path, *layer: str) -> PretrainRoot:
    """The tiny run with the layer as the command line composes it."""
    return replace(tiny_root(folder), ffn=composed("pretrain", *layer).ffn)


def trained_twice(
    folder: Path, patches: pytest.MonkeyPatch, *layer: str
) -> tuple[PretrainRoot, dict[str, torch.Tensor], dict[str, Any]]:
    """A run, its weights, which are those of one that was stopped and continued, and its record."""
    whole, stopped = root_of(folder / "whole", *layer), root_of(folder / "stopped", *layer)
    pretrain(whole)
    ours, theirs = stopped_and_continued(stopped, patches), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (path,) = (folder / "whole/results/runs").glob("*.json")
    return whole, theirs, json.loads(path.read_text())


@pytest.mark.parametrize("kind", SIZES)
def test_a_rival_is_trained_measured_stopped_continued_and_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, theirs, record = trained_twice(tmp_path, monkeypatch, f"ffn={kind}", *OTHERS, *SIZES[kind])
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


@pytest.mark.parametrize("path", ["random", "token"])
def test_a_control_keeps_its_paths_through_training_stops_and_loading(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = ("ffn=fixed", "ffn.trees=2", "ffn.depth=3", f"ffn.path={path}")
    whole, trained, record = trained_twice(tmp_path, monkeypatch, *layer)
    torch.manual_seed(whole.seed)
    fresh = CrammedForMaskedLM(CrammedConfig.from_pretrained(whole.run_folder / "model")).state_dict()
    fixed = [name for name in trained if name.endswith({"random": "w_decide", "token": "salt"}[path])]
    assert len(fixed) == 2
    assert all(torch.equal(trained[name], fresh[name]) for name in fixed)
    assert not any(torch.equal(trained[name], fresh[name]) for name in trained if ".ffn." in name and name not in fixed)

    assert (record["status"], record["ffn"]) == ("finished", f"{path}2x3")
    assert record["resolved"]["ffn"]["neurons_used"] == 8
    assert record["resolved"]["ffn"]["neurons_trained"] == 30
    assert 0 < record["metrics"]["usage_entropy"] <= 3
    assert ("decided" in record["metrics"]) == (path == "random")  # a hash takes no decisions
    if path == "token":  # nothing moves a probe token to another leaf
        assert record["metrics"]["churn"] == 0

    assert loaded_with_the_layers_alone(whole, tmp_path) == "FixedPath"
