"""`make status`: what the files of a sweep tell of each run and of the time left; it changes none of them."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cramming.files import write_json
from cramming.plan import Planned, points
from cramming.record import write_record
from cramming.sweep.memory import remember, sweeps_folder
from cramming.train.run import RunFolder
from tests.helpers.commands import inline
from tests.helpers.swept import GPU7, TINY, held_elsewhere

SPEED = 0.5  # tokens/s of the finished run: 2000 of them are 4000 s


@pytest.fixture
def sweep(tmp_path: Path) -> list[Planned]:
    """Six runs of a sweep that was started here."""
    words = [*TINY.split(), "data.files=[text.txt]", f"output_dir={tmp_path}/o", f"results_dir={tmp_path}/r"]
    runs = points([*words, "ffn.depth=2,3", "seed=0,1,2"])
    remember(runs, "sweep.py ffn.depth=2,3 seed=0,1,2")
    return runs


def recorded(run: Planned, status: str, metrics: dict[str, float], **extra: str) -> None:
    root = run.root
    write_record(
        Path(root.results_dir), kind="pretrain", name=root.run_name, status=status, config=root.as_recorded(),
        seed=root.seed, data_fingerprint="f", samples={}, metrics=metrics, extra=dict(extra),
    )  # fmt: skip


def reached(run: Planned, progress: float) -> None:
    """A checkpoint, and a history whose last line is just being written."""
    folder = RunFolder(run.root.run_folder)
    (folder.path / "checkpoints/step-5").mkdir(parents=True)
    row = f'{{"step": 5, "budget/progress": {progress}}}\n'
    folder.history.write_text(row + '{"step": 6, "budget/pro')


def files(folder: Path) -> dict[Path, tuple[int, float]]:
    return {path: (path.stat().st_size, path.stat().st_mtime) for path in folder.rglob("*") if path.is_file()}


def told(home: Path) -> list[str]:
    done = inline("status", str(home / "o"))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_each_run_has_a_line_and_the_hours_are_of_those_that_are_left(sweep: list[Planned], tmp_path: Path) -> None:
    finished, running, failed, diverged, begun, _ = sweep
    recorded(finished, "finished", {"valid_loss": 3.21, "train_tokens_per_s": SPEED})
    reached(running, 0.25)
    held_elsewhere(running)
    write_json(failed.failure_file, {"error": "status 2, error: no room", "host": "gpu3", "when": "2026-01-01"})
    recorded(diverged, "diverged", {}, error="the loss is nan")
    reached(begun, 0.5)
    before = files(tmp_path)
    lines = told(tmp_path)
    assert files(tmp_path) == before
    names = [run.root.run_name for run in sweep]
    assert lines[0] == "sweep      sweep.py ffn.depth=2,3 seed=0,1,2"
    assert lines[1] == f"finished   {names[0]}  ffn.depth=2 seed=0  loss 3.2100"
    assert lines[2].startswith(f"running    {names[1]}  ffn.depth=2 seed=1  25% by {GPU7}2023-11-14")
    assert lines[3:7] == [
        f"failed     {names[2]}  ffn.depth=2 seed=2  failed: status 2, error: no room",
        f"failed     {names[3]}  ffn.depth=3 seed=0  failed: diverged: the loss is nan",
        f"missing    {names[4]}  ffn.depth=3 seed=1  begun, 50%",
        f"missing    {names[5]}  ffn.depth=3 seed=2",
    ]
    assert lines[7] == "of all     1 finished, 1 running, 2 failed, 2 missing"
    # 2000 tokens each, of which 3/4, 1/2 and all are left, at 0.5 tokens/s: 4500 / 0.5 s
    assert lines[8:] == ["hours      about 2.5 with 1 at a time, at the speed of 1 finished runs"]


def test_the_time_is_divided_by_those_that_run(sweep: list[Planned], tmp_path: Path) -> None:
    recorded(sweep[0], "finished", {"valid_loss": 3.0, "train_tokens_per_s": SPEED})
    for run in sweep[1:3]:
        held_elsewhere(run)
    assert told(tmp_path)[-1].startswith("hours      about 2.8 with 2 at a time")  # 5 x 4000 s / 2
    for run in sweep[3:]:
        recorded(run, "finished", {"valid_loss": 3.0, "train_tokens_per_s": SPEED * 2})
    assert told(tmp_path)[-1].startswith("hours      about 0.56 with 2 at a time")  # 2 x 2000 s / 2, by the median


def test_a_run_of_a_dead_owner_is_not_running(sweep: list[Planned], tmp_path: Path) -> None:
    held_elsewhere(sweep[0], silent_for=3600)
    reached(sweep[0], 0.5)
    lines = told(tmp_path)
    assert lines[1].startswith("missing ")
    assert lines[1].endswith("begun, 50%")
    assert lines[-1] == "hours      not known before a run has finished"


def test_nothing_is_left_of_a_sweep_that_has_finished(sweep: list[Planned], tmp_path: Path) -> None:
    for run in sweep:
        recorded(run, "finished", {"valid_loss": 3.0, "train_tokens_per_s": SPEED})
    assert told(tmp_path)[-2:] == ["of all     6 finished, 0 failed, 0 missing", "hours      none"]


def test_every_sweep_of_the_folder_is_told_the_last_one_last_wherever_the_folder_is_now(
    sweep: list[Planned], tmp_path: Path
) -> None:
    other = [replace(run, row="other") for run in sweep[:1]]
    remember(other, "micro.py")
    (first, second) = sorted(sweeps_folder(tmp_path / "o").glob("*.json"), key=lambda path: path.stat().st_size)[::-1]
    os.utime(second, (1, 1))
    held_elsewhere(sweep[0])
    (tmp_path / "o").rename(tmp_path / "elsewhere")
    done = inline("status", str(tmp_path / "elsewhere"))
    commands = [line for line in done.stdout.splitlines() if line.startswith("sweep ")]
    assert commands == ["sweep      micro.py", "sweep      sweep.py ffn.depth=2,3 seed=0,1,2"]
    assert done.stdout.count(GPU7) == 2
    assert first.name != second.name


def test_a_folder_without_a_sweep_and_a_damaged_memory_are_named(sweep: list[Planned], tmp_path: Path) -> None:
    done = inline("status", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/nowhere/sweeps remembers no sweep" in done.stderr
    (memory,) = sweeps_folder(tmp_path / "o").glob("*.json")
    write_json(memory, {"command": "x", "runs": [{"row": "r"}]})
    done = inline("status", str(tmp_path / "o"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{memory} does not describe a sweep" in done.stderr
