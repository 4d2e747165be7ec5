"""Sweeps that share their folders: no run twice, the dead are followed, the living waited for, failures told apart."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cramming import locks
from cramming.files import write_json
from cramming.locks import Held
from cramming.plan import Planned
from cramming.sweep import command, launch
from cramming.sweep.command import outcome
from tests.helpers.commands import inline
from tests.helpers.forked import Forked, forks  # noqa: F401, a fixture
from tests.helpers.swept import GPU7, TINY, folders, held_elsewhere, planned_of, silence, untimed

Waiting = Callable[[Callable[[], None]], None]


@pytest.fixture
def while_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    """Takes what happens elsewhere while a sweep waits for the first time; the test fails if it never waits."""
    events: list[Callable[[], None]] = []
    happened = 0

    def sleep(_: float) -> None:
        nonlocal happened
        if happened < len(events):
            happened += 1
            events[happened - 1]()

    clock = type("Clock", (), {"sleep": staticmethod(sleep), "strftime": staticmethod(time.strftime)})
    monkeypatch.setattr(command, "time", clock)
    yield events.append
    assert happened == len(events)


def swept(home: Path, seeds: str = "0") -> list[str]:
    return [*TINY.split(), f"seed={seeds}", "ffn.depth=2", *folders(home)]


def trained(run: Planned) -> int:
    """How often it was trained from its beginning, or went on."""
    return len(re.findall(r"^run +", run.log.read_text(), re.MULTILINE))


def begun(printed: str) -> int:
    return len(re.findall(r" begins$", printed, re.MULTILINE))


@pytest.mark.usefixtures("forks")
def test_two_sweeps_at_once_train_each_run_once(tmp_path: Path) -> None:
    words = swept(tmp_path, "0,1,2")
    both = [Forked("sweep", ["--jobs", jobs, *words], tmp_path / f"{jobs}.log") for jobs in ("1", "2")]
    assert [each.wait() for each in both] == [0, 0]
    runs = planned_of(words)
    assert [trained(run) for run in runs] == [1, 1, 1]
    for jobs in ("1", "2"):
        assert "of all     3 finished, 0 failed, 0 missing" in (tmp_path / f"{jobs}.log").read_text()
    assert len(untimed(tmp_path)) > 0


@pytest.mark.usefixtures("forks")
def test_a_run_of_another_machine_is_waited_for_and_taken_over_when_that_is_silent(
    tmp_path: Path, while_waiting: Waiting
) -> None:
    words = swept(tmp_path, "0,1")
    other, mine = planned_of(words)
    lock = held_elsewhere(other)
    found: list[bool] = []

    def machine_dies() -> None:
        found.extend(run.finished() is not None for run in (other, mine))
        silence(lock, locks.DEAD_AFTER_S * 2)

    while_waiting(machine_dies)
    done = inline("sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found == [False, True], "what is free is trained before anything is waited for"
    assert re.search(rf"^{other.root.run_name} is trained by {GPU7}.*; waiting$", done.stdout, re.MULTILINE)
    assert begun(done.stdout) == 2
    assert not lock.exists(), "its lock was followed"


@pytest.mark.usefixtures("forks")
def test_a_dead_owners_run_is_taken_over_at_once(tmp_path: Path) -> None:
    words = swept(tmp_path)
    (run,) = planned_of(words)
    held_elsewhere(run, silent_for=locks.DEAD_AFTER_S * 2)
    done = inline("sweep", *words)
    assert (done.returncode, trained(run)) == (0, 1)
    assert "waiting" not in done.stdout


@pytest.mark.usefixtures("forks")
def test_what_another_machine_finishes_meanwhile_is_not_trained_here(tmp_path: Path, while_waiting: Waiting) -> None:
    words = swept(tmp_path)
    (run,) = planned_of(words)
    lock = held_elsewhere(run)

    def machine_ends() -> None:
        lock.unlink()
        assert Forked("pretrain", run.overrides, run.log).wait() == 0

    while_waiting(machine_ends)
    done = inline("sweep", *words)
    assert (done.returncode, begun(done.stdout), trained(run)) == (0, 0, 1)
    assert "of all     1 finished" in done.stdout


@pytest.mark.usefixtures("forks")
def test_what_fails_on_another_machine_is_told_and_not_tried_before_the_command_is_started_again(
    tmp_path: Path, while_waiting: Waiting
) -> None:
    words = swept(tmp_path)
    (run,) = planned_of(words)
    lock = held_elsewhere(run)

    def machine_fails() -> None:
        write_json(run.failure_file, {"error": "status 2, error: no room", "host": "gpu7", "when": "now"})
        lock.unlink()

    while_waiting(machine_fails)
    done = inline("sweep", *words)
    assert (done.returncode, begun(done.stdout)) == (1, 0)
    assert f"failed     {run.root.run_name}  failed: status 2, error: no room" in done.stdout
    again = inline("sweep", *words)
    assert (again.returncode, begun(again.stdout)) == (0, 1)
    assert run.failure is None


@pytest.mark.usefixtures("forks")
def test_who_comes_second_to_a_run_waits_whatever_the_first_one_prints_meanwhile(
    tmp_path: Path, while_waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = swept(tmp_path)
    (run,) = planned_of(words)
    lock = held_elsewhere(run)
    looked, really = iter([True]), launch.due
    monkeypatch.setattr(launch, "due", lambda *task: next(looked, None) or really(*task))  # both found it free
    free, holder = iter([None]), Planned.holder.fget
    assert holder is not None
    monkeypatch.setattr(Planned, "holder", property(lambda run: next(free, holder(run))))

    def machine_prints_and_dies() -> None:
        assert "is being trained by another process" in run.log.read_text()
        assert run.failure is None
        silence(lock, locks.DEAD_AFTER_S * 2)

    while_waiting(machine_prints_and_dies)
    done = inline("sweep", *words)
    assert (done.returncode, begun(done.stdout), trained(run)) == (0, 2, 1)


def test_what_another_process_wrote_to_the_log_says_nothing_of_how_a_start_ended(tmp_path: Path) -> None:
    (run,) = planned_of(swept(tmp_path))
    run.log.parent.mkdir(parents=True)
    run.log.write_text("error: somewhere is being trained by another process; wait\nstep 5\n")
    assert outcome(run, "data", Held.status) is None
    assert run.failure is None
    run.log.write_text("step 5\nerror: somewhere is being trained by another process; wait\n")
    assert str(outcome(run, "data", -9)).startswith("failed: status -9, ")
    assert run.failure is not None
    assert run.failure["error"].startswith("status -9")
