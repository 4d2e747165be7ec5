"""What a sweep makes of SLURM's answers, by commands that answer as SLURM's do; the real one is for end_to_end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.files import write_json
from cramming.plan import Planned
from cramming.sweep import cluster
from cramming.sweep.cluster import Slurm, Submitit, by_submitit
from cramming.sweep.command import outcome
from cramming.sweep.launch import Launcher
from cramming.sweep.squeue import Queued, check_present, forget_job, job_of, keep_job, queue
from tests.helpers.commands import inline
from tests.helpers.swept import TINY, folders, planned_of

Answers = Callable[..., Path]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Gives the machine a command that prints what it is told to; its words are kept in a file, which is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def answer(command: str, said: str = "", status: int = 0) -> Path:
        file, words = folder / command, tmp_path / f"{command}.words"
        stream = ">&2" if status else ""
        file.write_text(f"#!/bin/sh\necho \"$@\" >> {words}\ncat {stream} <<'END'\n{said}\nEND\nexit {status}\n")
        file.chmod(0o755)
        return words

    return answer


@pytest.fixture
def runs(tmp_path: Path) -> list[Planned]:
    found = planned_of([*TINY.split(), "seed=0,1,2", *folders(tmp_path)])
    found[0].log.parent.mkdir(parents=True)
    return found


def test_the_queue_is_read_with_reasons_and_arrays_and_odd_names(answers: Answers) -> None:
    answers("squeue", "12|PENDING|Resources|a b|c\n7_3|RUNNING|None|x\n\n9|CANCELLED|None|y")
    found = queue()
    assert found["12"] == Queued("a b|c", "PENDING", "Resources")
    assert {number: str(job) for number, job in found.items()} == {
        "12": "PENDING (Resources)",
        "7_3": "RUNNING",
        "9": "CANCELLED",
    }
    assert [job.ended for job in found.values()] == [False, False, True]
    assert not Queued("x", "PREEMPTED", "").ended, "the queue starts it again"


def test_a_machine_without_slurm_and_one_that_does_not_answer_are_told_in_one_line(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "get_exec_path", lambda *_: [])
    monkeypatch.setattr("shutil.which", lambda *_: None)
    with pytest.raises(UserError, match=r"finds no sbatch here; .* --launch cluster=local"):
        check_present()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    answers("sbatch")
    answers("sinfo", "slurm_load_partitions: Unable to contact slurm controller (connect failure)", status=1)
    with pytest.raises(UserError, match="submitit: sinfo: slurm_load_partitions: Unable to contact"):
        check_present()


def test_a_run_is_in_the_job_of_its_name_until_that_has_ended(runs: list[Planned]) -> None:
    run = runs[0]
    waits = {"12": Queued("name", "PENDING", "Priority")}
    assert job_of(run, waits) is None
    keep_job(run, "12", "name")
    assert job_of(run, waits) == ("12", waits["12"])
    assert job_of(run, {}) is None
    assert job_of(run, {"12": Queued("name", "COMPLETED", "None")}) is None
    assert job_of(run, {"12": Queued("somebody's", "RUNNING", "None")}) is None, "numbers are given again"
    forget_job(run)
    assert job_of(run, waits) is None


def test_status_tells_what_waits_in_the_queue_and_that_it_cannot_be_asked(
    answers: Answers, runs: list[Planned], tmp_path: Path
) -> None:
    from cramming.sweep.memory import remember

    remember(runs, "sweep.py")
    keep_job(runs[0], "12", "first")
    answers("squeue", "12|PENDING|Priority|first")
    done = inline("status", f"{tmp_path}/outputs")
    assert f"queued     {runs[0].root.run_name}  seed=0  job 12 of SLURM: PENDING (Priority)" in done.stdout
    assert "of all     0 finished, 1 queued, 0 failed, 2 missing" in done.stdout
    answers("squeue", "slurm_load_jobs error: Unable to contact slurm controller", status=1)
    done = inline("status", f"{tmp_path}/outputs")
    assert "queue      not known here: squeue: slurm_load_jobs error: Unable to contact" in done.stdout
    assert "of all     0 finished, 0 failed, 3 missing" in done.stdout


def test_a_job_that_never_began_has_failed_and_leaves_no_log_to_look_into(runs: list[Planned]) -> None:
    told = outcome(runs[0], "data", "job 7 of SLURM: CANCELLED (see folder)")
    assert told == "failed: job 7 of SLURM: CANCELLED (see folder)"
    assert runs[0].failure is not None
    assert runs[0].failure["error"] == "job 7 of SLURM: CANCELLED (see folder)"


def place(tmp_path: Path, **settings: object) -> Slurm:
    pytest.importorskip("submitit")
    found = by_submitit(Launcher("submitit", 9, 1, {"cluster": "slurm", **settings}, tmp_path / "sweeps"))
    assert isinstance(found, Slurm)
    return found


def test_what_slurm_refuses_is_told_with_its_words(answers: Answers, runs: list[Planned], tmp_path: Path) -> None:
    for command in ("srun", "squeue"):
        answers(command)
    answers("sbatch", "sbatch: error: invalid partition specified: nope", status=1)
    with pytest.raises(UserError, match=r"SLURM took no job for .*: sbatch: error: invalid partition specified: nope"):
        place(tmp_path, slurm_partition="nope").submit(runs[0])


def test_jobs_are_named_kept_taken_over_and_cancelled(answers: Answers, runs: list[Planned], tmp_path: Path) -> None:
    answers("srun")
    answers("squeue")
    submitted = answers("sbatch", "Submitted batch job 41")
    job = place(tmp_path).submit(runs[0])
    name = runs[0].root.run_name
    script = next((tmp_path / "sweeps/submitit/41").glob("*.sh")).read_text()
    assert f"#SBATCH --job-name={name}" in script
    answers("squeue", f"41|PENDING|Resources|{name}")
    again = place(tmp_path)  # the same command, after kill -9
    taken = again.submit(runs[0])
    assert (taken.job_id, taken.paths.folder) == (job.job_id, job.paths.folder)
    assert len(submitted.read_text().splitlines()) == 1
    cancelled = answers("scancel")
    answers("squeue", f"41|CANCELLED|None|{name}")
    again.stop([taken])
    assert cancelled.read_text() == "41\n"
    assert job_of(runs[0], {"41": Queued(name, "PENDING", "")}) is None, "it is forgotten"


def test_a_result_counts_when_the_queue_has_done_with_the_job(
    answers: Answers, runs: list[Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    for command in ("srun", "squeue"):
        answers(command)
    answers("sbatch", "Submitted batch job 41")
    slurm = place(tmp_path)
    job = slurm.submit(runs[0])
    said = iter(["41|PENDING|BeginTime|x", None, "41|RUNNING|None|x", "41|COMPLETED|None|x"])
    looks: list[str | None] = []

    def look() -> dict[str, Queued]:
        looks.append(next(said))
        if looks[-1] is None:
            raise OSError("squeue: the controller is being restarted")
        number, state, reason, name = looks[-1].split("|")
        return {number: Queued(name, state, reason)}

    monkeypatch.setattr(cluster, "queue", look)
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    job.paths.result_pickle.parent.mkdir(exist_ok=True)
    submitit.core.utils.cloudpickle_dump(("success", 0), job.paths.result_pickle)  # of the start that was preempted
    assert slurm.ended([job]) == [(job, 0)]
    assert len(looks) == 4


def test_a_job_that_left_no_result_is_told_with_its_state(
    answers: Answers, runs: list[Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("srun", "squeue"):
        answers(command)
    answers("sbatch", "Submitted batch job 41")
    slurm = place(tmp_path)
    job = slurm.submit(runs[0])
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(cluster.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    answers("squeue", "41|OUT_OF_MEMORY|None|x")
    assert slurm.ended([job]) == [(job, f"job 41 of SLURM: OUT_OF_MEMORY (see {job.paths.folder})")]


def test_other_clusters_of_submitit_are_left_to_it(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    found = by_submitit(Launcher("submitit", 1, None, {"cluster": "local"}, tmp_path))
    assert (type(found), found.executor.cluster) == (Submitit, "local")


@pytest.mark.slow
def test_a_sweep_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    program = (
        "import argparse, os, signal; from cramming.sweep.command import add_options, check_options; "
        "parser = argparse.ArgumentParser(); add_options(parser); check_options(parser.parse_args([])); "
        "os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout == "alive\n", done.stderr
    default = {"preexec_fn": partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)}  # tests may be under nohup
    bare = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd(), **default)
    assert "alive" not in bare.stdout
    assert signal.SIGHUP.name in bare.stderr


def test_a_damaged_memory_of_a_job_is_named(runs: list[Planned]) -> None:
    file = runs[0].log.with_suffix(".job.json")
    write_json(file, {})
    assert job_of(runs[0], {"None": Queued("x", "RUNNING", "")}) is None
    file.write_text("{")
    with pytest.raises(UserError, match=r"\.job\.json"):
        job_of(runs[0], {})
