"""Signals and clocks of whole tiny runs, in one process and in two. Not what a resumed run computes (test_pretrain)."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cramming.data import corpus, workers
from cramming.data.prepare import prepare
from cramming.train.pretrain import pretrain
from tests.helpers import tiny
from tests.helpers.process import history_of
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root
from tests.helpers.tiny_runs import run_tiny, start_tiny


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "outputs" / "runs").iterdir()
    return found


def record_of(folder: Path) -> dict:
    return json.loads((run_folder(folder) / "record.json").read_text())


def unfinished(folder: Path) -> list[str]:
    """What is hidden and no lock: nothing, where all was written whole."""
    return [str(path) for path in folder.rglob(".*") if path.suffix != ".lock" and path.name != ".lock"]


def test_a_signal_to_one_process_ends_both_at_one_step_and_they_go_on(tmp_path: Path) -> None:
    done = start_tiny(tmp_path, "microbatch=4", "checkpoints=1", "send=TERM@2", "rank=1", processes=2)
    assert done.returncode != 0
    assert "Stopped by a signal to another process at step 10" in done.stderr
    assert done.stderr.count("Traceback") == 1, "the launcher's own, whenever a process ends with a status"
    (checkpoint,) = (run_folder(tmp_path) / "checkpoints").iterdir()
    assert checkpoint.name == "step-10", "the first step at which processes meet"
    assert {path.name for path in checkpoint.glob("process-*.pt")} == {"process-0.pt", "process-1.pt"}
    done = run_tiny(tmp_path, "microbatch=4", "checkpoints=1", processes=2)
    assert done.returncode == 0, done.stderr
    assert "continues at step 10" in done.stdout
    assert [row["step"] for row in history_of(tmp_path)] == list(range(1, 13))
    assert record_of(tmp_path)["machine"]["processes"] == 2


def test_hours_end_on_all_processes_at_one_step(tmp_path: Path) -> None:
    budget = ("budget_steps=null", f"budget_hours={2 / 3600}", "checkpoints=1", "validations=1")
    done = run_tiny(tmp_path, "microbatch=4", *budget, processes=2)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (run_folder(tmp_path) / "checkpoints").iterdir()
    assert {path.name for path in checkpoint.glob("process-*.pt")} == {"process-0.pt", "process-1.pt"}
    step = history_of(tmp_path)[-1]["step"]
    assert checkpoint.name == f"step-{step}"
    assert step % 10 == 0, "a budget in hours moves where processes meet"
    assert record_of(tmp_path)["metrics"]["hours"] * 3600 >= 2


@pytest.mark.parametrize("place", ["5", "checkpoint"])
def test_a_second_interrupt_ends_at_once_and_leaves_nothing_half(tmp_path: Path, place: str) -> None:
    done = run_tiny(tmp_path, f"send=INT+INT@{place}", "checkpoints=3")
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("stopped by Ctrl-C\n")
    assert not list(tmp_path.glob("results/runs/*.json"))
    complete = [path.name for path in (run_folder(tmp_path) / "checkpoints").glob("[!.]*")]
    assert complete == (["step-4"] if place == "5" else [])
    pretrain(tiny_root(tmp_path, checkpoints=3))
    assert [row["step"] for row in history_of(tmp_path)] == list(range(1, 13))
    assert not unfinished(tmp_path)


def prepared(folder: Path, when: str) -> None:
    """Prepare data with two workers in a process group of their own, which Ctrl-C reaches at that time."""
    os.setsid()
    (folder / "group").write_text(str(os.getpid()))
    start, in_order = workers.start_worker, workers.in_order

    def struck_early(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(*arguments)

    def struck_while_they_work(*arguments: Any) -> Iterator[Any]:
        for number, result in enumerate(in_order(*arguments)):
            if number == 0:
                os.killpg(0, signal.SIGINT)
            yield result

    if when == "starting":
        workers.start_worker = struck_early
    else:
        corpus.in_order = struck_while_they_work
    root = tiny_root(folder)
    prepare(replace(root.data, workers=2), Path(root.output_dir))


@pytest.mark.parametrize(("when", "status"), [("starting", 0), ("working", 128 + signal.SIGINT)])
def test_an_interrupt_of_preparation_ends_its_workers_without_a_word_of_theirs(
    tmp_path: Path, when: str, status: int
) -> None:
    (ended,) = several(prepared, tmp_path / "told", tmp_path, when, size=1)
    group, deadline = int((tmp_path / "group").read_text()), time.monotonic() + 60
    while alive(group):
        assert time.monotonic() < deadline, "workers outlived their parent"
    told = (tmp_path / "told" / "0.txt").read_text()  # when they have all ended, who may have written too
    assert ended.status == status, told
    assert "Traceback" not in told
    assert "KeyboardInterrupt" not in told
    if status:
        assert told.endswith("stopped by Ctrl-C\n")
        assert not [path for path in (tmp_path / "outputs" / "data").glob("*") if path.is_dir()]


def alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_time_in_which_a_run_was_halted_is_not_of_its_hours(tmp_path: Path) -> None:
    budget = ("budget_steps=null", f"budget_hours={3 / 3600}", "checkpoints=1", "validations=1")
    process = multiprocessing.get_context("fork").Process(target=tiny.run, args=([str(tmp_path), *budget],))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob("outputs/runs/*/metrics.jsonl")):
            assert process.is_alive(), "ended before it trained"
            assert time.monotonic() < deadline, "no row in a minute"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        halted = time.monotonic()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(4)  # longer than the budget: what is tested is the time itself
        halted = time.monotonic() - halted
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode == 0
    record = record_of(tmp_path)
    assert record["seconds_not_counted"] == pytest.approx(halted, abs=1)
    assert 3 <= record["metrics"]["hours"] * 3600 < 3 + halted / 2
    assert record["curve"][-1]["progress"] == 1
