"""Checkpoints of spread models: of the moment, whole or absent, and read by any number of processes. Not training."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from bench.made_up import MadeUpData, MadeUpTokens
from cramming.errors import Stopped, UserError
from cramming.parallel.launch import launched
from cramming.parallel.world import open_world
from cramming.train import loop
from cramming.train.assemble import assemble
from cramming.train.checkpoint import Checkpoints
from cramming.train.hardening import HardeningConfig
from cramming.train.loop import Trainer
from cramming.train.parts import Parts
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.process import history_of
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root

LEAKING = HardeningConfig(region_leak=0.2)


def root_of(
    folder: Path, sharding: str = "fsdp", hardening: HardeningConfig | None = None, **train: Any
) -> PretrainRoot:
    settings = {"batch": 24, "microbatch": 4, "batch_ramp": 0.0, "checkpoints": 12, "validations": 4, **train}
    root = tiny_root(folder, sharding=sharding, **settings)
    return replace(root, hardening=hardening or root.hardening)


def until(step: int, root: PretrainRoot) -> None:
    """Train, and let a signal come in the step before that one."""
    before = Trainer.step

    def patched(self: Trainer) -> Any:
        if self.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self)

    loop.MEETING_STEPS = 1
    Trainer.step = patched  # type: ignore[method-assign]
    try:
        pretrain(root)
    finally:
        loop.MEETING_STEPS, Trainer.step = 10, before  # type: ignore[method-assign]


def checkpoints_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("outputs/runs/*/checkpoints/*"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("outputs/runs/*/model/model.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pretrain(root_of(folder))
    return folder


def test_a_run_goes_on_with_any_number_of_processes_spread_or_not(whole: Path, tmp_path: Path) -> None:
    root = root_of(tmp_path)
    for step, size, sharding in ((3, 2, "fsdp"), (5, 1, "fsdp"), (7, 3, "fsdp"), (9, 2, "ddp"), (11, 2, "fsdp")):
        part = root_of(tmp_path, sharding)
        assert part.run_name == root.run_name
        if size == 1:
            with pytest.raises(Stopped, match=f"at step {step} "):
                until(step, part)
        else:
            for ended in several(until, tmp_path, step, part, size=size):
                assert ended.status == 2, ended.printed
            assert f"at step {step} (" in (tmp_path / "0.txt").read_text()
        assert checkpoints_of(tmp_path) == sorted(f"step-{number}" for number in (step - 1, step)), (
            "whole, and no other"
        )
    pretrain(root)
    ones, ours = history_of(whole), history_of(tmp_path)
    assert [row["step"] for row in ours] == list(range(1, 13))
    for one, two in zip(ones, ours, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], abs=2e-5), one["step"]
        assert two["train/batch"] == one["train/batch"]
        assert two.get("valid/loss") == pytest.approx(one.get("valid/loss"), abs=2e-5)
        assert two.get("fff/churn") == one.get("fff/churn"), "which the main process remembers"
    expected = weights(whole)
    assert all(torch.allclose(value, expected[name], atol=5e-4) for name, value in weights(tmp_path).items())


def train_and_kill(root: PretrainRoot) -> None:
    """Let process 1 be killed in the ninth step."""
    before = Trainer.step

    def patched(self: Trainer) -> Any:
        if self.state.step == 8 and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(self)

    Trainer.step = patched  # type: ignore[method-assign]
    pretrain(root)


def test_a_killed_run_of_as_many_goes_on_bit_for_bit(tmp_path: Path) -> None:
    roots = [root_of(tmp_path / name, hardening=LEAKING, checkpoints=4) for name in ("whole", "killed")]
    assert [ended.status for ended in several(pretrain, tmp_path, roots[0])] == [0, 0]
    assert [ended.status for ended in several(train_and_kill, tmp_path, roots[1])] == [2, -signal.SIGKILL]
    ended = several(pretrain, tmp_path, roots[1])
    assert [one.status for one in ended] == [0, 0]
    assert "continues at step 6" in ended[0].printed
    assert history_of(tmp_path / "killed") == history_of(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def parts_of(folder: Path, **changes: Any) -> Parts:
    data = MadeUpData(MadeUpTokens(80, 32), 80, 32)
    launch = launched(cpu=True)
    root = root_of(folder, **changes)
    return assemble(root, data, open_world("p", "fp32", cpu=True, sharded=root.train.sharding == "fsdp", launch=launch))


def write_and_go_on(folder: Path) -> tuple[bool, bool]:
    """Write a checkpoint, spoil the weights before it is done, and read it again."""
    parts = parts_of(folder)
    trainer = Trainer(parts, (parts.objective.example(parts.data.train, 4) for _ in range(9)), [])
    trainer.step()
    checkpoints = Checkpoints(folder / "checkpoints", {"configuration": "a", "data": "b"}, keep=1)
    parameters = list(parts.model.parameters())
    kept = [value for state in parts.optimiser.state.values() for value in state.values()]
    before = [value.detach().clone() for value in (*parameters, *kept)]
    checkpoints.write(parts, {})
    with torch.no_grad():
        for value in (*parameters, *kept):
            value.fill_(7.0)
    spoilt = any(bool((a != b).any()) for a, b in zip(before, (*parameters, *kept), strict=True))
    checkpoints.finish(parts.world)
    checkpoints.load(checkpoints.list()[-1], parts)
    found = [value for state in parts.optimiser.state.values() for value in state.values()]
    same = all(bool((a == b).all()) for a, b in zip(before, (*parameters, *found), strict=True))
    parts.world.end()
    return spoilt, same


def test_what_is_written_is_the_state_of_then(tmp_path: Path) -> None:
    for ended in several(write_and_go_on, tmp_path, tmp_path):
        assert ended.status == 0, ended.printed
        assert ended.value == (True, True)


def generators(folder: Path, sharding: str) -> list[float]:
    """The next random number at the beginning, and after a checkpoint of two processes was read."""
    parts = parts_of(folder, sharding=sharding)
    checkpoints = Checkpoints(folder / "checkpoints", {"configuration": "a", "data": "b"}, keep=1)
    first = torch.rand(()).item()
    if parts.world.size == 2:
        trainer = Trainer(parts, (parts.objective.example(parts.data.train, 4) for _ in range(9)), [])
        trainer.step()
        checkpoints.write(parts, {})
        checkpoints.finish(parts.world)
    else:
        checkpoints.load(checkpoints.list()[-1], parts)
    second = torch.rand(()).item()
    parts.world.end()
    return [first, second]


@pytest.mark.parametrize("sharding", ["fsdp", "ddp"])
def test_with_another_number_of_processes_generators_begin_anew(tmp_path: Path, sharding: str) -> None:
    two = several(generators, tmp_path, tmp_path, sharding)
    three = several(generators, tmp_path, tmp_path, sharding, size=3)
    assert [one.status for one in (*two, *three)] == [0] * 5, [one.printed for one in (*two, *three)]
    drawn = [one.value[1] for one in (*two, *three)]
    assert len({*drawn, *(one.value[0] for one in three)}) == 8, "no process replays what it or another one had drawn"


def train_with_a_bad_disk(root: PretrainRoot, killed: bool) -> None:
    """Let the third checkpoint fail in process 1 while it is written."""
    before = dcp.HuggingFaceStorageWriter.write_data

    def patched(self: Any, *arguments: Any) -> Any:
        if "step-6" in str(self.path) and os.environ["RANK"] == "1":
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device", str(self.path))
        return before(self, *arguments)

    dcp.HuggingFaceStorageWriter.write_data = patched  # type: ignore[method-assign]
    pretrain(root)


@pytest.mark.parametrize("killed", [False, True])
def test_what_cannot_be_written_whole_is_absent(whole: Path, tmp_path: Path, killed: bool) -> None:
    ended = several(train_with_a_bad_disk, tmp_path, root_of(tmp_path, checkpoints=6), killed)
    assert [one.status for one in ended] == [2, -signal.SIGKILL if killed else 2], [one.printed for one in ended]
    lines = [line for one in ended for line in one.printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert ("a disk is full" if not killed else "another process of this run has ended") in lines[0]
    assert "step-6" not in checkpoints_of(tmp_path)
    assert "step-4" in checkpoints_of(tmp_path)
    pretrain(root_of(tmp_path, checkpoints=6))
    assert history_of(tmp_path)[-1]["valid/loss"] == pytest.approx(history_of(whole)[-1]["valid/loss"], abs=2e-5)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    several(until, tmp_path, 2, root_of(tmp_path))
    (shard, *_) = sorted(tmp_path.glob("outputs/runs/*/checkpoints/step-2/shards/*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    with pytest.raises(UserError, match=rf"{shard} is damaged .*; delete .*/step-2 to go on"):
        pretrain(root_of(tmp_path))
    (manifest,) = tmp_path.glob("outputs/runs/*/checkpoints/step-2/checkpoint.json")
    assert set(json.loads(manifest.read_text())["sha256"]) >= {f"shards/{shard.name}", "process-0.pt", "process-1.pt"}
