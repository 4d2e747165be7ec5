"""`make micro` at the size of a test: killed and started again it ends with the tables of a run that nobody touched."""

import csv
import os
import re
import signal
import time
from pathlib import Path

import pytest

from cramming.plan import planned
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, write_txt
from tests.helpers.forked import Forked, forks  # noqa: F401, a fixture

ROWS = ("dense4", "dense16", "1x8")
TINY = (
    "data.vocab_size=200 data.seq_len=16 data.valid_share=0.2 data.examples=[] data.workers=1 model.hidden_size=16 "
    "model.layers=1 model.heads=2 train.budget_tokens=20000 train.batch=8 train.microbatch=8 train.valid_sequences=32 "
    "train.validations=4 train.checkpoints=4 train.compile=false train.precision=fp32"
)
TIMED = ("train_tokens_per_s", "hours")  # [1/s], [h]: of the machine, not of the run


def arguments(home: Path, text: Path, *options: str) -> list[str]:
    folders = [f"data.files=[{text}]", f"output_dir={home}/outputs", f"results_dir={home}/results"]
    return [*options, "--rows", ",".join(ROWS), "--seeds", "0", *TINY.split(), *folders]


def tables(home: Path) -> dict[str, object]:
    """What must not differ: the page of effective widths, and pretraining's numbers but for the time they took."""
    folder = home / "results/tables"
    found: dict[str, object] = {path.name: path.read_text() for path in folder.glob("effective_width.*")}
    with (folder / "pretraining.csv").open() as file:
        found["pretraining"] = [row for row in csv.DictReader(file) if row["quantity"] not in TIMED]
    return found


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_txt(tmp_path / "text.txt", make_documents(150))


def names(home: Path) -> set[str]:
    return {path.name.split("-")[1] for path in home.glob("results/runs/*.json")}


def killed_in(row: str, home: Path, text: Path) -> None:
    """Start the command, and kill all of its processes at once when the row's run has a checkpoint."""
    process = Forked("micro", arguments(home, text), home / "killed.log", session=True)
    while not list(home.glob(f"outputs/runs/micro-{row}-*/checkpoints/step-*")):
        time.sleep(0.005)
        assert process.poll() is None, (home / "killed.log").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.usefixtures("forks")
def test_killed_twice_it_ends_with_the_same_tables(text: Path, tmp_path: Path) -> None:
    whole, home = tmp_path / "whole", tmp_path / "killed"
    done = inline("micro", *arguments(whole, text, "--jobs", "2"))
    assert (done.returncode, names(whole)) == (0, set(ROWS)), done.stdout + done.stderr
    assert "3, of which 3 missing, with a budget of 60,000 tokens" in done.stdout
    killed_in("dense4", home, text)
    killed_in("dense16", home, text)
    there = names(home)
    assert "dense4" in there < set(ROWS)
    done = inline("micro", *arguments(home, text))
    assert done.returncode == 0, done.stdout + done.stderr
    left = 3 - len(there)
    assert f"3, of which {left} missing, with a budget of {20_000 * left:,} tokens" in done.stdout
    assert not re.search("micro-dense4-s0.* begins", done.stdout)
    assert tables(home) == tables(whole)
    assert "no curve: 0 of at least 4 widths" in str(tables(home)["effective_width.md"])
    before = {path: path.read_bytes() for path in home.glob("results/runs/*.json")}
    text.unlink()  # all is there: nothing is prepared any more
    again = inline("micro", *arguments(home, text))
    assert (again.returncode, "3, of which 0 missing" in again.stdout) == (0, True)
    assert before == {path: path.read_bytes() for path in home.glob("results/runs/*.json")}


@pytest.mark.usefixtures("forks")
def test_a_run_that_fails_keeps_no_other_from_running(text: Path, tmp_path: Path) -> None:
    given = arguments(tmp_path, text)
    first = planned("micro", ROWS, [0], [word for word in given if "=" in word])[0].root
    first.run_folder.parent.mkdir(parents=True)
    first.run_folder.touch()  # a file where a folder is needed
    done = inline("micro", *given)
    first.run_folder.unlink()
    assert (done.returncode, names(tmp_path)) == (1, {"dense16", "1x8"})
    assert re.search(f"^failed +{first.run_name} +dense4 +failed: status 2", done.stdout, re.MULTILINE)
    assert "a file where a folder is needed" in done.stdout
    assert (tmp_path / "results/tables/effective_width.md").exists()
    done = inline("micro", *given)
    assert (done.returncode, names(tmp_path)) == (0, set(ROWS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "dense5"], "--rows names dense5"),
        (["--experiment", "quickstart"], "which has no rows"),
        (["--jobs", "0"], "--jobs"),
        (["train.lrr=1"], "train.lrr"),
        (["train.lr=-1"], "train.lr"),
        (["--rows", "1x8", "--seeds", "0", "data.files=[{home}/none.txt]"], "none.txt"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(options: list[str], words: str, tmp_path: Path) -> None:
    folders = [f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results"]
    done = inline("micro", *(option.format(home=tmp_path) for option in options), *folders)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
    assert not (tmp_path / "results").exists()


def test_the_rows_are_the_curve_the_family_and_others() -> None:
    runs = planned("micro", [], [0], ["data.files=[a.txt]"])
    assert len({run.root.run_name for run in runs}) == len(runs) > 10
    dense = [run.root.ffn.settings.neurons_trained for run in runs[:7]]
    assert dense == [0, 4, 16, 64, 256, 512, 1024]
    assert [run.root.ffn.tag for run in runs[7:11]] == ["1x8", "4x6", "16x4", "64x2"]
    assert [run.row for run in runs[:11]] == [run.root.ffn.tag for run in runs[:11]]


def test_all_rows_of_a_seed_come_before_the_next_seed() -> None:
    runs = planned("micro", ROWS, [0, 1, 2], ["data.files=[a.txt]"])
    assert [(run.row, run.root.seed) for run in runs] == [(row, seed) for seed in (0, 1, 2) for row in ROWS]
    assert len({run.root.run_name for run in runs}) == len(runs)
