"""`make sweep` at the size of a test: every combination once, what is missing, and a table of what became of it."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cramming.plan import points
from tests.helpers.commands import ROOT, inline
from tests.helpers.forked import forks  # noqa: F401, a fixture
from tests.helpers.swept import TINY, folders


def made(line: str) -> list[str]:
    """What `make sweep ...` would start."""
    plan = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "sweep", *shlex.split(line)], capture_output=True, text=True, check=True
    )
    (found,) = re.findall(r"python scripts/sweep\.py ([^\n]*(?:\\\n[^\n]*)*)", plan.stdout)
    return shlex.split(found)


def table(printed: str) -> dict[str, str]:
    """Run's name -> its state, from the end of what was printed."""
    return {name: state for state, name in re.findall(r"^(finished|failed|missing) +(\S+)", printed, re.MULTILINE)}


def test_depths_alone_are_of_about_equal_neurons() -> None:
    runs = points([*made('DEPTH="3 5" SEED="0 1" JOBS=2')[2:], "wandb=off"])
    assert [(run.root.ffn.tag, run.root.seed) for run in runs] == [("68x3", 0), ("68x3", 1), ("16x5", 0), ("16x5", 1)]
    assert {run.root.experiment for run in runs} == {"quickstart"}


def test_trees_are_as_given_and_any_key_may_be_swept() -> None:
    words = made("EXP=crammed_1x11 TREES='1 4' DEPTH='2 3' ARGS='train.lr=1e-3,2e-3'")[2:]
    runs = points(words)
    assert [(run.root.ffn.tag, run.root.train.lr) for run in runs] == [
        (tag, lr) for tag in ("1x2", "1x3", "4x2", "4x3") for lr in (1e-3, 2e-3)
    ]
    assert runs[1].row == "ffn.trees=1 ffn.depth=2 train.lr=0.002"
    (one,) = points(made("EXP=crammed_dense_3072")[2:])
    assert (one.root.ffn.tag, one.row) == ("dense3072", "")
    assert len(points(["seed=1,1,2"])) == 2  # each once


@pytest.mark.usefixtures("forks")
def test_the_table_tells_what_became_of_each_run(tmp_path: Path) -> None:
    words = [*made("TREES='1 2' DEPTH=2 SEED='0 1'"), *TINY.split(), *folders(tmp_path)]
    runs = [run.root for run in points([word for word in words if "=" in word])]
    names = [run.run_name for run in runs]
    listed = inline("sweep", "--list", *words)
    assert (listed.returncode, table(listed.stdout)) == (0, dict.fromkeys(names, "missing"))
    assert not (tmp_path / "outputs").exists()
    runs[1].run_folder.parent.mkdir(parents=True)
    runs[1].run_folder.touch()  # a file where a folder is needed
    done = inline("sweep", *words)
    runs[1].run_folder.unlink()
    assert done.returncode == 1
    assert "4, of which 4 missing, with a budget of 8,000 tokens (4 x 2,000)" in done.stdout
    assert "hours      not known before a run has finished" in done.stdout
    assert table(done.stdout) == {name: "failed" if name == names[1] else "finished" for name in names}
    assert re.search(f"failed +{names[1]}  ffn.trees=1 seed=1  failed: status 2, error: .*{names[1]}", done.stdout)
    assert re.search(rf"finished +{names[0]}  ffn.trees=1 seed=0  loss \d\.\d{{4}}", done.stdout)
    assert "of all     3 finished, 1 failed, 0 missing" in done.stdout
    assert (tmp_path / "results/tables/pretraining.md").exists()
    done = inline("sweep", *words)  # the same command tries again what ended with an error
    assert (done.returncode, table(done.stdout)) == (0, dict.fromkeys(names, "finished"))
    assert "4, of which 1 missing, with a budget of 2,000 tokens" in done.stdout
    assert re.search(r"hours +about \S+ with 1 at a time, at the speed of 3 finished runs", done.stdout)


@pytest.mark.usefixtures("forks")
def test_a_run_that_diverged_is_left_alone_until_asked_for(tmp_path: Path) -> None:
    words = ["train.lr=1e-3,1e30", "train.clip=null", *TINY.split(), *folders(tmp_path)]
    done = inline("sweep", *words)
    assert (done.returncode, sorted(table(done.stdout).values())) == (1, ["failed", "finished"])
    again = inline("sweep", *words)
    assert "2, of which 0 missing" in again.stdout
    assert (again.returncode, table(again.stdout)) == (1, table(done.stdout))
    assert re.search(r"failed +\S+  train.lr=\S+  failed: diverged: ", again.stdout)
    assert "begins" not in again.stdout
    asked = inline("sweep", "--retry", *words)
    assert asked.stdout.count(" begins") == 1
    assert (asked.returncode, table(asked.stdout)) == (1, table(done.stdout))


def test_a_run_has_a_process_of_its_own(tmp_path: Path) -> None:
    done = inline("sweep", *TINY.split(), *folders(tmp_path), "ffn.depth=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of all     1 finished, 0 failed, 0 missing" in done.stdout
    (log,) = tmp_path.glob("outputs/logs/*.log")
    assert re.search(r"^cost +about 2,000 tokens, ", log.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.lr=1e-3,-1"], "train.lr"),
        (["train.lrr=1,2"], "train.lrr"),
        (["ffn.depth=["], "(given: ffn.depth=[ "),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(words: list[str], told: str, tmp_path: Path) -> None:
    done = inline("sweep", *words, f"output_dir={tmp_path}/o", f"results_dir={tmp_path}/r")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert told in done.stderr
    assert not list(tmp_path.iterdir())
