"""W&B: the environment is obeyed, a resumed run is one folder, no network holds nothing up. Not what is logged."""

import json
import sys
import types
import warnings
from dataclasses import fields, replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from cramming.errors import Stopped, UserError
from cramming.glue import suite
from cramming.glue.config import GlueConfig
from cramming.glue.evaluate import evaluate_run
from cramming.glue.root import GlueRoot
from cramming.record import read_records
from cramming.train import loop
from cramming.train.config import WandbConfig
from cramming.train.pretrain import pretrain
from cramming.train.tracking import chosen_mode, close_wandb, open_wandb
from tests.helpers.glue import tiny_run, write_sst2
from tests.helpers.tiny import tiny_root


@pytest.mark.parametrize(
    ("environment", "configured", "mode"),
    [
        ({}, "auto", "offline"),
        ({"WANDB_API_KEY": "k"}, "auto", "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "auto", "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, "online", "offline"),
        ({"WANDB_MODE": "disabled"}, "auto", "off"),
        ({"WANDB_MODE": "disabled"}, "offline", "off"),
        ({"WANDB_DISABLED": "true"}, "auto", "off"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "off", "off"),
    ],
)
def test_the_environment_is_obeyed(
    environment: dict[str, str], configured: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert chosen_mode(WandbConfig(mode=configured)) == mode


def test_a_word_that_wandb_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="WANDB_MODE"):
        chosen_mode(WandbConfig())


class Wandb(types.ModuleType):
    """W&B without a network: what is online fails, as its client does."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.modes: list[str] = []
        self.finished: list[int] = []
        self.given: dict = {}
        self.logged, self.good = 0, 10**9  # rows that it was given, and that it takes

    def init(self, *, mode: str, settings: dict, **_: object) -> "Wandb":
        self.modes.append(mode)
        self.given = settings
        if mode == "online":
            raise RuntimeError("Run initialization has timed out after 10.0 sec.")
        return self

    def Settings(self, **given: object) -> dict:
        return given

    def log(self, row: dict, step: int | None = None) -> None:
        self.logged += 1
        if self.logged > self.good:
            raise RuntimeError("the service process\nis gone")

    def Image(self, file: str) -> str:
        return file

    def Histogram(self, values: list) -> list:
        return values

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)
        if self.good:
            raise RuntimeError("broken pipe")

    def teardown(self) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    """In W&B's place."""
    found = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return found


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_mirror_that_breaks_stops_no_pretraining(tmp_path: Path, wandb: Wandb, good: int) -> None:
    wandb.good = good
    root = replace(tiny_root(tmp_path, budget_steps=4, checkpoints=1, validations=2), wandb=WandbConfig("offline"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pretrain(root)
    assert json.loads((root.run_folder / "record.json").read_text())["status"] == "finished"
    lines = [str(warning.message) for warning in told if "W&B" in str(warning.message)]
    assert lines == [
        "W&B failed (RuntimeError: the service process is gone) and shows no more of this run, which goes on."
    ]
    assert wandb.logged == good + 1, "asked again after it failed"
    assert wandb.finished == [0]


def test_a_mirror_that_breaks_fails_no_finetuning(tmp_path: Path, wandb: Wandb) -> None:
    wandb.good = 0
    with pytest.warns(UserWarning, match="W&B failed"):
        assert evaluate_run(glue_root(tmp_path)) == 0
    assert [record["status"] for record in read_records(tmp_path / "results")] == ["finished"]
    assert wandb.finished == [0]


def test_a_mirror_that_cannot_start_is_done_without(tmp_path: Path, wandb: Wandb, monkeypatch, capsys) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    assert open_wandb(WandbConfig(), name="a", folder=tmp_path, settings={}, group="b") is None
    assert "W&B cannot be started (ZeroDivisionError" in capsys.readouterr().out


def test_wandb_is_told_how_finetuning_ended(tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(suite, "finetune", fail)
    with pytest.warns(UserWarning, match="broken pipe"):
        assert evaluate_run(glue_root(tmp_path)) == 1
    monkeypatch.setattr(suite, "finetune", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.warns(UserWarning, match="broken pipe"), pytest.raises(KeyboardInterrupt):
        evaluate_run(glue_root(tmp_path))
    assert wandb.finished == [1, 1]


def glue_root(folder: Path) -> GlueRoot:
    """One task of one seed on a model of random weights."""
    if not (folder / "run").exists():
        tiny_run(folder / "run")
        write_sst2(folder / "glue")
    tasks = GlueConfig(
        source="local", dir=str(folder / "glue"), tasks=["sst2"], seeds=[0], max_length=16, epochs=1, lr=3e-3
    )
    places = {"output_dir": str(folder / "outputs"), "results_dir": str(folder / "results")}
    known = {field.name: getattr(tiny_root(folder), field.name) for field in fields(tiny_root(folder))}
    return GlueRoot(**{**known, **places, "wandb": WandbConfig("offline")}, glue=tasks, checkpoint=str(folder / "run"))


def test_without_a_network_the_run_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = open_wandb(WandbConfig(), name="a", folder=tmp_path, settings={}, group="b")
    assert wandb.modes == ["online", "offline"]
    assert all(wandb.given[f"{what}_timeout"] <= 10 for what in ("init", "login", "finish"))
    assert "written offline" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="broken pipe"):
        close_wandb(run, 1)
    assert wandb.finished == [1]


def test_a_resumed_run_is_one_folder_with_the_whole_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cramming.train.test_hardening import wandb_history

    monkeypatch.delenv("WANDB_MODE", raising=False)
    root = replace(tiny_root(tmp_path, budget_steps=4, checkpoints=1, validations=1), wandb=WandbConfig("offline"))
    step = loop.Trainer.step

    def stopping(self: loop.Trainer) -> loop.Step:
        if self.state.step == 1:
            self.hooks[0].received = "SIGHUP"  # type: ignore[attr-defined]
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", stopping)
        with pytest.raises(Stopped, match="SIGHUP at step 2"):
            pretrain(root)
    pretrain(root)
    (log,) = root.run_folder.glob("wandb/offline-run-*/run-*.wandb")
    losses = [row for row in wandb_history(log) if "train/loss" in row]
    assert len(losses) == 4
    assert len(list(root.run_folder.glob("wandb/superseded-*"))) == 1
    (picture,) = log.parent.glob("files/media/images/fff/leaf_usage*.png")
    assert picture.name.startswith("leaf_usage_4_"), "named by the step that it shows"
    record = json.loads((root.run_folder / "record.json").read_text())
    assert record["status"] == "finished"
