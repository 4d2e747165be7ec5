"""What goes wrong in one of several processes ends all of them, with one line. Not what they train."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from cramming.errors import UserError
from cramming.parallel import launch
from cramming.train import pretrain as pretrain_module
from cramming.train.loop import Trainer
from cramming.train.pretrain import pretrain
from tests.helpers.several import Ended, free_port, several
from tests.helpers.tiny import tiny_root

SPREAD = {"microbatch": 4, "sharding": "fsdp"}


def errors(ended: list[Ended]) -> list[tuple[int, str]]:
    """Rank and text of each line of error."""
    lines = [(rank, line) for rank, one in enumerate(ended) for line in one.printed.splitlines()]
    return [(rank, line.removeprefix("error: ")) for rank, line in lines if line.startswith("error: ")]


def only_error(ended: list[Ended]) -> str:
    """The one line that they say, which is the main process's; all have ended in good order."""
    assert [one.status for one in ended] == [2] * len(ended), [one.printed for one in ended]
    ((rank, text),) = errors(ended)
    assert rank == 0
    assert "Traceback" not in "".join(one.printed for one in ended)
    return text


def train(rank: int, folder: Path, settings: dict[str, Any], differently: dict[str, Any]) -> None:
    pretrain(tiny_root(folder, **SPREAD | settings | (differently if rank else {})))


def rank(number: int) -> int:
    return number


def test_another_configuration_is_named_by_its_key(tmp_path: Path) -> None:
    text = only_error(several(train, tmp_path, rank, tmp_path, {}, {"lr": 0.5}))
    assert text.startswith("train.lr is 0.5 in process 1 (on ")
    assert "0.003 in the main process" in text


def come_late(rank: int) -> str:
    """The second process asks for what the main one made when that has nothing else to do any more."""
    started = launch.launched(cpu=True)
    with started.together():
        if rank == 1:
            with suppress(dist.DistStoreError):
                started.store.wait(["never"], timedelta(seconds=2))
        return started.from_main(lambda: "made")


def test_the_main_process_stays_until_the_others_have_what_it_made(tmp_path: Path) -> None:
    ended = several(come_late, tmp_path, rank)
    assert [(one.status, one.value) for one in ended] == [(0, "made")] * 2, [one.printed for one in ended]


def other_code(rank: int, folder: Path) -> None:
    if rank == 1:
        pretrain_module.code_hash = lambda: "another"
    pretrain(tiny_root(folder, **SPREAD))


def test_other_code_is_refused(tmp_path: Path) -> None:
    assert only_error(several(other_code, tmp_path, rank, tmp_path)).startswith("the code is 'another' in process 1")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sharding": "none"}, "train.sharding is none, and 2 processes were started together"),
        ({"batch": 12}, "train.batch is 12, and 2 processes with train.microbatch=4 read 8 sequences at once"),
    ],
)
def test_what_all_refuse_is_said_once(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    assert words in only_error(several(train, tmp_path, rank, tmp_path, settings, {}))


@contextmanager
def failing(work: Callable[[], None]) -> Iterator[None]:
    """`work` instead of the third step of process 1."""
    step = Trainer.step

    def patched(self: Trainer) -> Any:
        if self.world.rank == 1 and self.state.step == 2:
            work()
        return step(self)

    Trainer.step = patched  # type: ignore[method-assign]
    yield


def train_failing(folder: Path, kind: str, settings: dict[str, Any]) -> None:
    def user() -> None:
        raise UserError("the mend is here.")

    def system() -> None:
        raise OSError(28, "No space left on device", "/x")

    def bug() -> None:
        raise IndexError("a bug")

    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with failing({"user": user, "system": system, "bug": bug, "killed": killed}[kind]):
        pretrain(tiny_root(folder, **SPREAD | settings))


@pytest.mark.parametrize("sharding", ["fsdp", "ddp"])
@pytest.mark.parametrize(
    ("kind", "words"), [("user", "process 1: the mend is here."), ("system", "process 1: a disk is full (/x: No space")]
)
def test_what_one_process_meets_the_main_one_tells(tmp_path: Path, sharding: str, kind: str, words: str) -> None:
    text = only_error(several(train_failing, tmp_path, tmp_path, kind, {"sharding": sharding}))
    assert text.startswith(words)


def test_a_bug_of_one_ends_all(tmp_path: Path) -> None:
    ended = several(train_failing, tmp_path, tmp_path, "bug", {})
    assert [one.status for one in ended] == [2, 1]
    assert errors(ended) == [(0, "process 1: IndexError: a bug")]
    assert "Traceback" in ended[1].printed
    assert "Traceback" not in ended[0].printed


@pytest.mark.parametrize("sharding", ["fsdp", "ddp"])
def test_a_killed_process_ends_the_others_which_leave_what_is_complete(tmp_path: Path, sharding: str) -> None:
    ended = several(train_failing, tmp_path, tmp_path, "killed", {"sharding": sharding, "checkpoints": 12})
    assert [one.status for one in ended] == [2, -signal.SIGKILL]
    ((number, text),) = errors(ended)
    assert number == 0
    assert text.startswith("another process of this run has ended or cannot be reached (")
    assert text.endswith("The same command goes on from the last checkpoint.")
    pretrain(tiny_root(tmp_path, microbatch=4, checkpoints=12))
    assert list(tmp_path.glob("results/runs/*.json"))


def halt(folder: Path) -> None:
    def wait() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(8)
        signal.pause()

    with failing(wait):
        pretrain(tiny_root(folder, **SPREAD | {"patience_minutes": 0.05}))


def test_a_process_that_does_not_come_to_a_meeting_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    ended = several(halt, tmp_path, tmp_path)
    assert [one.status for one in ended] == [2, 0]
    assert "cannot be reached" in errors(ended)[0][1]


# Beginnings that fail: variables of the launcher, what is said, and by whom.
def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = several(train, tmp_path, rank, tmp_path, {}, {}, MASTER_PORT=port, FFF_START_S="2")
    assert [one.status for one in ended] == [2, 2]
    said = dict(errors(ended))
    assert said[0] == f"The port of 127.0.0.1:{port} is taken on this machine; set MASTER_PORT to a free one."
    assert said[1].startswith(f"The 2 processes did not all meet at 127.0.0.1:{port} within 2 s (")


def test_processes_that_do_not_come_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    ended = several(train, tmp_path, rank, tmp_path, {}, {}, WORLD_SIZE="3", FFF_START_S="2")
    assert [one.status for one in ended] == [2, 2]
    assert all(text.startswith("The 3 processes did not all meet at ") for _, text in errors(ended))
    assert "within 2 s" in dict(errors(ended))[0]


def test_incomplete_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE, MASTER_ADDR is not set"):
        launch.launched(cpu=True)


@pytest.mark.parametrize(
    ("missing", "cpu", "words"),
    [
        ("is_available", True, "no torch.distributed"),
        ("is_gloo_available", True, "no Gloo"),
        ("is_nccl_available", False, "no NCCL"),
    ],
)
def test_a_torch_without_the_backend_is_refused(
    monkeypatch: pytest.MonkeyPatch, missing: str, cpu: bool, words: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist, missing, lambda: False)
    with pytest.raises(UserError, match=words):
        launch.launched(cpu=cpu)
