"""A real SLURM: a sweep interrupted, cancelled and killed ends with an undisturbed one's tables; the page's script.

Runs where sbatch submits and sinfo answers, on one node that this process shares its folders and processes with.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cramming.plan import Planned
from cramming.sweep.squeue import job_of, queue
from cramming.sweep.state import waiting
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, write_txt
from tests.helpers.forked import Forked
from tests.helpers.swept import TINY, folders, planned_of, untimed

ROOT = Path(__file__).parents[2]
SCALE = ROOT / "docs/scale.md"
HERE = {  # what the page's script is given in place of machines, GPUs, experiment and folder
    "--nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32": "--nodes=1 --ntasks=2 --overcommit",
    "--nproc_per_node 4": "--nproc_per_node 1",
    ".venv/bin/torchrun": f"{sys.executable} -m torch.distributed.run",
}
SWEPT = "ffn.depth=2,3,4 seed=0,1 train.budget_tokens=120000 train.validations=4 train.checkpoints=8"
PATIENCE_S = 300.0


def why_not() -> str:
    """Why there is no SLURM here; empty where there is."""
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        return "sbatch and sinfo are not on this machine"
    done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True)
    return f"sinfo: {done.stderr.strip()[-100:]}" if done.returncode or not done.stdout.strip() else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "SLURM is here")]


@pytest.fixture
def jobs() -> Iterator[None]:
    """Leave none of them behind."""
    before = set(queue())
    yield
    if left := set(queue()) - before:
        subprocess.run(["scancel", *left], check=True)


def until(so: Callable[[], object], told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline, told()
        time.sleep(0.005)


class Swept:
    """A sweep by SLURM in a process of its own."""

    def __init__(self, home: Path, text: Path) -> None:
        self.words = ["--launcher", "submitit", "--launch=cpus_per_task=1", *TINY.split(), *SWEPT.split()]
        self.words += folders(home, text)
        self.runs, self.log = planned_of(self.words), home / "sweep.log"

    def start(self) -> Forked:
        return Forked("sweep", self.words, self.log, session=True)

    def half_done(self) -> list[Planned]:
        return [run for run in self.runs if run.begun and not run.finished() and run.holder]

    def await_half_done(self, but: int = 0) -> Planned:
        """One with a checkpoint that is being trained, by another process than one that was killed."""
        until(lambda: [run for run in self.half_done() if run.holder and run.holder.process != but], self.log.read_text)
        return next(iter(self.half_done()))

    def nobody_trains(self) -> bool:
        return not any(run.holder for run in self.runs)


@pytest.mark.usefixtures("jobs")
def test_a_sweep_by_slurm_interrupted_cancelled_and_killed_ends_with_the_same_table(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    text, whole, home = write_txt(tmp_path / "text.txt", make_documents(150)), tmp_path / "whole", tmp_path / "slurm"
    done = inline("sweep", *TINY.split(), *SWEPT.split(), *folders(whole, text))
    assert done.returncode == 0, done.stdout + done.stderr
    swept = Swept(home, text)

    sweep = swept.start()
    swept.await_half_done()
    os.kill(sweep.pid, signal.SIGINT)
    assert sweep.wait() == 128 + signal.SIGINT, swept.log.read_text()
    assert waiting(swept.runs) == {}, "interrupted, a sweep leaves no job in the queue"
    assert swept.nobody_trains()
    assert any(run.begun and not run.finished() for run in swept.runs), "interrupted, a run keeps what it has learnt"

    sweep = swept.start()
    cancelled = swept.await_half_done()
    found = job_of(cancelled, queue())
    assert found is not None
    subprocess.run(["scancel", found[0]], check=True)
    until(lambda: cancelled.failure, swept.log.read_text)
    assert "Stopped by SIGTERM" in cancelled.failure["error"]  # type: ignore[index]
    killed = swept.await_half_done()
    assert killed.holder is not None
    os.kill(killed.holder.process, signal.SIGKILL)
    until(lambda: killed.failure, swept.log.read_text)
    assert "status -9" in killed.failure["error"]  # type: ignore[index]
    swept.await_half_done()
    os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    left = {found[0] for run in swept.runs if (found := job_of(run, queue()))}
    assert left, "killed, a sweep leaves its jobs in the queue"

    finished = {run.root.run_name for run in swept.runs if run.finished()}
    done = inline("sweep", *swept.words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not finished & set(re.findall(r"^(\S+) +begins$", done.stdout, re.MULTILINE)), "what had finished is kept"
    folder = home / "outputs/sweeps/submitit"
    assert left <= {each.name for each in folder.iterdir()}
    assert untimed(home) == untimed(whole)
    assert any("(continues at step " in run.log.read_text() for run in swept.runs)


def script(words: list[str]) -> str:
    """The page's, for two processes of one node."""
    (found,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", SCALE.read_text(), re.DOTALL)
    for old, new in (HERE | {re.findall(r"experiment=\S+ train.sharding=.*", found)[0]: " ".join(words)}).items():
        assert found.count(old) == 1, old
        found = found.replace(old, new)
    return found


@pytest.mark.usefixtures("jobs")
def test_the_script_of_the_page_trains_is_cancelled_and_goes_on(tmp_path: Path) -> None:
    text = write_txt(tmp_path / "text.txt", make_documents(150))
    budget = "train.budget_tokens=250000 train.microbatch=4 train.validations=4 train.checkpoints=8 train.sharding=fsdp"
    words = [*TINY.split(), *budget.split(), *folders(tmp_path, text)]
    (run,) = planned_of(words)
    (tmp_path / "job.sh").write_text(script(words))

    def submitted(log: Path) -> str:
        command = ["sbatch", "--parsable", f"--output={log}", str(tmp_path / "job.sh")]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    job = submitted(first)
    until(lambda: run.begun, lambda: first.read_text()[-2000:])
    subprocess.run(["scancel", job], check=True)
    until(lambda: queue()[job].ended)
    assert "Stopped by SIGTERM at step " in first.read_text()
    assert not run.finished()
    job = submitted(second)
    until(lambda: queue()[job].ended, lambda: second.read_text()[-2000:])
    said = second.read_text()
    assert "(continues at step " in said, said[-2000:]
    record = run.finished()
    assert record is not None, said[-2000:]
    assert record["machine"]["processes"] == 2
