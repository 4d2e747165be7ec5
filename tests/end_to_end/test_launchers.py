"""Sweeps by joblib, submitit and ray, interrupted and killed: continued they end with an undisturbed sweep's tables."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cramming.plan import Planned
from cramming.train.hooks import Checkpoint, StopSignals
from cramming.train.loop import Step, Trainer
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, write_txt
from tests.helpers.forked import Forked, forks  # noqa: F401, a fixture
from tests.helpers.swept import TINY, folders, planned_of, untimed

Until = Callable[[int], contextlib.AbstractContextManager[None]]
BY = {"joblib": (), "submitit": ("--launch=cluster=local",), "ray": ("--launch=num_cpus=1",)}
CHECKED = "train.validations=4 train.checkpoints=4"
LONG = 40_000  # tokens: long enough for a signal to come in the middle of a run
PATIENCE_S = 300.0


def words(home: Path, text: Path, swept: str, tokens: int, launcher: str = "") -> list[str]:
    options = ["--jobs", "2", *(("--launcher", launcher, *BY[launcher]) if launcher else ())]
    budget = f"train.budget_tokens={tokens}"
    return [*options, *swept.split(), *TINY.split(), *CHECKED.split(), budget, *folders(home, text)]


def half_done(runs: list[Planned]) -> bool:
    """Whether one of them has a checkpoint, and has not finished."""
    return any(run.begun and not run.finished() for run in runs)


def disturbed(given: list[str], runs: list[Planned], log: Path, ended: int, received: signal.Signals) -> None:
    """Start a sweep; when so many of its runs have finished and another is half done, its process gets a signal."""
    process = Forked("sweep", given, log, session=True)
    deadline = time.monotonic() + PATIENCE_S
    while not half_done(runs) or sum(run.finished() is not None for run in runs) < ended:
        time.sleep(0.005)
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
    if received == signal.SIGKILL:
        os.killpg(process.pid, received)
    else:
        os.kill(process.pid, received)
    assert process.wait() == (128 + received if received == signal.SIGINT else -received)


def waiting(monkeypatch: pytest.MonkeyPatch, tag: str) -> contextlib.AbstractContextManager[None]:
    """Let forked runs of that layer wait after their first checkpoint until a signal comes."""
    save = Checkpoint.on_step

    def on_step(hook: Checkpoint, trainer: Trainer, step: Step) -> None:
        save(hook, trainer, step)
        (stop,) = (each for each in trainer.hooks if isinstance(each, StopSignals))
        while hook.written == trainer.state.step and f"-{tag}-" in str(hook.checkpoints.folder) and not stop.received:
            time.sleep(0.005)

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "on_step", on_step)
            yield

    return patched()


def proved(
    tmp_path: Path, text: Path, swept: str, launcher: str, *, tokens: int, ended: tuple[int, int], until: Until
) -> None:
    """Interrupted, killed and continued, by a launcher: the same table as of an undisturbed sweep of this machine."""
    whole, home = tmp_path / "whole", tmp_path / "disturbed"
    done = inline("sweep", *words(whole, text, swept, tokens))
    assert done.returncode == 0, done.stdout + done.stderr
    given = words(home, text, swept, tokens, launcher)
    runs = planned_of(given)
    for number, received in enumerate((signal.SIGINT, signal.SIGKILL)):
        with until(number):
            disturbed(given, runs, home / f"{received.name}.log", ended[number], received)
        if received == signal.SIGINT:
            assert all(run.holder is None for run in runs), "interrupted, it leaves nobody training"
            assert half_done(runs), "interrupted, a run keeps what it has learnt"
    before = {run.root.run_name for run in runs if run.finished()}
    assert ended[1] <= len(before) < len(runs)
    done = inline("sweep", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not before & set(re.findall(r"^(\S+) +begins$", done.stdout, re.MULTILINE)), "what had finished is kept"
    assert untimed(home) == untimed(whole)
    assert any("(continues at step " in run.log.read_text() for run in runs)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_txt(tmp_path / "text.txt", make_documents(150))


@pytest.mark.usefixtures("forks")
def test_joblib_interrupted_and_killed_ends_with_the_same_table(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = ("1x2", "1x4")  # the first run waits for the interrupt, the last one for the kill
    until = lambda number: waiting(monkeypatch, tags[number])  # noqa: E731
    proved(tmp_path, text, "ffn.depth=2,3,4", "joblib", tokens=2000, ended=(0, 2), until=until)


def test_submitit_interrupted_ends_with_the_same_loss(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    given = words(tmp_path, text, "ffn.depth=2", LONG, "submitit")
    (run,) = planned_of(given)
    disturbed(given, [run], tmp_path / "log", 0, signal.SIGINT)
    assert run.begun
    assert run.holder is None
    done = inline("sweep", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(continues at step " in run.log.read_text()
    (own,) = planned_of(words(tmp_path / "whole", text, "ffn.depth=2", LONG))
    assert inline("pretrain", *own.overrides).returncode == 0
    records = [each.finished() for each in (run, own)]
    assert None not in records
    assert records[0]["metrics"]["valid_loss"] == records[1]["metrics"]["valid_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(BY))
def test_six_runs_interrupted_and_killed_end_with_the_same_table(launcher: str, text: Path, tmp_path: Path) -> None:
    pytest.importorskip(launcher)
    swept, nothing = "ffn.depth=2,3,4 seed=0,1", contextlib.nullcontext
    proved(tmp_path, text, swept, launcher, tokens=LONG, ended=(1, 3), until=nothing)
