"""Who starts runs: threads divided, one signal each, nobody left behind, and what is missing or wrong told first."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.plan import Planned
from cramming.sweep import launch
from cramming.sweep.attempt import Attempt
from cramming.sweep.cluster import Submitit
from cramming.sweep.command import launcher_of
from cramming.sweep.launch import NAMES, Here, Launcher
from tests.helpers.commands import inline
from tests.helpers.swept import TINY, folders, planned_of


def chosen(launcher: str, jobs: int | None, *settings: str) -> Launcher:
    return launcher_of(argparse.Namespace(launcher=launcher, jobs=jobs, launch=list(settings)), None, Path("out"))


@pytest.mark.parametrize(
    ("asked", "jobs", "threads"),
    [
        (("local", None), 1, None),
        (("local", 2), 2, 4),
        (("local", 3), 3, 2),
        (("joblib", None), 8, 1),
        (("joblib", 20), 20, 1),
        (("submitit", 2, "cluster=local"), 2, 4),
        (("submitit", 2, "timeout_min=5"), 2, None),  # each has a machine's share of its own
        (("ray", 2), 2, None),
    ],
)
def test_runs_that_share_a_machine_share_its_threads(
    asked: tuple[Any, ...], jobs: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = chosen(*asked)
    assert (found.jobs, found.threads) == (jobs, threads)


def test_an_attempt_has_its_threads_its_log_and_hears_no_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    one = Attempt(["sh", "-c", "echo $OMP_NUM_THREADS $PWD; echo wrong >&2; exit 3"], str(log), str(tmp_path), 2)
    assert one() == 3
    assert log.read_text() == f"before\n2 {tmp_path}\nwrong\n"
    process = Attempt(["sleep", "1000"], str(log), str(tmp_path), None).start()
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_an_interrupted_wait_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Attempt(["sleep", "1000"], str(tmp_path / "log"), str(tmp_path), None)
    waits = iter([KeyboardInterrupt])
    really = subprocess.Popen.wait

    def wait(process: subprocess.Popen, timeout: float | None = None) -> int:
        if (first := next(waits, None)) is not None:
            raise first
        return really(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        one()
    assert one.process is not None
    assert one.process.returncode == -signal.SIGTERM


class Later:
    """A process that has ended when it is looked at for the third time."""

    returncode = 0
    looks = 0

    def poll(self) -> int | None:
        self.looks += 1
        return 0 if self.looks > 2 else None


def test_a_child_of_somebody_else_that_has_ended_does_not_keep_the_loop_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        process = Later()
        assert Here(chosen("local", 1)).ended([process]) == [(process, 0)]
        assert len(slept) == 2
    finally:
        os.waitpid(pid, 0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen]]:
    """Runs are due, and processes that sleep, but for the first one, which ends with status 3."""
    found: list[subprocess.Popen] = []

    def start(run: Planned, threads: int | None) -> subprocess.Popen:
        process = subprocess.Popen(["sleep", "1000"] if found else ["sh", "-c", "exit 3"])
        found.append(process)
        return process

    monkeypatch.setattr(launch, "due", lambda *_: True)
    monkeypatch.setattr(launch, "start", start)
    yield found
    for process in found:
        process.kill()


@pytest.mark.parametrize("name", ["local", "joblib"])
def test_who_leaves_early_leaves_no_run_behind_and_begins_none(
    name: str, started: list[subprocess.Popen], tmp_path: Path
) -> None:
    tasks = [(run, "data") for run in planned_of([*TINY.split(), "seed=0,1,2,3,4,5", *folders(tmp_path)])]
    begun: list[Planned] = []
    ended = chosen(name, 2).train(tasks, begun.append)
    run, _, status = next(ended)
    assert (run, status) == (tasks[0][0], 3)
    ended.close()  # as an error or a signal does
    many = len(started)
    assert 2 <= many <= 3
    assert [process.wait(30) for process in started[1:]] == [-signal.SIGTERM] * (many - 1)
    assert len(started) == many


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_launcher_that_is_not_installed_is_told_before_anything_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    done = inline("sweep", "--launcher", name, f"output_dir={tmp_path}/o", f"results_dir={tmp_path}/r")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"--launcher {name} needs the package {name}" in done.stderr
    assert f"pip install -e '.[{name}]'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["local", "joblib"])
def test_settings_for_a_launcher_that_takes_none_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--launch a=1 is for submitit and ray; --launcher is {name}"):
        chosen(name, 1, "a=1")


@pytest.mark.parametrize(("word", "told"), [("timeout", "KEY=VALUE"), ("a-b=1", "KEY=VALUE"), ("a=[", "no YAML")])
def test_a_setting_that_is_none_is_named(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        chosen("submitit", 1, word)


def test_settings_are_typed_and_what_submitit_refuses_is_told(tmp_path: Path) -> None:
    assert chosen("submitit", 1, "timeout_min=5", "slurm_partition=gpu").settings == {
        "timeout_min": 5,
        "slurm_partition": "gpu",
    }
    pytest.importorskip("submitit")
    for settings in ({"cluster": "local", "timeout_minn": 5}, {"cluster": "nowhere"}):
        with pytest.raises(UserError, match="--launcher submitit with"):
            Submitit(Launcher("submitit", 1, None, settings, tmp_path))


def test_every_launcher_is_one_that_the_command_takes() -> None:
    assert NAMES == ("local", "submitit", "ray", "joblib")
