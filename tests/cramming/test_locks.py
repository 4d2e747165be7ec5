"""Locks by files alone: one holder at a time, known to all, and followed when it is dead, never while it lives."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from cramming import locks
from cramming.locks import Held, Holder, holder, locked
from tests.helpers.children import child


def holding(path: Path) -> Callable[[], None]:
    """Hold the lock until killed."""

    def work() -> None:
        with locked(path, wait=False):
            signal.pause()

    return work


def until_held(path: Path) -> Holder:
    deadline = time.monotonic() + 30
    while (found := holder(path)) is None or not found.process:
        assert time.monotonic() < deadline
    return found


def strange(path: Path, number: int, age: float) -> None:
    """A lock that a process of another machine took, and touched so many seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{number}.lock")
    file.write_text(json.dumps(asdict(Holder("gpu7", 4242, "gpu7 boot pid:[1]", "1", 1.7e9))))
    now = time.time()
    os.utime(file, (now - age, now - age))


def test_a_lock_has_one_holder_that_others_know_and_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    assert holder(path) is None
    with locked(path, wait=False):
        assert holder(path) is not None
        with (
            pytest.raises(Held, match=rf"^it is busy \({os.uname().nodename}, process {os.getpid()}, since 2"),
            locked(path, wait=False, busy="it is busy"),
        ):
            pytest.fail("held twice")
    assert holder(path) is None
    with locked(path, wait=False), locked(tmp_path / "run" / ".other.lock", wait=False):
        pass
    assert sorted(os.listdir(path.parent)) == [".2.lock", ".other.1.lock"]


def test_what_a_killed_process_held_is_free_at_once_also_before_it_is_reaped(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    pid = child(holding(path))
    assert until_held(path).process == pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    with locked(path, wait=False):
        os.waitpid(pid, 0)


def test_a_halted_holder_of_this_machine_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    pid = child(holding(path))
    try:
        until_held(path)
        os.kill(pid, signal.SIGSTOP)
        os.utime(tmp_path / ".1.lock", (1, 1))  # untouched for years
        with pytest.raises(Held), locked(path, wait=False):
            pytest.fail("it is alive")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    own = Holder("here", os.getpid(), locks.here(), "an earlier process's", 0.0)
    (tmp_path / ".1.lock").write_text(json.dumps(asdict(own)))
    assert holder(path) is None


def test_another_machines_lock_is_followed_when_it_gives_no_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    strange(path, 7, age=locks.DEAD_AFTER_S / 2)
    with pytest.raises(Held, match="gpu7, process 4242"), locked(path, wait=False):
        pytest.fail("it is alive")
    strange(path, 7, age=locks.DEAD_AFTER_S * 2)
    assert holder(path) is None
    with locked(path, wait=False):
        assert os.listdir(tmp_path) == [".8.lock"]


def test_a_lock_that_is_just_being_written_is_held(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    (tmp_path / ".1.lock").touch()
    with pytest.raises(Held, match="an unknown machine"), locked(path, wait=False):
        pytest.fail("somebody has it")


def test_of_many_that_follow_a_dead_holder_one_holds_it_at_a_time(tmp_path: Path) -> None:
    path, log = tmp_path / ".lock", tmp_path / "log"

    def work() -> None:
        for _ in range(5):
            with locked(path, wait=True), open(log, "ab", buffering=0) as file:
                file.write(f"{os.getpid()} in\n".encode())
                os.sched_yield()
                file.write(f"{os.getpid()} out\n".encode())

    strange(path, 3, age=locks.DEAD_AFTER_S * 2)
    children = [child(work) for _ in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [what for _, what in lines] == ["in", "out"] * 30
    assert all(one == other for (one, _), (other, _) in zip(lines[::2], lines[1::2], strict=True))


def test_who_looked_long_ago_gets_no_number_that_was_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    strange(path, 5, age=0)
    found, truth = iter([0]), locks._newest
    monkeypatch.setattr(locks, "_newest", lambda path: next(found, truth(path)))
    with pytest.raises(Held, match="gpu7"), locked(path, wait=False):
        pytest.fail("the lock is number 5's")
    assert os.listdir(tmp_path) == [".5.lock"]


def test_a_holder_that_was_followed_ends_before_it_writes_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".lock"
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    pid = child(holding(path))
    until_held(path)
    strange(path, 2, age=0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == Held.status
    assert "has passed to another process (gpu7, process 4242" in capfd.readouterr().err
    assert str(holder(path)).startswith("gpu7")


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with locked(path, wait=False):
        os.utime(tmp_path / ".1.lock", (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / ".1.lock").stat().st_mtime == 1:
            assert time.monotonic() < deadline


def test_a_disk_that_is_full_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / ".lock"
    monkeypatch.setattr(locks.json, "dump", full)
    with pytest.raises(OSError, match="No space"), locked(path, wait=False):
        pytest.fail("nobody would know who has it")
    assert not os.listdir(tmp_path)
