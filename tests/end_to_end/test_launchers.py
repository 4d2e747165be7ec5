"""Sweeps by joblib, submitit and ray, interrupted and killed: continued they end with an undisturbed sweep's tables."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from cramming.plan import Planned
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, write_txt
from tests.helpers.forked import Forked, forks  # noqa: F401, a fixture
from tests.helpers.swept import TINY, folders, planned_of, untimed

BY = {"joblib": (), "submitit": ("--launch=cluster=local",), "ray": ("--launch=num_cpus=1",)}
CHECKED = "train.validations=4 train.checkpoints=4"
PATIENCE_S = 300.0


def words(home: Path, text: Path, swept: str, tokens: int, launcher: str = "") -> list[str]:
    options = ["--jobs", "2", *(("--launcher", launcher, *BY[launcher]) if launcher else ())]
    budget = f"train.budget_tokens={tokens}"
    return [*options, *swept.split(), *TINY.split(), *CHECKED.split(), budget, *folders(home, text)]


def half_done(runs: list[Planned]) -> bool:
    """Whether one of them has a checkpoint, and has not finished."""
    return any(run.begun and not run.finished() for run in runs)


class Disturbed:
    """A sweep in a process of its own, until so many of its runs have finished and another, half done, is halted."""

    def __init__(self, given: list[str], runs: list[Planned], log: Path, ended: int) -> None:
        self.deadline = time.monotonic() + PATIENCE_S
        self.log, self.sweep = log, Forked("sweep", given, log, session=True)
        self.halted = 0
        while not self.halted:
            self._look()
            if sum(run.finished() is not None for run in runs) >= ended:
                self.halted = next(filter(None, map(self._halt, runs)), 0)

    def interrupt(self) -> None:
        """SIGINT to the sweep alone, as `kill -INT` gives; the halted run goes on when it was told to stop."""
        os.kill(self.sweep.pid, signal.SIGINT)
        while not self._told_to_stop():
            self._look()
        os.kill(self.halted, signal.SIGCONT)
        assert self.sweep.wait() == 128 + signal.SIGINT

    def kill(self) -> None:
        """SIGKILL to the sweep with all that it started directly, and to the run."""
        os.killpg(self.sweep.pid, signal.SIGKILL)
        assert self.sweep.wait() == -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):  # it was in the same group
            os.kill(self.halted, signal.SIGKILL)

    def _look(self) -> None:
        time.sleep(0.005)
        assert self.sweep.poll() is None, self.log.read_text()
        assert time.monotonic() < self.deadline

    def _halt(self, run: Planned) -> int:
        """The process of a run that is half done, halted; 0 for a run that is not."""
        if not run.begun or run.finished() or (holder := run.holder) is None:
            return 0
        os.kill(holder.process, signal.SIGSTOP)
        while (state := self._status(holder.process, "State")) and state[0] not in "TZX":
            self._look()
        if run.finished():
            os.kill(holder.process, signal.SIGCONT)
        return 0 if run.finished() or not state.startswith("T") else holder.process

    def _told_to_stop(self) -> bool:
        return bool(int(self._status(self.halted, "ShdPnd"), 16) >> (signal.SIGTERM - 1) & 1)

    @staticmethod
    def _status(process: int, key: str) -> str:
        """What /proc says of a process; nothing where it has ended."""
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            return ""
        return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{key}:"))


def proved(tmp_path: Path, text: Path, swept: str, launcher: str, *, tokens: int, ended: tuple[int, int]) -> None:
    """Interrupted, killed and continued, by a launcher: the same table as of an undisturbed sweep of this machine."""
    whole, home = tmp_path / "whole", tmp_path / "disturbed"
    done = inline("sweep", *words(whole, text, swept, tokens))
    assert done.returncode == 0, done.stdout + done.stderr
    given = words(home, text, swept, tokens, launcher)
    runs = planned_of(given)
    Disturbed(given, runs, home / "interrupted.log", ended[0]).interrupt()
    nobody_trains(runs)
    assert half_done(runs), "interrupted, a run keeps what it has learnt"
    Disturbed(given, runs, home / "killed.log", ended[1]).kill()
    before = {run.root.run_name for run in runs if run.finished()}
    assert ended[1] <= len(before) < len(runs)
    done = inline("sweep", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not before & set(re.findall(r"^(\S+) +begins$", done.stdout, re.MULTILINE)), "what had finished is kept"
    assert untimed(home) == untimed(whole)
    assert any("(continues at step " in run.log.read_text() for run in runs)


def nobody_trains(runs: list[Planned]) -> None:
    """Interrupted, a sweep leaves no run going on; submitit gives a job a second, its run writes its checkpoint."""
    deadline = time.monotonic() + PATIENCE_S
    while any(run.holder for run in runs):
        time.sleep(0.005)
        assert time.monotonic() < deadline


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_txt(tmp_path / "text.txt", make_documents(150))


@pytest.mark.usefixtures("forks")
def test_joblib_interrupted_and_killed_ends_with_the_same_table(text: Path, tmp_path: Path) -> None:
    proved(tmp_path, text, "ffn.depth=2,3,4", "joblib", tokens=8000, ended=(0, 1))


def test_submitit_interrupted_ends_with_the_same_loss(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    given = words(tmp_path, text, "ffn.depth=2", 20_000, "submitit")
    (run,) = planned_of(given)
    Disturbed(given, [run], tmp_path / "log", 0).interrupt()
    nobody_trains([run])
    assert run.begun
    done = inline("sweep", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(continues at step " in run.log.read_text()
    (own,) = planned_of(words(tmp_path / "whole", text, "ffn.depth=2", 20_000))
    assert inline("pretrain", *own.overrides).returncode == 0
    losses = [record["metrics"]["valid_loss"] for each in (run, own) if (record := each.finished())]
    assert len(losses) == 2
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(BY))
def test_six_runs_interrupted_and_killed_end_with_the_same_table(
    launcher: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(launcher)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # not behind all that the machine does
    proved(tmp_path, text, "ffn.depth=2,3,4 seed=0,1", launcher, tokens=20_000, ended=(1, 3))
