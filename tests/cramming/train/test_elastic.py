"""Runs of workers that come and go: alone, killed, stopped, too late. The exchange: tests/cramming/parallel."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cramming.train.pretrain import pretrain
from tests.helpers.elastic import Worker, lighthouse
from tests.helpers.process import history_of, in_a_new_process
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root

SETTINGS = {"sync": "outer", "outer_steps": 3, "microbatch": 4, "batch": 12, "batch_ramp": 0.0}


def folders(folder: Path) -> list[Path]:
    """Of the run's workers, the first one's first."""
    (run,) = folder.glob("outputs/runs/*")
    return [run, *sorted(run.glob("worker-*"))]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_without_torchft_it_is_named(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torchft"] = None
from pathlib import Path
from tests.helpers.tiny import tiny_root
from cramming.errors import UserError
from cramming.train.pretrain import pretrain
try:
    pretrain(tiny_root(Path({str(tmp_path)!r}), sync="outer", lighthouse="http://localhost:1", workers=2))
except UserError as error:
    print("found", error)
"""
    found = in_a_new_process(code, PYTHONPATH=os.pathsep.join(sys.path))
    assert "train.lighthouse needs torchft" in found
    assert "pip install 'fff-cramming[torchft]'" in found


def start(folder: Path) -> None:
    pretrain(tiny_root(folder, **SETTINGS, lighthouse="http://localhost:1"))


def test_workers_that_a_launcher_would_end_together_are_refused(tmp_path: Path) -> None:
    ended = several(start, tmp_path / "logs", tmp_path)
    assert [each.status for each in ended] == [2, 2]
    assert "train.lighthouse is set, and 2 processes were started together" in ended[0].printed


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three workers that nothing disturbs."""
    pytest.importorskip("torchft", reason="needs the optional torchft")
    folder = tmp_path_factory.mktemp("three")
    with lighthouse(3) as address:
        workers = [Worker(folder, address, number) for number in range(3)]
        assert [worker.end() for worker in workers] == [0, 0, 0], [worker.printed[-2000:] for worker in workers]
    return folder


def train(folder: Path) -> None:
    pretrain(tiny_root(folder, **SETTINGS))


def test_undisturbed_they_train_as_processes_that_were_started_together(three: Path, tmp_path: Path) -> None:
    for ended in several(train, tmp_path / "logs", tmp_path, size=3):
        assert ended.status == 0, ended.printed
    (run,), workers = folders(tmp_path), folders(three)
    assert len(workers) == 3
    for worker in workers:
        for name, value in weights(run).items():
            assert torch.equal(value, weights(worker)[name]), name
    theirs, ours = (history_of(folder)[-1] for folder in (tmp_path, three))
    assert ours["exchange/workers"] == theirs["exchange/workers"] == 3
    assert ours["valid/loss"] == pytest.approx(theirs["valid/loss"], rel=1e-6)


def test_the_first_writes_the_record_and_the_others_keep_theirs(three: Path) -> None:
    (path,) = three.glob("results/runs/*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["machine"]["processes"] == 3
    assert record["samples"]["train_tokens"] == 12 * 12 * 32, "of all workers"
    for run in folders(three)[1:]:
        assert len(list(run.glob("runs/*.json"))) == 1


def test_one_that_was_stopped_with_all_others_goes_on_from_its_checkpoint(three: Path, tmp_path: Path) -> None:
    """Stopped between two meetings they stop at the next, and go on from it with the weights and moments of each."""
    with lighthouse(3) as address:
        workers = [Worker(tmp_path, address, number, "send=TERM@4", "checkpoints=1") for number in range(3)]
        assert all(worker.end() for worker in workers)
        for run in folders(tmp_path):
            assert [path.name for path in run.glob("checkpoints/*")] == ["step-6"]
        workers = [Worker(tmp_path, address, number, "checkpoints=1") for number in range(3)]
        assert [worker.end() for worker in workers] == [0, 0, 0], [worker.printed[-2000:] for worker in workers]
    for run, undisturbed in zip(folders(tmp_path), folders(three), strict=True):
        for name, value in weights(undisturbed).items():
            assert torch.equal(value, weights(run)[name]), name


def test_one_goes_on_without_one_that_was_killed_and_a_new_one_takes_over_what_it_has(tmp_path: Path) -> None:
    pytest.importorskip("torchft", reason="needs the optional torchft")
    with lighthouse(2) as address:
        first, second = Worker(tmp_path, address, 0), Worker(tmp_path, address, 2, "send=KILL@7")
        assert second.end() == -signal.SIGKILL
        third = Worker(tmp_path, address, 1)
        assert [first.end(), third.end()] == [0, 0], [first.printed[-2000:], third.printed[-2000:]]
    run, other, _ = folders(tmp_path)
    for name, value in weights(run).items():
        assert torch.equal(value, weights(other)[name]), name
    rows = {row["step"]: row.get("exchange/workers") for row in history_of(tmp_path)}
    assert (rows[6], rows[9], rows[12]) == (2, 1, 2), "in its first meeting the new one has no vote"


def test_a_new_one_goes_on_with_moments_momentum_and_position_of_another(tmp_path: Path) -> None:
    """Adam that began anew would count its own steps, and take large ones."""
    pytest.importorskip("torchft", reason="needs the optional torchft")
    with lighthouse(2) as address:
        first, second = Worker(tmp_path, address, 0, "checkpoints=1"), Worker(tmp_path, address, 2, "send=KILL@7")
        assert second.end() == -signal.SIGKILL
        third = Worker(tmp_path, address, 1, "checkpoints=1")
        assert [first.end(), third.end()] == [0, 0], [first.printed[-2000:], third.printed[-2000:]]
    kept = [next(run.glob("checkpoints/step-12")) for run in folders(tmp_path)[:2]]
    states = [json.loads((folder / "checkpoint.json").read_text())["state"] for folder in kept]
    assert [state["sequences"] for state in states] == [12 * 12] * 2
    for folder in kept:
        moments = torch.load(folder / "optimiser.pt", weights_only=True)["state"].values()
        assert {int(each["step"]) for each in moments} == {12}, "as many as the run's, of which it made three"
    velocities = [
        torch.load(folder / "process-0.pt", weights_only=True)["memory"]["outer"]["velocity"] for folder in kept
    ]
    for name, value in velocities[0].items():
        assert torch.equal(value, velocities[1][name]), name
