"""Workers that train alone and meet: marks, names, checkpoints, records, bytes. Not the exchange itself."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cramming.errors import UserError
from cramming.train.config import TrainConfig
from cramming.train.loop import Trainer
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.process import history_of
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root

OUTER = {"sync": "outer", "outer_steps": 3, "microbatch": 4, "batch_ramp": 0.0}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("outputs/runs/*/model/model.safetensors")
    return load_file(path)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("results/runs/*.json")
    return json.loads(path.read_text())


def test_one_worker_whose_outer_step_goes_to_the_mean_trains_as_without(tmp_path: Path) -> None:
    settings = {"microbatch": 4, "batch_ramp": 0.0}
    pretrain(tiny_root(tmp_path / "plain", **settings))
    pretrain(tiny_root(tmp_path / "outer", **OUTER, outer_lr=1.0, outer_momentum=0.0))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "outer"))
    plain, outer = history_of(tmp_path / "plain"), history_of(tmp_path / "outer")
    assert [row["train/loss"] for row in plain] == [row["train/loss"] for row in outer]
    assert plain[-1]["valid/loss"] == outer[-1]["valid/loss"]


def test_an_outer_step_is_nesterovs() -> None:
    from cramming.parallel.outer import Outer
    from cramming.parallel.peers import Peers

    torch.manual_seed(0)
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    outer = Outer(model, Peers(), lr=0.7, momentum=0.9)
    sgd = torch.optim.SGD(other.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(4):
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            move = torch.randn_like(ours)
            ours.data.add_(move)
            theirs.grad = -move
        sgd.step()
        outer.meet()
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_marks_wait_for_the_next_meeting(tmp_path: Path) -> None:
    pretrain(tiny_root(tmp_path, **OUTER, validations=4, checkpoints=12, keep_checkpoints=9, budget_steps=11))
    assert [row["step"] for row in history_of(tmp_path) if "valid/loss" in row] == [3, 6, 9, 11]
    names = {path.name for path in tmp_path.glob("outputs/runs/*/checkpoints/*")}
    assert names == {"step-3", "step-6", "step-9", "step-11"}


def test_keys_of_outer_steps_rename_no_other_run(tmp_path: Path) -> None:
    plain = tiny_root(tmp_path)
    assert "outer" not in json.dumps(plain._essence())
    assert tiny_root(tmp_path, sync="outer").run_name != plain.run_name
    rows, dense = (tiny_root(tmp_path, sync="outer", exchange=kind) for kind in ("rows", "dense"))
    assert rows.run_name == dense.run_name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"outer_steps": 5}, "train.outer_steps is 5, and belongs to train.sync=outer"),
        ({"exchange": "dense"}, "train.exchange is dense, and belongs to train.sync=outer"),
        ({"sync": "outer", "sharding": "fsdp"}, "train.sharding is fsdp, and workers of train.sync=outer"),
        ({"sync": "outer", "precision": "fp16"}, "train.precision is fp16"),
        ({"sync": "outer", "outer_momentum": 1.0}, "train.outer_momentum"),
        ({"sync": "sometimes"}, "train.sync"),
        ({"workers": 2}, "train.workers is 2, and belongs to train.sync=outer"),
        ({"lighthouse": "http://here:1"}, "train.lighthouse is http://here:1, and belongs to train.sync=outer"),
        ({"sync": "outer", "workers": 2}, "train.workers is 2, and belongs to workers that meet by train.lighthouse"),
        ({"sync": "outer", "workers": 2, "worker": 2}, "train.worker is 2 and train.workers is 2"),
        ({"sync": "outer", "lighthouse": "here:1"}, "train.lighthouse is 'here:1'; give it as http://HOST:PORT"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainConfig(budget_steps=1, **settings)


def test_workers_of_a_clock_each_are_refused() -> None:
    with pytest.raises(UserError, match=r"train.budget_hours has a clock in each worker"):
        TrainConfig(budget_hours=1.0, sync="outer", lighthouse="http://here:1")


def test_how_many_workers_there_are_names_a_run_and_which_one_this_is_does_not(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sync": "outer", "lighthouse": "http://here:1"}
    two, three = (tiny_root(tmp_path, **settings, workers=number) for number in (2, 3))
    last = tiny_root(tmp_path, **settings | {"lighthouse": "http://there:2"}, workers=3, worker=2)
    assert two.run_name != three.run_name == last.run_name
    assert last.run_folder == three.run_folder / "worker-2"
    assert three.records == Path(three.results_dir), "number 0 writes the record"
    assert last.records == last.run_folder


def root_of(folder: Path, ffn: dict[str, Any], **settings: Any) -> PretrainRoot:
    root = tiny_root(folder, **{**OUTER, **settings})
    return replace(root, ffn=replace(root.ffn, **ffn))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows": ({"depth": 7}, {}),
    "dense": ({"depth": 7}, {"exchange": "dense"}),
    "balanced": ({"rebalance_rate": 0.01}, {}),
    "every step": ({}, {"sync": "every_step", "outer_steps": TrainConfig.outer_steps}),
}


def train_all(folder: Path) -> None:
    for name, (ffn, settings) in CASES.items():
        pretrain(root_of(folder / name, ffn, **settings))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for ended in several(train_all, folder, folder):
        assert ended.status == 0, ended.printed
    return folder


def test_rows_that_differ_give_what_all_rows_give(two: Path) -> None:
    assert same(weights(two / "rows"), weights(two / "dense"))
    rows, dense = (history_of(two / name) for name in ("rows", "dense"))
    assert [row.get("valid/loss") for row in rows] == [row.get("valid/loss") for row in dense]
    sent = {name: record(two / name)["metrics"]["exchange_bytes_per_token"] for name in ("rows", "dense")}
    assert sent["rows"] < sent["dense"]


@pytest.mark.parametrize("name", CASES)
def test_records_say_what_two_workers_sent(two: Path, name: str) -> None:
    found, rows = record(two / name), history_of(two / name)
    assert found["status"] == "finished"
    assert found["machine"]["processes"] == 2
    assert found["samples"]["train_tokens"] == 12 * 16 * 32, "of both workers"
    assert found["metrics"]["exchange_bytes_per_token"] == rows[-1]["exchange/bytes_per_token"]


def test_bytes_are_those_of_the_weights(two: Path) -> None:
    for name, meetings in (("dense", 4), ("every step", 12)):
        own = sum(each.numel() * 4 for each in weights(two / name).values())
        sent = record(two / name)["metrics"]["exchange_bytes_per_token"] * 12 * 16 * 32
        assert sent == pytest.approx(2 * own * meetings, rel=1e-3), "each of two sends all once per exchange"


def train_to(folder: Path, steps: int | None) -> None:
    """The run to its end, or until it is asked to stop after as many steps, between two meetings."""
    step = Trainer.step

    def asked(self: Trainer) -> Any:
        if self.state.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    Trainer.step = asked  # type: ignore[method-assign]
    pretrain(root_of(folder, {}, checkpoints=1))


def test_a_run_that_was_stopped_goes_on_with_every_workers_moments(tmp_path: Path) -> None:
    logs, whole, parts = (tmp_path / name for name in ("logs", "whole", "parts"))
    for ended in several(train_to, logs, whole, None):
        assert ended.status == 0, ended.printed
    for ended in several(train_to, logs, parts, 4):
        assert ended.status != 0, ended.printed
    assert [path.name for path in parts.glob("outputs/runs/*/checkpoints/*")] == ["step-6"], "the next meeting"
    for ended in several(train_to, logs, parts, None):
        assert ended.status == 0, ended.printed
    assert same(weights(parts), weights(whole))
