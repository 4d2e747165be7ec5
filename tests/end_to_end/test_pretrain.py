"""Whole tiny runs: kill and resume, two processes, stops, divergence, damaged checkpoints."""

import importlib.util
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cramming.errors import Diverged, Stopped, UserError
from cramming.files import is_full_disk
from cramming.train import checkpoint, loop
from cramming.train.checkpoint import Checkpoints
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.pretrain import pretrain
from cramming.train.tracking import check_wandb
from tests.helpers.process import history_of
from tests.helpers.tiny import tiny_root
from tests.helpers.tiny_runs import run_tiny, start_tiny


def model_file(folder: Path) -> Path:
    (path,) = (folder / "outputs" / "runs").glob("*/model/model.safetensors")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = run_tiny(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_killed_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    killed = run_tiny(tmp_path, "send=KILL@8")
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("results/runs/*.json"))
    assert len(history_of(tmp_path)) == 8  # the last checkpoint is of step 6: two rows will be written again
    done = start_tiny(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continues at step 6" in done.stdout
    assert history_of(tmp_path) == history_of(whole)
    ours, theirs = load_file(model_file(tmp_path)), load_file(model_file(whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_follow_one(whole: Path, tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "microbatch=4", processes=2)
    assert done.returncode == 0, done.stderr
    ones, twos = history_of(whole), history_of(tmp_path)
    assert [(row["step"], row["train/batch"]) for row in twos] == [(row["step"], row["train/batch"]) for row in ones]
    for one, two in zip(ones, twos, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], abs=2e-4)


def test_a_process_without_a_share_of_the_validation_set_waits_for_nobody(tmp_path: Path) -> None:
    settings = ("microbatch=4", "valid_sequences=4", "budget_steps=2", "validations=1")
    done = run_tiny(tmp_path, *settings, processes=2)
    assert done.returncode == 0, done.stderr
    assert "valid/loss" in history_of(tmp_path)[-1]


def test_the_record_and_the_exported_model(whole: Path) -> None:
    (path,) = whole.glob("results/runs/*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["samples"]["train_steps"] == 12
    assert record["metrics"]["valid_loss"] == history_of(whole)[-1]["valid/loss"]
    assert record["ffn"] == "2x3"
    config = json.loads((model_file(whole).parent / "config.json").read_text())
    assert config["ffn"]["provider"] == "auto"
    assert (model_file(whole).parent / "tokenizer.json").exists()


def test_training_learns(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, budget_steps=500, microbatch=16, batch_ramp=0.0, lr=6e-3, log_steps=10)
    pretrain(replace(root, model=replace(root.model, hidden_size=64, heads=4)))
    (path,) = tmp_path.glob("results/runs/*.json")
    record = json.loads(path.read_text())
    assert record["metrics"]["valid_loss"] < record["metrics"]["unigram_loss"] - 0.4


def test_a_finished_run_is_recognised(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model_file(whole).stat().st_mtime_ns
    pretrain(tiny_root(whole))
    assert "finished already" in capsys.readouterr().out
    assert model_file(whole).stat().st_mtime_ns == before
    (record,) = whole.glob("results/runs/*.json")
    content = record.read_bytes()
    record.unlink()
    pretrain(tiny_root(whole))
    assert record.read_bytes() == content


def stop_in_fifth_step(patch: pytest.MonkeyPatch) -> None:
    """Let SIGTERM arrive there."""
    step = loop.Trainer.step

    def signalled(self: loop.Trainer) -> loop.Step:
        if self.state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    patch.setattr(loop.Trainer, "step", signalled)


def test_sigterm_leaves_a_checkpoint_and_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny_root(tmp_path)
    with monkeypatch.context() as patch:
        stop_in_fifth_step(patch)
        with pytest.raises(Stopped, match=r"SIGTERM at step 5.*same command continues"):
            pretrain(root)
    assert (root.run_folder / "checkpoints" / "step-5").is_dir()
    pretrain(root)
    assert [row["step"] for row in history_of(tmp_path)] == list(range(1, 13))


def test_a_token_budget_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {"budget_steps": None, "budget_tokens": 4500}  # no whole number of batches: the last one is cut
    pretrain(tiny_root(tmp_path / "whole", **budget))
    root = tiny_root(tmp_path / "stopped", **budget)
    with monkeypatch.context() as patch:
        stop_in_fifth_step(patch)
        with pytest.raises(Stopped):
            pretrain(root)
    pretrain(root)
    assert history_of(tmp_path / "stopped") == history_of(tmp_path / "whole")


def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Trainer.step

    def poisoned(self: loop.Trainer) -> loop.Step:
        if self.state.step == 7:
            with torch.no_grad():
                self.parts.model.model.blocks[0].ffn.w_in.fill_(float("nan"))
        return step(self)

    monkeypatch.setattr(loop.Trainer, "step", poisoned)
    root = tiny_root(tmp_path)
    with pytest.raises(Diverged, match=r"nan at step 8.*gradients not finite in"):
        pretrain(root)
    assert sorted(p.name for p in (root.run_folder / "checkpoints").glob("step-*")) == ["step-3", "step-6"]
    (path,) = tmp_path.glob("results/runs/*.json")
    assert json.loads(path.read_text())["status"] == "diverged"
    assert not root.run_folder.joinpath("model").exists()


def test_the_gradient_that_is_named_is_the_one_that_was_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Trainer.step

    def poisoned(self: loop.Trainer) -> loop.Step:
        if self.state.step == 5:
            weight = self.parts.model.model.blocks[1].ffn.w_out
            weight.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        return step(self)

    monkeypatch.setattr(loop.Trainer, "step", poisoned)
    with pytest.raises(Diverged, match=r"step 6 .*; gradients not finite in model\.blocks\.1\.ffn\.w_out\)"):
        pretrain(tiny_root(tmp_path))


def test_what_a_killed_export_left_is_removed_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny_root(tmp_path, budget_steps=2, checkpoints=1, validations=1)
    done = run_tiny(tmp_path, "send=KILL@export", "budget_steps=2", "checkpoints=1", "validations=1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = root.run_folder.glob(".model.*")
    assert list(left.iterdir())
    pretrain(root)
    assert not list(root.run_folder.glob(".model.*"))
    assert (root.run_folder / "model" / "model.safetensors").exists()


def test_a_non_finite_gradient_stops_the_run_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Trainer.step

    def poisoned(self: loop.Trainer) -> loop.Step:
        if self.state.step == 5:  # the next one ends at a mark
            self.parts.model.decoder.weight.register_hook(lambda gradient: gradient * float("inf"))
        return step(self)

    monkeypatch.setattr(loop.Trainer, "step", poisoned)
    root = tiny_root(tmp_path)
    with pytest.raises(Diverged, match=r"loss is \d.* norm nan at step 6.*gradients not finite in"):
        pretrain(root)
    assert [path.name for path in (root.run_folder / "checkpoints").glob("step-*")] == ["step-3"]


def test_damaged_and_foreign_checkpoints_are_refused(whole: Path, tmp_path: Path) -> None:
    root = tiny_root(whole)
    checkpoints = Checkpoints(root.run_folder / "checkpoints", {"configuration": root.identity}, keep=2)
    newest = checkpoints.list()[-1]
    assert checkpoints.read(newest).step == 12
    with pytest.raises(UserError, match="another configuration"):
        Checkpoints(checkpoints.folder, {"configuration": "other"}, keep=2).read(newest)
    weights = newest / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        checkpoints.read(newest)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        checkpoints.read(newest)
    weights.write_bytes(good)


def test_wandb_offline_writes_its_run_file(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, budget_steps=2, checkpoints=1, validations=1)
    pretrain(replace(root, wandb=WandbConfig(mode="offline")))
    (log,) = root.run_folder.glob("wandb/offline-run-*/run-*.wandb")
    assert b"valid/loss" in log.read_bytes()


def test_without_wandb_only_off_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_wandb(WandbConfig(mode="off"))
    with pytest.raises(UserError, match=r"not installed; choose wandb=off"):
        pretrain(replace(tiny_root(tmp_path), wandb=WandbConfig(mode="auto")))
    assert not (tmp_path / "outputs" / "data").exists()  # refused before the data are prepared


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_known_whoever_met_it(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        checkpoint._save({"weights": torch.zeros(100_000)}, Path("/dev/full"))
    assert is_full_disk(caught.value)
    assert is_full_disk(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(RuntimeError("something else"))


def test_fp16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    root = tiny_root(tmp_path)
    with pytest.raises(UserError, match=r"train\.precision"):
        pretrain(replace(root, train=replace(root.train, precision="fp16")))


def test_bf16_trains(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, budget_steps=2, checkpoints=1, validations=1)
    pretrain(replace(root, train=replace(root.train, precision="bf16")))
    assert history_of(tmp_path)[-1]["valid/loss"] < 6


def test_hours_need_one_budget() -> None:
    with pytest.raises(UserError, match="exactly one"):
        TrainConfig(budget_hours=1.0, budget_steps=5)
    with pytest.raises(UserError, match="exactly one"):
        TrainConfig()
