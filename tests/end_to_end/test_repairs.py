"""The repairs of trees through Hydra and a whole tiny run: trained, stopped and continued, saved, loaded elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cramming.train.history import read_history
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.composed import composed
from tests.helpers.repeated import loaded_with_the_layers_alone, stopped_and_continued, weights
from tests.helpers.tiny import tiny_root
from tests.helpers.tiny_runs import run_tiny

REPAIRS = {
    "rebalanced": ["ffn.rebalance_rate=0.01"],
    "split": ["train.initial_split=20"],
    "shared": ["ffn.shared=6", "hardening=anneal", "hardening.balance_weight.start=0.1"],
}
TAGS = {"rebalanced": "2x3", "split": "2x3", "shared": "2x3+6"}


def root_of(repair: str, folder: Path) -> PretrainRoot:
    """The tiny run with the repair as the command line composes it."""
    asked = composed("pretrain", "ffn.trees=2", "ffn.depth=3", *REPAIRS[repair])
    root = tiny_root(folder, initial_split=asked.train.initial_split)
    return replace(root, ffn=asked.ffn, hardening=asked.hardening)


@pytest.mark.parametrize("repair", REPAIRS)
def test_a_repair_is_trained_and_goes_on_bit_for_bit(
    repair: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = root_of(repair, tmp_path / "whole"), root_of(repair, tmp_path / "stopped")
    pretrain(whole)
    ours, theirs = stopped_and_continued(stopped, monkeypatch), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (path,) = (tmp_path / "whole/results/runs").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["ffn"]) == ("finished", TAGS[repair])
    plain = replace(tiny_root(tmp_path / "whole"), ffn=composed("pretrain", "ffn.trees=2", "ffn.depth=3").ffn)
    assert whole.group != plain.group


def biases(folder: Path, *, rate: float, microbatch: int, processes: int = 1) -> torch.Tensor:
    """Those of all layers after a split and four steps that leave the weights all but as they were."""
    train = {
        "initial_split": 20,
        "lr": 1e-12,
        "batch": 24,
        "batch_ramp": 0,
        "budget_steps": 4,
        "microbatch": microbatch,
    }
    if processes == 1:
        root = tiny_root(folder, **train)
        pretrain(replace(root, ffn=replace(root.ffn, rebalance_rate=rate)))
    else:
        settings = [f"{key}={value}" for key, value in train.items()]
        done = run_tiny(folder, f"ffn.rebalance_rate={rate}", *settings, processes=processes)
        assert done.returncode == 0, done.stderr
    (path,) = folder.glob("outputs/runs/*/model/model.safetensors")
    return torch.stack([value for key, value in sorted(load_file(path).items()) if key.endswith("b_in")])


def test_biases_begin_and_move_alike_in_microbatches_and_processes(tmp_path: Path) -> None:
    split = biases(tmp_path / "split", rate=0, microbatch=24)
    assert split[..., :7].abs().min() > 1e-8
    assert split[..., 7:].abs().max() < 1e-10  # of leaves
    whole, *others = (
        biases(tmp_path / f"{microbatch}-{processes}", rate=0.01, microbatch=microbatch, processes=processes)
        for microbatch, processes in ((24, 1), (4, 1), (12, 2))
    )
    moves = (whole - split) / 0.01
    torch.testing.assert_close(moves, moves.round(), atol=1e-5, rtol=0)
    assert {-1, 1} <= set(moves.round().sign().flatten().tolist())
    assert moves.abs().max() < 4.1
    assert not moves[..., 7:].round().any()
    for other in others:
        torch.testing.assert_close(other, whole, atol=1e-7, rtol=0)


def test_shared_neurons_are_recorded_and_leave_with_the_model(tmp_path: Path) -> None:
    root = root_of("shared", tmp_path)
    pretrain(root)
    (path,) = (tmp_path / "results/runs").glob("*.json")
    record = json.loads(path.read_text())
    layers = record["resolved"]["ffn"]
    assert (layers["neurons_trained"], layers["neurons_used"], layers["leaves"]) == (36, 14, 32)
    assert 0 < record["metrics"]["usage_entropy"] <= 3
    assert record["provider"]
    rows = read_history(root.run_folder / "metrics.jsonl")
    assert 0 < rows[0]["train/aux_balance"] <= 1
    assert "fff/soft_hard_gap" in rows[-1]
    assert loaded_with_the_layers_alone(root, tmp_path) == "SharedFF"
