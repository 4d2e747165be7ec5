"""Runs that begin with another one's weights, and with documents dealt to each worker: equal, named, refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cramming.data.dealt import deal
from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.files import sha256
from cramming.parallel.world import open_world
from cramming.train.assemble import assemble
from cramming.train.config import TrainConfig
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.process import history_of
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root

OUTER: dict[str, Any] = {"sync": "outer", "outer_steps": 3, "microbatch": 4, "batch_ramp": 0.0}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    return pretrain(tiny_root(tmp_path_factory.mktemp("first"), budget_steps=4))


def dealt_for(root: PretrainRoot, folder: Path, workers: int = 2) -> Path:
    data = prepare(root.data, Path(root.output_dir))
    documents = int(data.unigram_counts()[data.token_id("<sep>")]) + 1
    deal(data, np.arange(documents) % workers, workers, folder, {})
    return folder


def test_a_run_begins_with_the_weights_of_another(first: Path, tmp_path: Path) -> None:
    root = tiny_root(tmp_path, start=str(first), budget_steps=2)
    data = prepare(root.data, Path(root.output_dir))
    parts = assemble(root, data, open_world("train.precision", "fp32", cpu=True))
    saved = load_file(first / "model" / "model.safetensors")
    begun = parts.model.state_dict()
    assert all(torch.equal(begun[name], saved[name]) for name in saved)
    assert parts.state.step == 0
    assert not parts.optimiser.state_dict()["state"]
    pretrain(root)
    (record,) = (tmp_path / "results" / "runs").glob("*.json")
    assert json.loads(record.read_text())["start"] == sha256(first / "model" / "model.safetensors")


def test_a_model_that_does_not_fit_is_refused(first: Path, tmp_path: Path) -> None:
    root = tiny_root(tmp_path, start=str(first))
    with pytest.raises(UserError, match=r"train\.start: model\.blocks\.0\.\S+ is \[2, 15\S* .* and \[2, 31"):
        pretrain(replace(root, ffn=replace(root.ffn, depth=4)))
    with pytest.raises(UserError, match="reads other tokens than"):
        pretrain(replace(root, data=replace(root.data, vocab_size=79)))
    with pytest.raises(UserError, match="holds no finished model"):
        pretrain(tiny_root(tmp_path, start=str(tmp_path)))


def test_a_finished_run_is_not_taken_for_one_of_another_start(first: Path, tmp_path: Path) -> None:
    home = tmp_path / "here"
    home.mkdir()
    (home / "model").symlink_to(first / "model")
    root = tiny_root(tmp_path, start=str(home), budget_steps=2)
    pretrain(root)
    pretrain(root)  # finished, and known
    (home / "model").unlink()
    (home / "model").symlink_to(Path(root.run_folder) / "model")
    with pytest.raises(UserError, match=r"is finished already, with another content of train\.start"):
        pretrain(root)
    (home / "model").unlink()
    pretrain(root)  # what is gone is not compared


def train_on(folder: Path, documents: Path | None, **settings: Any) -> None:
    pretrain(tiny_root(folder, **OUTER, **settings, documents=str(documents) if documents else None))


def test_each_worker_trains_on_its_own_documents(tmp_path: Path) -> None:
    root = tiny_root(tmp_path / "own", **OUTER)
    folder = dealt_for(root, tmp_path / "dealt")
    for name, documents in (("own", folder), ("all", None)):
        for ended in several(train_on, tmp_path / name, tmp_path / name, documents):
            assert ended.status == 0, ended.printed
    own, everything = history_of(tmp_path / "own"), history_of(tmp_path / "all")
    assert own[0]["train/loss"] != everything[0]["train/loss"], "other text"
    assert own[-1]["budget/tokens"] == everything[-1]["budget/tokens"]
    (record,) = (tmp_path / "own" / "results" / "runs").glob("*.json")
    content = json.loads(record.read_text())
    assert content["data_fingerprint"] == prepare(root.data, Path(root.output_dir)).fingerprint
    assert len(content["documents"]) == 16
    assert 0 < content["metrics"]["exchange_overlap"] <= 1
    assert 0 < content["metrics"]["exchange_touched"] <= 1


def test_documents_dealt_to_more_workers_than_there_are_are_refused(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, **OUTER)
    folder = dealt_for(root, tmp_path / "dealt")
    with pytest.raises(UserError, match="was dealt to 2 workers, and 1 are here"):
        pretrain(replace(root, train=replace(root.train, documents=str(folder))))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"documents": "x"}, r"train\.documents is x, and belongs to train\.sync=outer"),
        ({"start": "x", "initial_split": 4}, r"train\.start is given: set train\.initial_split=0"),
        (
            {"documents": "x", "sync": "outer", "initial_split": 4},
            r"train\.documents is given: set train\.initial_split=0",
        ),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainConfig(budget_steps=1, **settings)


def test_what_a_run_begins_with_names_it(tmp_path: Path) -> None:
    plain = tiny_root(tmp_path, **OUTER)
    names = {tiny_root(tmp_path, **OUTER, **{key: "x"}).run_name for key in ("start", "documents")}
    assert len({plain.run_name, *names}) == 3
